"""CLIP's BPE gives open_clip's token numbers for every text, up to trailing padding."""

from functools import cache
from pathlib import Path

import numpy as np
import open_clip
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clip_core.data.clip_bpe import find_clip_tokenizer
from clip_core.data.tokenizer import Tokenizer

CAPTIONS = [
    "", " ", "a photo of a cat", "A Photo\tof\x1ca \u2028CAT\u3000!!", "it's the dog's 12-inch ball", "WE'LL, I'D",
    "ΟΔΟΣ ΣΑΣ", "İstanbul ǅ ﬁ \u212a", "'ſ 'S ſ", "e\u0301 é", "naïve café", "²½Ⅷ१२ ٣", "_a_b_ $1.50",
    "&amp;amp;lt;b&gt; &#x110000; &nbsp;x &#0; &amp", "<b>bold</b>", "schÃ¶n â€œquoteâ€\x9d ï»¿", "“curly” ‘quotes’ …",
    "日本の写真 ｈａｌｆ 한국어 汉字", "👨‍👩‍👧 🇩🇪 ❤️", "\x00\x01\x1b[31mred\x1b[0m\x7f\x85", "\u202eevil \ufeff\u200b",
    "<start_of_text> a <end_of_text>", "!!<start_of_text>", "x<end_of_text>y <end_of_text>", "<ſtart_of_text>",
    "<START_OF_TEXT>", "<|startoftext|> <|endoftext|>", "<|pad|>", "\U0002ebf0\U000323b0 \ua7cb", "\ud83d\ude00",
    "\ud800 half", "a" * 300, "x " * 200, "aaaa" * 30, "</w>", "Ġ Ċ", "'" * 9 + "s",
]  # fmt: skip
spiced = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=()), max_size=8),
        st.sampled_from([*CAPTIONS, "&lt;", "&", ";", "Ã", "â€", "Σ", " ", "'", "ſ", "<", ">", "s", "\r\n"]),
    ),
    max_size=8,
).map("".join)


@cache
def theirs() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer()


@cache
def ours() -> Tokenizer:
    return find_clip_tokenizer(None, 77)


def assert_equal_numbers(tokenizer: Tokenizer, text: str) -> None:
    (row,) = tokenizer.encode([text])
    expected = theirs()([text], context_length=tokenizer.context_length)[0].numpy()
    np.testing.assert_array_equal(row, expected[: len(row)])
    assert not expected[len(row) :].any()


@pytest.mark.parametrize("text", CAPTIONS)
def test_the_numbers_of_a_caption_are_open_clips(text: str):
    assert_equal_numbers(ours(), text)


@settings(max_examples=600, deadline=None)
@given(text=st.one_of(spiced, st.text(st.characters(exclude_categories=()), max_size=60)))
@example("\u1e9e\u0345Σ")
def test_the_numbers_of_any_text_are_open_clips(text: str):
    assert_equal_numbers(ours(), text)


@settings(max_examples=200, deadline=None)
@given(text=spiced)
def test_a_short_context_cuts_where_open_clip_cuts(text: str):
    assert_equal_numbers(short(), text)


@cache
def short() -> Tokenizer:
    return find_clip_tokenizer(None, 9)


def test_every_character_alone_and_inside_a_word_has_open_clips_numbers():
    letters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for start in range(0, len(letters), 97):
        run = letters[start]
        assert_equal_numbers(ours(), f"a{run}b {run} 1{run}")


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(spiced, min_size=1, max_size=5))
def test_a_batch_padded_to_the_context_is_open_clips_batch(texts: list[str]):
    np.testing.assert_array_equal(fixed().encode(texts), theirs()(texts).numpy())


@cache
def fixed() -> Tokenizer:
    return find_clip_tokenizer(None, 77, fixed_length=True)


@settings(max_examples=100, deadline=None)
@given(text=spiced)
def test_a_saved_tokenizer_keeps_the_numbers(text: str, tmp_path_factory: pytest.TempPathFactory):
    assert_equal_numbers(reloaded(tmp_path_factory.getbasetemp() / "tokenizer.json"), text)


@cache
def reloaded(path: Path) -> Tokenizer:
    ours().save(path)
    return Tokenizer.load(path)
