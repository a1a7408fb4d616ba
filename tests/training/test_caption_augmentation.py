"""What a step reads of a caption: some of it, never wrong, and the same again for the same seed and step."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_core.config import DataConfig
from clip_core.data.dataset import IntArray, load_data
from clip_core.data.tokenizer import Tokenizer, train_bpe, train_characters
from clip_core.errors import TokenizerError
from clip_core.network import Preprocessing
from clip_core.text import keywords
from clip_core.training.batches import BatchMaker
from clip_core.training.caption_augmentation import (
    BPEDropout,
    CaptionAugmentation,
    Keys,
    draw_keys,
    thinned,
)

words = st.lists(st.text("abcdefg :;)", min_size=1, max_size=6).map(str.strip).filter(bool), min_size=3, max_size=9)


@pytest.mark.parametrize(
    ("caption", "parts"),
    [
        ("late, early, time", ["late", "early", "time"]),
        ("slip-on,woman’s ,  ballet shoe", ["slip-on", "woman’s", "ballet shoe"]),
        ("a bus", None),
        ("couple with heart, man", None),
        ("In the morning, three people walk along a beach, and a dog", None),
        ("late, , early", None),
        ("", None),
    ],
)
def test_a_list_is_three_short_parts_or_more(caption: str, parts: list[str] | None) -> None:
    assert keywords(caption) == parts


@given(words, st.integers(0, 1000))
def test_what_is_left_of_a_list_was_in_it_and_is_never_nothing(parts: list[str], seed: int) -> None:
    kept = thinned(parts, np.random.default_rng(seed)).split(", ")
    assert kept != [""]
    assert all(kept.count(part) <= parts.count(part) for part in kept)


def test_lists_are_seen_whole_and_thinned_in_every_order() -> None:
    random = np.random.default_rng(0)
    seen = [thinned(["a", "b", "c"], random) for _ in range(2000)]
    assert {len(caption.split(", ")) for caption in seen} == {1, 2, 3}
    assert {"a, b, c", "c, b, a", "b", "c, a"} <= set(seen)
    assert 0.3 < seen.count("a, b, c") / len(seen) < 0.45


@given(st.text().filter(str.strip), st.floats(0, 0.99), st.integers(0, 1000))
def test_words_are_left_out_in_their_order_and_never_all(caption: str, share: float, seed: int) -> None:
    change = CaptionAugmentation(word_dropout=share)
    words, kept = caption.split(), change(caption, np.random.default_rng(seed)).split()
    assert kept
    rest = iter(words)
    assert all(word in rest for word in kept)
    assert change.changes(caption) == (share > 0)


def keys_of(rows: IntArray, step: int = 0) -> Keys:
    return draw_keys(0, step, np.arange(len(rows)))


def spelt(context_length: int = 77) -> Tokenizer:
    """Of words that grow by one letter, so that a token is made of many."""
    grown = [word[:end] for word in ("firefighter", "lightning") for end in range(1, 12)]
    return train_bpe(grown * 3, 400, context_length)


@settings(deadline=None)
@given(st.lists(st.text("fightenrl ,é", max_size=30), min_size=1, max_size=5), st.floats(0, 1), st.integers(0, 1000))
def test_tokens_in_pieces_spell_the_same(captions: list[str], share: float, seed: int) -> None:
    tokenizer = spelt()
    rows = tokenizer.encode(captions)
    pieces = BPEDropout(tokenizer, share)(rows, keys_of(rows, seed))
    assert [tokenizer.decode(row) for row in pieces] == [tokenizer.decode(row) for row in rows]
    assert (pieces[:, 0] == rows[:, 0]).all()
    assert ((pieces == tokenizer.end_token).sum(axis=1) == 1).all()


def test_pieces_fall_apart_as_often_as_asked() -> None:
    tokenizer = spelt()
    rows = tokenizer.encode(["firefighter"])
    assert (rows[0] != tokenizer.pad_id).sum() == 3  # start, the word, end
    whole = [BPEDropout(tokenizer, 0.3)(rows, keys_of(rows, seed)).shape[1] == 3 for seed in range(2000)]
    assert 0.66 < sum(whole) / len(whole) < 0.74
    letters = BPEDropout(tokenizer, 1.0)(rows, keys_of(rows))
    assert letters.shape[1] == len(" firefighter") + 2


def test_a_caption_that_would_grow_too_long_stays_whole() -> None:
    tokenizer = spelt(context_length=6)
    rows = tokenizer.encode(["firefighter", "fi", "lightning lightning lightning lightning lightning"])
    pieces = BPEDropout(tokenizer, 1.0)(rows, keys_of(rows))
    assert pieces[0].tolist() == [*rows[0], *[tokenizer.pad_id] * (pieces.shape[1] - rows.shape[1])]
    assert (pieces[1] != tokenizer.pad_id).sum() == len(" fi") + 2
    assert pieces.shape[1] <= 6


def test_only_byte_pairs_have_pieces() -> None:
    with pytest.raises(TokenizerError, match="a tokenizer of the kind char has no merged tokens"):
        BPEDropout(train_characters(["abc"], 8), 0.1)


@pytest.mark.parametrize("bpe_dropout", [0.0, 0.5])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_batch_reads_changed_lists_whole_and_other_captions_as_they_are(
    shapes: Path, groups: int, bpe_dropout: float
) -> None:
    drawn = json.loads(shapes.read_text())
    listed = [f"key{row % 50}, word{row % 41}, shape{row % 7}, thing{row % 13}" for row in range(len(drawn))]
    pairs = [pair | {"caption": listed[row] if row % 2 else pair["caption"]} for row, pair in enumerate(drawn)]
    (shapes.parent / "lists.json").write_text(json.dumps(pairs))
    data = load_data(DataConfig(data_file=shapes.parent / "lists.json"), Preprocessing(), 0, lambda line: None)
    tokenizer = train_bpe(data.train.captions, 400, context_length=77)

    def texts(lists: bool) -> list[tuple[str, str]]:
        make = BatchMaker(
            data.train,
            data.train_store,
            tokenizer,
            batch_size=80,
            seed=3,
            groups=groups,
            augmentation=CaptionAugmentation(lists=lists),
            bpe_dropout=bpe_dropout,
        )
        batch = make(1)
        rows = [row for group in batch.input_ids for row in group]
        whole = tokenizer.encode([tokenizer.decode(row.tolist()) for row in rows])
        tokens = sum(int((row != tokenizer.pad_id).sum()) for row in rows)
        assert (tokens > (whole != tokenizer.pad_id).sum()) == (bpe_dropout > 0)
        assert all(tokenizer.end_token in row for row in rows)
        return [
            (data.train.captions[int(caption)], tokenizer.decode(rows[int(row)].tolist()))
            for caption, row in zip(batch.caption_ids, batch.text_rows, strict=True)
        ]

    assert all(read == caption for caption, read in texts(lists=False))
    changed = texts(lists=True)
    assert changed == texts(lists=True)
    assert all(read == caption for caption, read in changed if keywords(caption) is None)
    assert all(set(read.split(", ")) <= set(caption.split(", ")) for caption, read in changed if keywords(caption))
    assert sum(read != caption for caption, read in changed) > 15
