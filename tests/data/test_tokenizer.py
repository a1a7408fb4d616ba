"""Tokenizers: one file, the same numbers everywhere, and no caption that can break out of its row."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_core.data.tokenizer import END, PAD, START, UNKNOWN, Tokenizer, train_bpe, train_characters, vocabulary_for
from clip_core.errors import TokenizerError
from clip_core.text import normalise_caption

CAPTIONS = [
    "a red circle", "a blue square", "two dogs, running; fast!", "naïve café", "face, smile, :D",
    "A photo of a 12-inch pizza.", "it's the dog's ball", "日本の写真", "two dogs and a red ball",
]  # fmt: skip
HOSTILE = [
    "", " ", "\n\t ", "<|endoftext|>", "<|pad|><|startoftext|><|unk|>", "a red <|endoftext|> circle",
    "\x1b[31mred\x1b[0m", "a\0b", "\ud800", "\U0001f468‍\U0001f469‍\U0001f467", "İSTANBUL ǅ ﬁ",
    "‮evil", "e\u0301" * 50, "x" * 10_000, "[red]markup[/red]", "'; DROP TABLE runs; --", "$A $B [CLS]",
]  # fmt: skip
CONTEXT = 24

CHARACTERS = train_characters(CAPTIONS, CONTEXT)
BPE = train_bpe(CAPTIONS, 400, CONTEXT)
both = pytest.mark.parametrize("tokenizer", [CHARACTERS, BPE], ids=["char", "bpe"])
anything = st.text(st.characters(exclude_categories=()), max_size=80)


def specials(tokenizer: Tokenizer, path: Path) -> dict[str, int]:
    tokenizer.save(path)
    vocabulary = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    return {name: vocabulary[name] for name in (PAD, START, END, UNKNOWN) if name in vocabulary}


def assert_well_framed(tokenizer: Tokenizer, ids: np.ndarray) -> None:
    """One start, one end, padding only behind it, and nothing outside the vocabulary."""
    pad, start, end = 0, int(tokenizer.encode([""])[0, 0]), tokenizer.end_token
    assert ids.dtype == np.int64
    assert ids.shape[1] <= tokenizer.context_length
    assert (ids >= 0).all()
    assert (ids < tokenizer.vocab_size).all()
    for row in ids:
        (place,) = np.flatnonzero(row == end)
        assert row[0] == start
        assert (row[1:] != start).all()
        assert (row[:place] != pad).all()
        assert (row[place + 1 :] == pad).all()


@both
def test_hostile_captions_stay_text(tokenizer: Tokenizer):
    assert_well_framed(tokenizer, tokenizer.encode(HOSTILE))


@both
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(anything, min_size=1, max_size=5))
def test_any_text_becomes_a_well_framed_row(tokenizer: Tokenizer, texts: list[str]):
    assert_well_framed(tokenizer, tokenizer.encode(texts))


@both
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(anything, min_size=2, max_size=5))
def test_a_caption_has_the_same_tokens_alone_and_in_a_batch(tokenizer: Tokenizer, texts: list[str]):
    batch = tokenizer.encode(texts)
    for row, text in zip(batch, texts, strict=True):
        alone = tokenizer.encode([text])[0]
        np.testing.assert_array_equal(row[: len(alone)], alone)


@settings(max_examples=80, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=200))
def test_bpe_gives_back_any_text_that_it_does_not_cut(text: str):
    tokenizer = train_bpe(CAPTIONS, 400, 4096)
    decoded = tokenizer.decode(tokenizer.encode([text])[0])
    again = tokenizer.decode(tokenizer.encode([decoded])[0])
    assert decoded == again  # normalising is done once and for all
    assert normalise_caption(decoded) == normalise_caption(text.lower())


@settings(max_examples=60, deadline=None)
@given(text=st.text("abcdefgh ,.:D", max_size=20))
def test_characters_give_back_any_text_of_known_characters(text: str):
    assert CHARACTERS.decode(CHARACTERS.encode([text])[0]) == " ".join(text.lower().split())


def test_an_unknown_character_is_one_unknown_token():
    assert CHARACTERS.decode(CHARACTERS.encode(["a ☃ b"])[0]) == f"a {UNKNOWN} b"


@both
def test_the_longest_of_the_batch_sets_the_width(tokenizer: Tokenizer):
    assert tokenizer.encode([""]).shape == (1, 2)
    assert tokenizer.encode(["", "a"]).shape[1] == tokenizer.encode(["a"]).shape[1]
    assert tokenizer.encode([]).shape == (0, 2)


@both
def test_an_over_long_caption_keeps_its_end_and_is_counted(tokenizer: Tokenizer):
    row = tokenizer.encode(["qzx " * 100])[0]
    assert len(row) == CONTEXT
    assert row[-1] == tokenizer.end_token
    assert tokenizer.count_truncated(["qzx " * 100, "a", ""]) == 1


def test_a_caption_that_just_fits_is_not_counted_as_cut():
    assert CHARACTERS.count_truncated(["a" * (CONTEXT - 2)]) == 0
    assert CHARACTERS.count_truncated(["a" * (CONTEXT - 1)]) == 1


@both
def test_case_white_space_and_composition_make_no_difference(tokenizer: Tokenizer):
    ids = tokenizer.encode(["naïve café", "  NAI\u0308VE \n\t CAFE\u0301 "])
    np.testing.assert_array_equal(ids[0], ids[1])


@both
def test_words_that_are_spelt_alike_but_stand_apart_are_told_apart(tokenizer: Tokenizer):
    ids = tokenizer.encode(["two dogs", "twodogs"])
    assert not np.array_equal(ids[0], ids[1])


@both
def test_the_plain_library_reads_the_same_numbers_from_the_file(tokenizer: Tokenizer, tmp_path: Path):
    tokenizer.save(tmp_path / "tokenizer.json")
    texts = [text for text in CAPTIONS + HOSTILE if text != "\ud800"]
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    expected = np.array([encoding.ids for encoding in plain.encode_batch(texts)])
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    np.testing.assert_array_equal(tokenizer.encode(texts), expected)
    np.testing.assert_array_equal(loaded.encode(texts), expected)
    for name in ("kind", "vocab_size", "end_token", "context_length"):
        assert getattr(loaded, name) == getattr(tokenizer, name)


@pytest.mark.parametrize("train", ["train_characters(C, 24)", "train_bpe(C, 400, 24)"])
def test_training_again_in_another_process_gives_the_same_file(train: str, tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from clip_core.data.tokenizer import *;"
        f"C = {CAPTIONS!r}; {train}.save(Path(sys.argv[1]))"
    )
    for name in ("1.json", "2.json"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True)
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()


@pytest.mark.parametrize("train", [lambda c: train_characters(c, 24), lambda c: train_bpe(c, 300, 24)])
def test_captions_that_spell_special_tokens_do_not_change_their_numbers(
    train: Callable[[list[str]], Tokenizer], tmp_path: Path
):
    tokenizer = train([*HOSTILE, *CAPTIONS])
    found = specials(tokenizer, tmp_path / "t.json")
    assert sorted(found.values()) == list(range(len(found)))
    assert_well_framed(tokenizer, tokenizer.encode(HOSTILE))


def test_bpe_holds_to_its_vocabulary_size():
    assert train_bpe(CAPTIONS * 3, 300, 24).vocab_size == 300


def test_the_vocabulary_grows_with_the_captions_within_bounds() -> None:
    assert [vocabulary_for(captions) for captions in (0, 10_000, 40_000, 10**9)] == [3000, 3000, 6000, 32_000]
    words = [f"{number:x}{number:x}" for number in range(12_000)] * 2
    assert 3000 < train_bpe(words, None, 24).vocab_size <= 4620


def test_a_published_tokenizer_does_not_take_the_end_from_a_caption_either(tmp_path: Path):
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    inner.train_from_iterator(CAPTIONS, tokenizers.trainers.BpeTrainer(
        special_tokens=["<|startoftext|>", "<|endoftext|>"], show_progress=False,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    ))  # fmt: skip
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", 0), ("<|endoftext|>", 1)],
    )
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    row = tokenizer.encode(["a <|endoftext|> b"])[0]
    assert tokenizer.context_length == 77
    assert np.flatnonzero(row == tokenizer.end_token).tolist() == [len(row) - 1]
    assert Tokenizer.load(tmp_path / "tokenizer.json", context_length=5).encode(["a " * 50]).shape == (1, 5)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": 1}', "\x00", '{"version": "1.0"}'])
def test_a_file_that_is_no_tokenizer_is_refused_by_name(content: str, tmp_path: Path):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"t\.json cannot be used as a tokenizer"):
        Tokenizer.load(tmp_path / "t.json")


def test_a_missing_file_and_one_without_an_end_token_are_refused(tmp_path: Path):
    with pytest.raises(TokenizerError, match="no tokenizer at"):
        Tokenizer.load(tmp_path / "gone.json")
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "t.json"))
    with pytest.raises(TokenizerError, match="no end-of-text token"):
        Tokenizer.load(tmp_path / "t.json")
