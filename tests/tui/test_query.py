"""The query line."""

import pytest

from clip_tui.gallery import gallery_of
from clip_tui.query import Term, parse_query

GALLERY = gallery_of([("/images/dog.png", "a dog"), ("/images/cat.png", "a cat")])


@pytest.mark.parametrize(
    ("typed", "terms"),
    [
        ("a red circle", [Term("a red circle")]),
        ("a dog + at night - grass", [Term("a dog"), Term("at night"), Term("grass", -1.0)]),
        ("black-and-white photo, 1+1", [Term("black-and-white photo, 1+1")]),
        ("a dog - 0.5*grass", [Term("a dog"), Term("grass", -0.5)]),
        ("dog.png + 2 * snow", [Term("dog.png", image="/images/dog.png"), Term("snow", 2.0)]),
        ("/images/cat.png", [Term("/images/cat.png", image="/images/cat.png")]),
        ('"rock - paper - scissors" + "dog.png"', [Term("rock - paper - scissors"), Term("dog.png")]),
        ("- a dog", [Term("a dog", -1.0)]),
        ("  ", []),
        ("a + + b", [Term("a"), Term("+ b")]),
        ("9999*a", [Term("a", 100.0)]),
        ("\0", []),
    ],
)
def test_terms_are_joined_by_signs_that_stand_alone(typed: str, terms: list[Term]) -> None:
    assert parse_query(typed, GALLERY) == terms


def test_what_no_path_may_be_is_a_text() -> None:
    assert parse_query("x" * 5000, GALLERY)[0].image is None
    assert parse_query("~nobody-of-this-name/x", GALLERY)[0].image is None
