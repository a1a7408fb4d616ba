"""Evaluation on the validation set, against the same by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clip_core.config import DataConfig
from clip_core.data.dataset import load_data
from clip_core.data.tokenizer import train_characters
from clip_core.model.clip import CLIP
from clip_core.network import Preprocessing
from clip_core.run.metrics import is_bound
from clip_core.training.evaluate import ValidationSet, embed_validation, evaluate, mean_cosine
from clip_core.training.image_augmentation import to_pixel_values
from clip_core.training.loss import CLIPLoss, SigmoidLoss, matching_pairs
from tests.training.tiny import tiny, tiny_config

PREPROCESSING = Preprocessing(image_size=32)


@pytest.fixture(scope="module")
def validation(shapes: Path) -> ValidationSet:
    return read_validation(shapes)


def read_validation(shapes: Path) -> ValidationSet:
    """The drawn shapes that are validated on, whose captions are classes."""
    data = load_data(DataConfig(data_file=shapes), PREPROCESSING, 0, lambda sentence: None)
    tokenizer = train_characters(data.train.captions, 8)
    return ValidationSet(data.val, data.val_store, data.val.captions, tokenizer, PREPROCESSING)


@pytest.fixture
def model(validation: ValidationSet) -> CLIP:
    return model_for(validation)


def model_for(validation: ValidationSet) -> CLIP:
    torch.manual_seed(0)
    config = tiny_config(logit_bias=True)
    vocabulary = {"vocab_size": validation.tokenizer.vocab_size, "end_token": validation.tokenizer.end_token}
    return CLIP(config.model_copy(update={"text": config.text.model_copy(update=vocabulary)}))


def by_hand(model: CLIP, validation: ValidationSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Both embeddings in one forward pass over all images and captions."""
    images = torch.from_numpy(validation.store.get(np.arange(len(validation.store))))
    input_ids = torch.from_numpy(validation.tokenizer.encode(validation.pairs.captions))
    with torch.no_grad():
        image, text, *_ = model(to_pixel_values(images, PREPROCESSING), input_ids)
    return image, text


@pytest.mark.parametrize("batch", [256, 5])
def test_the_embeddings_are_those_of_one_forward_pass_whatever_the_batch(
    model: CLIP, validation: ValidationSet, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip_core.training.evaluate._BATCH", batch)
    beats: list[None] = []
    found = embed_validation(model, validation, "fp32", lambda: beats.append(None))
    images, texts = by_hand(model, validation)
    torch.testing.assert_close(found.images, images)
    torch.testing.assert_close(found.texts, texts)
    torch.testing.assert_close(found.classes, texts)
    count, captions = len(validation.store), len(validation.pairs.captions)
    assert len(beats) == -(-count // batch) + 2 * -(-captions // batch)


@pytest.mark.parametrize("loss", [CLIPLoss(), SigmoidLoss()])
def test_the_scores_are_those_by_hand(model: CLIP, validation: ValidationSet, loss: Any) -> None:
    scores, probe = evaluate(model, validation, loss, "fp32", step=7)
    images, texts = by_hand(model, validation)
    pairs = validation.pairs
    rows, columns = torch.from_numpy(pairs.pair_images), torch.from_numpy(pairs.pair_captions)
    expected, _ = loss(
        images[rows], texts[columns], model.logit_scale(), matching_pairs(rows, columns), model.logit_bias
    )
    assert scores["val_loss"] == pytest.approx(expected.item(), rel=1e-4)  # fewer pairs than a batch of the loss
    best = (images @ texts.T).argmax(dim=1)
    caption_of = dict(zip(pairs.pair_images.tolist(), pairs.pair_captions.tolist(), strict=True))
    right = [caption_of[image] == int(caption) for image, caption in enumerate(best)]
    assert scores["image_to_text_recall@1"] == scores["zero_shot_top1"] == pytest.approx(sum(right) / len(right))
    recalls = [value for key, value in scores.items() if "_recall@" in key and not is_bound(key)]
    assert len(recalls) == 6
    assert scores["mean_recall"] == pytest.approx(sum(recalls) / 6)
    assert probe is not None
    assert probe.step == 7
    assert len(probe.images) == len(probe.captions) == len(probe.similarity) == 8


def test_without_classes_there_is_no_zero_shot_accuracy(model: CLIP, validation: ValidationSet) -> None:
    scores, _ = evaluate(model, replace(validation, classes=None), CLIPLoss(), "fp32")
    assert not [key for key in scores if key.startswith("zero_shot")]


def test_a_model_in_training_is_in_training_afterwards_and_unchanged(model: CLIP, validation: ValidationSet) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for training in (True, False):
        model.train(training)
        evaluate(model, validation, CLIPLoss(), "fp32")
        assert model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_pairs_of_the_probe_share_neither_image_nor_caption(validation: ValidationSet) -> None:
    rows = validation.probe_rows()
    for ids in (validation.pairs.pair_images[rows], validation.pairs.pair_captions[rows]):
        assert len(set(ids.tolist())) == len(rows) == 8


def test_the_mean_cosine_is_over_all_pairs_of_different_rows() -> None:
    rows = tiny().text.tokens.weight.detach()[:7]
    rows = torch.nn.functional.normalize(rows, dim=-1).numpy()
    cosines = [float(rows[i] @ rows[j]) for i in range(7) for j in range(7) if i != j]
    assert mean_cosine(rows) == pytest.approx(np.mean(cosines), abs=1e-6)
    assert mean_cosine(rows[:1]) == 0.0
