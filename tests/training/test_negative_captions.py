"""Training with hard negatives: which captions they are, which images they are negatives of, and their loss."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clip_core.config import DataConfig, parse_config
from clip_core.data.dataset import PairSet, load_data
from clip_core.data.pairs import Pair
from clip_core.data.stream.samples import caption_id
from clip_core.data.tokenizer import train_characters
from clip_core.model.encoders.resolve import load_text_encoder
from clip_core.network import Preprocessing
from clip_core.text import normalise_caption
from clip_core.training.batches import Batch, BatchMaker
from clip_core.training.caption_augmentation import CaptionAugmentation
from clip_core.training.frozen_features import CaptionFeatures, FeatureStore
from clip_core.training.log import Log
from clip_core.training.loss import CLIPLoss, Negatives, SigmoidLoss, captions_of_images
from clip_core.training.memory import estimate_memory
from clip_core.training.negative_captions import NegativeCaptions, indexed_negatives
from clip_core.training.ranks import Rank
from clip_core.training.stream_batches import StreamBatches
from clip_core.training.train_step import TrainStep
from tests.conftest import SHORT_RUN, clip_train
from tests.encoders import static_folder
from tests.streams import Members, png, tar
from tests.training.conftest import Build, small_config
from tests.training.tiny import tiny, tiny_batch, tiny_recipe


def pair_set(*captions: tuple[str, str]) -> PairSet:
    return PairSet.from_pairs([Pair(image, caption, number) for number, (image, caption) in enumerate(captions, 1)])


def test_a_caption_of_another_image_is_no_negative_of_that_image() -> None:
    pairs = pair_set(("1", "a red circle"), ("2", "a blue circle"), ("3", "!?"), ("1", "round"), ("2", "a disc"))
    negatives = NegativeCaptions(pairs, 0, train_characters(pairs.captions, 77))
    made = negatives.of(np.array([0, 1, 2, 4]), step=3, own=slice(4))
    assert [normalise_caption(text) for text in made.captions[:3]] == ["a blue circle", "a red circle", "!?"]
    assert made.not_negative[:, :3].tolist() == [
        [False, True, True],
        [True, False, True],
        [False, False, True],
        [True, False, True],  # the image of "a disc" is blue
    ]


def test_of_a_caption_that_is_truncated_the_part_that_is_read_is_wrong() -> None:
    caption = "a red dog, a blue cat, the green bird"
    pairs = pair_set(("1", caption), ("2", "two"))
    tokenizer = train_characters(pairs.captions, context_length=24)
    negatives = NegativeCaptions(pairs, 0, tokenizer)
    made = [negatives.of(np.array([0]), step, slice(1)).captions[0] for step in range(20)]
    own = tokenizer.encode([caption])[0].tolist()
    assert len(set(made)) > 1
    assert all(text.endswith(" the green bird") for text in made)
    assert all(tokenizer.encode([text])[0].tolist() != own for text in made)


@pytest.mark.parametrize("size", [1, 2])
def test_ranks_have_the_parts_of_one_batch(shapes: Path, size: int) -> None:
    data = load_data(DataConfig(data_file=shapes), Preprocessing(), 0, lambda line: None)
    tokenizer = train_characters(data.train.captions, context_length=77)

    def batch_of(rank: Rank) -> Batch:
        return BatchMaker(
            data.train, data.train_store, tokenizer, batch_size=32, seed=0, groups=2, rank=rank,
            negatives=NegativeCaptions(data.train, 0, tokenizer),
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
    assert [text for part in parts for text in texts(part)] == texts(whole)


def test_those_of_a_stream_are_the_same_for_any_number_of_ranks_and_none_is_a_caption_of_its_image_in_the_batch(
    build: Build, tmp_path: Path
) -> None:
    members: Members = []
    for number in range(64):  # six captions, one that has no negative, and every fourth image twice
        caption = "!?" if number % 11 == 0 else f"a {('red', 'blue', 'green')[number % 3]} {('cat', 'dog')[number % 2]}"
        members += [(f"{number:03d}.png", png(number - number % 4 // 3)), (f"{number:03d}.txt", caption.encode())]
    tar(tmp_path / "0.tar", members)
    trainer = build(
        small_config(
            tmp_path / "0.tar", tmp_path / "run", optim={"hard_negatives": True, "batch_size": 16, "word_dropout": 0.2},
            data={"stream": True, "val_pairs": 2, "readers": 4, "tokenizer": "char"},
        )
    )  # fmt: skip
    whole = trainer.batches
    assert isinstance(whole, StreamBatches)

    def of(rank: Rank) -> StreamBatches:
        return StreamBatches(
            replace(whole.shards), whole.captions, whole.preprocessing, DataConfig(), Log(), batch_size=16,
            epoch_pairs=62, rank=rank, negatives=whole.negatives,
        )  # fmt: skip

    ranks = [of(Rank(number, 2)) for number in range(2)]
    for step in range(2):
        batch, parts = whole(step), [each(step) for each in ranks]
        texts = texts_of(batch, batch.negative_rows, whole)
        assert [t for part in parts for t in texts_of(part, part.negative_rows, whole)] == texts
        ids = [torch.cat([getattr(p, name) for p in parts]) for name in ("image_ids", "caption_ids", "negative_ids")]
        assert torch.equal(ids[2], batch.negative_ids)
        masks = [captions_of_images(part.image_ids, *ids) for part in parts]
        own = {(int(image), int(caption)) for image, caption in zip(batch.image_ids, batch.caption_ids, strict=True)}
        known = torch.tensor([[(int(i), int(n)) in own for n in batch.negative_ids] for i in batch.image_ids])
        assert torch.equal(torch.cat(masks), known)
        none = torch.tensor([caption_id("!?") == int(number) for number in batch.caption_ids])
        assert none.any()
        assert torch.equal(trainer.train_step.not_negative(batch), known | none)
        assert not (known.diagonal() & ~none).any()
        assert (known & ~none).any()
    with_them = estimate_memory(trainer.train_step, batch)
    without = estimate_memory(trainer.train_step, replace(batch, negative_rows=None))
    assert with_them.of_loss(16) > without.of_loss(16)
    for each in (whole, *ranks):
        each.close()


def texts_of(batch: Batch, rows: Tensor | None, batches: StreamBatches | BatchMaker) -> list[str]:
    assert rows is not None
    how = batches.captions if isinstance(batches, StreamBatches) else batches.captions.how
    ids = [row for group in batch.input_ids for row in group]
    return [how.tokenizer.decode(ids[int(place)].numpy()) for place in rows]


def test_features_of_a_frozen_encoder_are_those_of_a_few_negatives_each_and_a_step_draws_one(tmp_path: Path) -> None:
    pairs = pair_set(
        ("1", "a red dog"),
        ("2", "a blue dog"),
        ("3", "the cat runs in the park"),
        ("4", "!?"),
        ("2", "a red cat"),
        ("5", "zig zag"),
    )
    encoder = load_text_encoder(str(static_folder(tmp_path / "static")))
    tokenizer = encoder.tokenizer
    assert tokenizer is not None
    features = CaptionFeatures(encoder, tokenizer, torch.device("cpu"), lambda line: None)
    said: list[str] = []
    negatives = indexed_negatives(pairs, features, 0, said.append)
    assert "hard negatives for 83% of the captions, up to 4 each, whose features are computed once" in said[0]
    store = FeatureStore([Path(name) for name in "12345"], Preprocessing(), np.zeros((1, 5, 6), np.float32))
    own = features.encode(pairs.captions)
    seen = set()
    for step in range(20):
        batches = [
            BatchMaker(pairs, store, features, batch_size=4, seed=0, rank=rank, negatives=negatives)
            for rank in (Rank(), Rank(0, 2), Rank(1, 2))
        ]
        whole, *parts = [each(step) for each in batches]
        found = []
        for batch in (whole, *parts):
            assert batch.negative_rows is not None
            found.append(batch.input_ids[0][batch.negative_rows])
        assert torch.equal(torch.cat(found[1:]), found[0])
        assert whole.not_negative is not None
        assert torch.equal(torch.cat([part.not_negative for part in parts]), whole.not_negative)
        for place, caption in enumerate(whole.caption_ids.tolist()):
            seen.add((caption, found[0][place].numpy().tobytes()))
            if caption == 0:  # "a blue dog", the only other colour, which image 2 is
                assert torch.equal(whole.not_negative[:, place], whole.image_ids == 1)
            if caption == 3:
                assert whole.not_negative[:, place].all()
            if caption == 5:  # "zag zig" is none: the encoder knows neither word
                assert found[0][place].numpy().tobytes() != own[caption].tobytes()
    assert 2 <= len({content for caption, content in seen if caption == 2}) <= 4
    assert {content for caption, content in seen if caption == 0} == {features.encode(["a blue dog"])[0].tobytes()}


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
