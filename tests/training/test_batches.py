"""Batches: captions in groups of like length, and the part of each rank."""

import json
from pathlib import Path

import pytest
import torch

from clip_core.config import DataConfig
from clip_core.data.dataset import load_data
from clip_core.data.tokenizer import Tokenizer, train_characters
from clip_core.network import Preprocessing
from clip_core.training.batches import Batch, BatchMaker
from clip_core.training.caption_augmentation import CaptionAugmentation
from clip_core.training.ranks import Rank


@pytest.mark.parametrize("groups", [1, 4])
def test_every_pair_has_its_caption_in_groups_of_like_length(shapes: Path, tmp_path: Path, groups: int) -> None:
    drawn = json.loads(shapes.read_text())
    pairs = [
        {"image": pair["image"], "caption": " ".join([pair["caption"]] * (1 + number % 7))}
        for number, pair in enumerate(drawn)
    ]
    (shapes.parent / "longer.json").write_text(json.dumps(pairs))
    data = load_data(DataConfig(data_file=shapes.parent / "longer.json"), Preprocessing(), 0, lambda line: None)
    tokenizer = train_characters(data.train.captions, context_length=77)
    make = BatchMaker(data.train, data.train_store, tokenizer, batch_size=64, seed=0, groups=groups)
    batch = make(1)
    rows = [row[row != tokenizer.pad_id].tolist() for group in batch.input_ids for row in group]
    for pair, caption in enumerate(batch.caption_ids):
        expected = tokenizer.encode([data.train.captions[int(caption)]])[0].tolist()
        assert rows[int(batch.text_rows[pair])] == expected
    widths = [group.shape[1] for group in batch.input_ids]
    assert len(widths) == groups
    assert widths == sorted(widths)
    assert all(width % 8 == 0 or width == 77 for width in widths)  # few shapes, as each costs a CPU memory
    assert all((group[:, -8:] != tokenizer.pad_id).any() for group in batch.input_ids)  # none is wider than it needs


@pytest.mark.parametrize("size", [2, 4])
def test_the_batches_of_the_ranks_are_the_batch_of_one_process(shapes: Path, size: int) -> None:
    data = load_data(DataConfig(data_file=shapes), Preprocessing(), 0, lambda line: None)
    tokenizer = train_characters(data.train.captions, context_length=77)

    def batches_of(rank: Rank) -> BatchMaker:
        return BatchMaker(
            data.train, data.train_store, tokenizer, batch_size=32, seed=0, groups=2, rank=rank,
            augmentation=CaptionAugmentation(word_dropout=0.5),
        )  # fmt: skip

    whole = batches_of(Rank())(5)
    drawn = texts_of(whole, tokenizer)
    assert any(text != data.train.captions[caption] for text, caption in zip(drawn, whole.caption_ids, strict=True))
    parts = [batches_of(Rank(number, size))(5) for number in range(size)]
    for name in ("images", "image_ids", "caption_ids"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    for part in parts:
        assert torch.equal(part.all_image_ids, whole.image_ids)
        assert torch.equal(part.all_caption_ids, whole.caption_ids)
    assert [text for part in parts for text in texts_of(part, tokenizer)] == drawn
    assert torch.equal(batches_of(Rank(1, size))(5, whole=True).images, whole.images)


def texts_of(batch: Batch, tokenizer: Tokenizer) -> list[str]:
    """The caption of each pair, as it was augmented."""
    rows = [row.tolist() for group in batch.input_ids for row in group]
    return [tokenizer.decode(rows[int(row)]) for row in batch.text_rows]
