"""Hard negatives: wrong captions of the words of right ones."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_core.data.hard_negatives import KINDS, HardNegatives, Kind, words_of
from clip_core.text import normalise_caption
from tests.conftest import command_environment

CAPTIONS = ["a red circle on a blue square", "two green triangles", "a dog chases a cat", "a small black box"]


def all_of(kind: Kind, caption: str, own: tuple[str, ...] = ()) -> set[str | None]:
    made = HardNegatives(words_of(CAPTIONS))
    return {made.make(kind, caption, own, np.random.default_rng(seed)) for seed in range(60)}


def test_words_of_the_same_class_are_exchanged_before_any_others() -> None:
    assert all_of("swap", "A red circle on a blue square") == {"A blue circle on a red square"}
    assert all_of("swap", "a dog chases a cat") == {
        "a cat chases a dog", "a chases dog a cat", "a dog cat a chases",
    }  # fmt: skip
    assert all_of("swap", "Bob and Alice") == {None}, "whose order means nothing"


def test_a_word_is_replaced_by_one_of_its_class_that_the_set_has() -> None:
    assert all_of("replace", "a red circle") == {"a blue circle", "a green circle", "a black circle"}
    assert all_of("replace", "a red circle", ("A BLUE circle",)) == {"a green circle", "a black circle"}


def test_keywords_have_no_order() -> None:
    assert all_of("order", "face, smile, joy") == all_of("swap", "face, smile, joy") == {None}
    assert None not in all_of("replace", "face, smile, joy")


@pytest.mark.parametrize("caption", ["", "a", "!?", "of the"])
def test_where_no_word_can_be_exchanged_there_is_none(caption: str) -> None:
    assert HardNegatives(words_of(CAPTIONS)).draw(caption, (), np.random.default_rng(0)) is None


def test_they_are_the_same_in_every_process() -> None:
    """Python orders a set of strings by hashes of its own in each process."""
    code = (
        "import numpy as np; from clip_core.data.hard_negatives import HardNegatives, words_of\n"
        "captions = ['two red dogs on a small wooden box', 'one blue cat beside a huge metal tree', 'four old birds']\n"
        "made = HardNegatives(words_of(captions)); random = np.random.default_rng(0)\n"
        "print([made.draw(caption, (), random) for caption in captions for _ in range(9)])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=command_environment() | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    ]
    assert len(set(outputs)) == 1


@settings(max_examples=100)
@given(st.lists(st.text(max_size=40), max_size=6), st.text(max_size=40), st.integers(0, 100))
def test_a_negative_is_never_a_caption_of_the_image_and_the_seed_decides(
    own: list[str], caption: str, seed: int
) -> None:
    made = HardNegatives(words_of([*own, *CAPTIONS]))
    for kind in KINDS:
        first, second = (made.make(kind, caption, own, np.random.default_rng(seed)) for _ in range(2))
        assert first == second
        assert first is None or normalise_caption(first) not in {normalise_caption(c) for c in (caption, *own)}
