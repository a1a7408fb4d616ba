"""Training with hard negatives: which captions they are, which images they are negatives of, and their loss."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clip_core.config import DataConfig, parse_config
from clip_core.data.dataset import PairSet, load_data
from clip_core.data.pairs import Pair
from clip_core.data.tokenizer import train_characters
from clip_core.network import Preprocessing
from clip_core.text import normalise_caption
from clip_core.training.batches import Batch, BatchMaker
from clip_core.training.caption_augmentation import CaptionAugmentation
from clip_core.training.loss import CLIPLoss, Negatives, SigmoidLoss
from clip_core.training.negative_captions import NegativeCaptions
from clip_core.training.ranks import Rank
from clip_core.training.train_step import TrainStep
from tests.conftest import SHORT_RUN, clip_train
from tests.training.tiny import tiny, tiny_batch, tiny_recipe


def pair_set(*captions: tuple[str, str]) -> PairSet:
    return PairSet.from_pairs([Pair(image, caption, number) for number, (image, caption) in enumerate(captions, 1)])


def test_a_caption_of_another_image_is_no_negative_of_that_image() -> None:
    pairs = pair_set(("1", "a red circle"), ("2", "a blue circle"), ("3", "!?"), ("1", "round"), ("2", "a disc"))
    negatives = NegativeCaptions(pairs, seed=0)
    made = negatives.of(np.array([0, 1, 2, 4]), step=3)
    assert [normalise_caption(text) for text in made.captions[:3]] == ["a blue circle", "a red circle", "!?"]
    assert made.not_negative[:, :3].tolist() == [
        [False, True, True],
        [True, False, True],
        [False, False, True],
        [True, False, True],  # the image of "a disc" is blue
    ]


@pytest.mark.parametrize("size", [1, 2])
def test_ranks_have_the_parts_of_one_batch(shapes: Path, size: int) -> None:
    data = load_data(DataConfig(data_file=shapes), Preprocessing(), 0, lambda line: None)
    tokenizer = train_characters(data.train.captions, context_length=77)

    def batch_of(rank: Rank) -> Batch:
        return BatchMaker(
            data.train, data.train_store, tokenizer, batch_size=32, seed=0, groups=2, rank=rank, hard_negatives=True,
            augmentation=CaptionAugmentation(word_dropout=0.2),
        )(5)  # fmt: skip

    def texts(batch: Batch) -> list[str]:
        assert batch.negative_rows is not None
        rows = [row for group in batch.input_ids for row in group]
        return [tokenizer.decode(rows[int(place)].numpy()) for place in batch.negative_rows]

    whole, parts = batch_of(Rank()), [batch_of(Rank(number, size)) for number in range(size)]
    assert whole.not_negative is not None
    assert torch.equal(
        torch.cat([part.not_negative for part in parts if part.not_negative is not None]), whole.not_negative
    )
    assert whole.not_negative.shape == (32, 32)
    assert 0 < int(whole.not_negative.sum()) < 32 * 16
    assert size > 1 or [text for part in parts for text in texts(part)] == texts(whole)


def test_the_losses_equal_the_naive_ones() -> None:
    torch.manual_seed(0)
    images, texts, wrong = (F.normalize(torch.randn(5, 6), dim=-1) for _ in range(3))
    matches, excluded = torch.eye(5, dtype=torch.bool), torch.rand(5, 5) < 0.3
    negatives, scale, bias = Negatives(wrong, excluded), torch.tensor(9.0), torch.tensor(-2.0)
    rows, sigmoid = [], torch.zeros(())
    for row in range(5):
        kept = [scale * images[row] @ wrong[column] for column in range(5) if not excluded[row, column]]
        rows.append(F.cross_entropy(torch.stack([*(scale * texts @ images[row]), *kept]), torch.tensor(row)))
        sigmoid = sigmoid - sum(F.logsigmoid(-(logit + bias)) for logit in kept)
    to_image = F.cross_entropy(scale * texts @ images.T, torch.arange(5))
    loss, logits = CLIPLoss()(images, texts, scale, matches, None, None, negatives)
    torch.testing.assert_close(loss, (torch.stack(rows).mean() + to_image) / 2)
    assert logits.image.shape == (5, 5)
    plain, _ = SigmoidLoss()(images, texts, scale, matches, bias)
    with_them, _ = SigmoidLoss()(images, texts, scale, matches, bias, None, negatives)
    torch.testing.assert_close(with_them, plain + sigmoid / 5)
    smoothed, _ = CLIPLoss(0.1)(images, texts, scale, matches, None, None, negatives)
    without, _ = CLIPLoss(0.1)(images, texts, scale, matches)
    none, _ = CLIPLoss(0.1)(images, texts, scale, matches, None, None, Negatives(wrong, torch.ones_like(excluded)))
    torch.testing.assert_close(none, without)
    assert smoothed > without


def test_equal_logits_have_the_loss_at_chance() -> None:
    same, matches = F.normalize(torch.ones(6, 4), dim=-1), torch.eye(6, dtype=torch.bool)
    negatives = Negatives(same, torch.arange(6)[None].expand(6, 6) < 2)
    loss, _ = CLIPLoss()(same, same, torch.tensor(5.0), matches, None, None, negatives)
    torch.testing.assert_close(loss, CLIPLoss.chance(matches, negatives))


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_in_chunks_the_gradient_is_that_of_the_whole_batch(loss: str) -> None:
    plain = tiny_batch(pairs=11)
    captions = sum(len(group) for group in plain.input_ids)
    batch = Batch(
        **{**vars(plain), "input_ids": (*plain.input_ids, plain.input_ids[0].flip(0)[:2])},
    )
    batch = Batch(
        **{
            **vars(batch),
            "negative_rows": captions + torch.arange(11) % 2,
            "not_negative": torch.arange(11)[None].expand(11, 11) % 5 == 0,
        }
    )
    gradients = []
    for chunk_size in (None, 4):
        recipe = tiny_recipe(loss=loss)
        step = TrainStep(
            tiny(logit_bias=loss == "sigmoid"), recipe, parse_config({"optim": {"chunk_size": chunk_size}})
        )
        value, _ = step.gradients(batch, 3)
        gradients.append([value.detach(), *(p.grad for p in step.model.parameters() if p.grad is not None)])
    for whole, in_chunks in zip(*gradients, strict=True):
        torch.testing.assert_close(in_chunks, whole, rtol=1e-4, atol=1e-5)
    without, _ = TrainStep(tiny(logit_bias=loss == "sigmoid"), recipe, parse_config({})).gradients(plain, 3)
    assert gradients[0][0] > without


def test_a_run_trains_with_them_and_says_how_many_captions_have_one(shapes: Path, tmp_path: Path) -> None:
    done = clip_train("--data-file", str(shapes), "--run-dir", "run", "--hard-negatives", *SHORT_RUN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "hard negatives for 100% of the captions" in done.stdout
    refused = clip_train("--data", "x.tar", "--stream", "--hard-negatives", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--hard-negatives needs all captions at the start; leave out --stream" in refused.stderr
