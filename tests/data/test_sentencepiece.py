"""SentencePiece models read from their bytes give the ids of the unigram model that they hold."""

import json
import struct
from pathlib import Path

import pytest

from clip_core.data.published_tokenizer import find_published_tokenizer
from clip_core.data.sentencepiece import read_sentencepiece
from clip_core.errors import TokenizerError
from tests.published_siglip import sentencepiece

TEXTS = ["a photo of a cat", "", "it's  the dog's ball", "naïve 漢字", "snow_white & seven dwarfs "]


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def message(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def model_bytes(*, model_type: int = 1) -> bytes:
    """The test's unigram model in SentencePiece's format, without a table of characters."""
    content = json.loads(sentencepiece().to_str())["model"]
    pieces = b"".join(
        message(
            1, message(1, piece.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score)
            + number(3, 2 if place == content["unk_id"] else 1),
        )
        for place, (piece, score) in enumerate(content["vocab"])
    )  # fmt: skip
    return pieces + message(2, number(3, model_type)) + message(3, message(1, b"identity"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "spiece.model").write_bytes(model_bytes())
    return tmp_path


def test_a_model_gives_the_ids_of_its_pieces(folder: Path) -> None:
    ours, theirs = read_sentencepiece(folder / "spiece.model"), sentencepiece()
    for text in TEXTS:
        plain = " ".join(text.split())
        assert ours.encode(text).ids == theirs.encode(plain, add_special_tokens=False).ids, text


def test_weights_with_a_sentencepiece_model_alone_have_a_tokenizer(folder: Path) -> None:
    tokenizer = find_published_tokenizer(folder, 64, fixed_length=True, siglip=True)
    (row,) = tokenizer.encode(["A photo, of a CAT!"])
    ids = sentencepiece().encode("a photo of a cat").ids
    assert row.tolist() == [*ids, *[1] * (64 - len(ids))]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x0a\xff", "not a readable SentencePiece model"),
        (b"", "not a unigram model"),
        (message(1, b""), "not a readable SentencePiece model"),
        (model_bytes(model_type=2), "not a unigram model"),
    ],
)
def test_what_is_no_unigram_model_is_one_sentence(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(TokenizerError, match=reason) as caught:
        find_published_tokenizer(tmp_path, 64, fixed_length=True, siglip=True)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokenizer_says_what_to_put_there(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"neither tokenizer\.json nor spiece\.model"):
        find_published_tokenizer(tmp_path, 64, fixed_length=True)
