"""The step and the evaluation on a fake CUDA device: devices, dtypes and waiting for the device, without a GPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException

from clip_core.config import DataConfig, TrainConfig, TuneConfig, parse_config
from clip_core.data.dataset import load_data
from clip_core.data.tokenizer import train_characters
from clip_core.model.clip import CLIP
from clip_core.network import Preprocessing
from clip_core.training.batches import Batch
from clip_core.training.evaluate import ValidationSet, embed_validation
from clip_core.training.regularisation import consistency_loss, structure_loss
from clip_core.training.train_step import TrainStep
from clip_core.training.trainable import choose_trainable
from tests.fake_cuda import CUDA, NoWaiting, WaitError, fake_batch, fake_cuda
from tests.training.tiny import tiny_batch, tiny_config, tiny_recipe

CONFIG = parse_config({"optim": {"augment": True}})
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "softmax, AdamW, fp32": ({"label_smoothing": 0.1, "patch_dropout": 0.5}, {}),
    "softmax, Muon, bf16, EMA": ({"precision": "bf16", "optimizer": "muon", "ema": 0.9, "patch_dropout": 0.5}, {}),
    "sigmoid, Muon, fp32": ({"loss": "sigmoid", "optimizer": "muon"}, {}),
    "sigmoid, AdamW, bf16": ({"loss": "sigmoid", "precision": "bf16"}, {}),
    "LoRA, bf16, EMA": ({"precision": "bf16", "ema": 0.9}, {"lora": 2}),
    "LoRA, fp32, sigmoid": ({"loss": "sigmoid"}, {"lora": 2}),
    "locked image tower, bf16": ({"precision": "bf16", "layer_decay": 0.7}, {"lock": "image", "unlock_last": 1}),
    "locked text tower, fp32": ({"patch_dropout": 0.5}, {"lock": "text"}),
}


def steps(
    kind: type[TrainStep],
    values: dict[str, Any],
    tune: dict[str, Any],
    config: TrainConfig = CONFIG,
    batch: Batch | None = None,
) -> dict[str, Tensor]:
    """What two steps on the fake device measure, in which nothing waits for the device."""
    with fake_cuda() as mode:
        how = tiny_recipe(device="cuda", **values)
        model = CLIP(tiny_config(logit_bias=how.loss == "sigmoid"))
        choose_trainable(model, TuneConfig(init="x", **tune), how.loss)
        step, pairs = kind(model, how, config), fake_batch(batch or tiny_batch(), mode)
        with NoWaiting():
            for number in range(2):
                measured = step(pairs, number, how.lr)
        parameters = list(step.model.parameters())
        assert {p.dtype for p in parameters} == {torch.float32}
        assert {p.device for p in parameters} == {CUDA}
        assert {value.device for value in step.tensors().values() if value.ndim} == {CUDA}
        with pytest.raises(WaitError), NoWaiting():
            step.refuse_non_finite()
        return measured


@pytest.mark.parametrize("way", WAYS)
def test_a_step_mixes_no_devices_and_never_waits_for_the_gpu(way: str) -> None:
    values, tune = WAYS[way]
    measured = steps(TrainStep, values, tune)
    expected = {"loss", "chance", "grad_norm", "logit_scale", "image_to_text_top1", "text_to_image_top1"}
    assert measured.keys() >= expected
    assert ("logit_bias" in measured) == (values.get("loss") == "sigmoid")
    for name, value in measured.items():
        assert (value.device, value.shape, value.dtype) == (CUDA, (), torch.float32), name


@pytest.mark.parametrize(("loss", "chunk_size", "precision"), [("softmax", 4, "bf16"), ("sigmoid", None, "fp32")])
def test_nor_do_chunks_checkpointed_activations_and_hard_negatives(
    loss: str, chunk_size: int | None, precision: str
) -> None:
    pairs = tiny_batch()
    with_negatives = replace(pairs, negative_rows=torch.arange(8) % 6)
    if loss == "softmax":  # of indexed pairs
        with_negatives = replace(with_negatives, not_negative=torch.arange(8)[None].expand(8, 8) % 3 == 0)
    else:  # of a stream
        with_negatives = replace(with_negatives, negative_ids=torch.arange(8) - 2)
    config = parse_config({"optim": {"chunk_size": chunk_size}, "run": {"checkpoint_activations": True}})
    config = config.model_copy(update={"encoders": config.encoders.model_copy(update={"cyclip": 0.1})})
    measured = steps(TrainStep, {"loss": loss, "precision": precision}, {}, config, with_negatives)
    assert {value.device for value in measured.values()} == {CUDA}


def test_nor_do_the_terms_beside_the_loss() -> None:
    with fake_cuda(), NoWaiting():
        embeds, features = torch.randn(8, 16, device=CUDA), torch.randn(8, 4, 6, device=CUDA)
        found = [structure_loss(features, embeds), consistency_loss(embeds, embeds)]
    assert {(value.device, value.shape) for value in found} == {(CUDA, ())}


class ReadsTheLoss(TrainStep):
    def backward(self, loss: Tensor) -> None:
        super().backward(loss / loss.item())


class AsksTheNorm(TrainStep):
    def clip_gradients(self) -> Tensor:
        norm = super().clip_gradients()
        return norm if norm > 1 else -norm


class OnTheCPU(TrainStep):
    def images(self, batch: Batch, crops: Tensor | None) -> Tensor:
        return torch.zeros(8, 3, 32, 32, dtype=self.mixed_precision.dtype)


class WrongDtype(TrainStep):
    def images(self, batch: Batch, crops: Tensor | None) -> Tensor:
        return super().images(batch, crops).double()


class WaitsForACopy(TrainStep):
    def kept_patches(self, batch: Batch, step: int) -> Tensor | None:
        return torch.arange(16).expand(8, -1).to(self.device)


class CopiesBack(TrainStep):
    def update(self, step: int, lr: float) -> Tensor:
        return super().update(step, lr).cpu()


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (ReadsTheLoss, DataDependentOutputException),
        (AsksTheNorm, DataDependentOutputException),
        (OnTheCPU, RuntimeError),
        (WrongDtype, RuntimeError),
        (WaitsForACopy, WaitError),
        (CopiesBack, WaitError),
    ],
)
def test_the_fake_device_finds_a_step_that_is_broken(broken: type[TrainStep], error: type[Exception]) -> None:
    with pytest.raises(error):
        steps(broken, {}, {})


@pytest.fixture(scope="module")
def validation(shapes: Path) -> ValidationSet:
    """Classes and pairs of the drawn shapes."""
    data = load_data(DataConfig(data_file=shapes), Preprocessing(image_size=32), 0, lambda sentence: None)
    tokenizer = train_characters(data.val.captions, 8)
    return ValidationSet(data.val, data.val_store, data.val.captions[:5], tokenizer, Preprocessing(image_size=32))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_mixes_no_devices_and_leaves_float32_embeddings_on_the_cpu(
    validation: ValidationSet, precision: str
) -> None:
    with fake_cuda(allow_non_fake_inputs=True):
        model = CLIP(tiny_config(logit_bias=True)).to(CUDA)
        dtypes: set[torch.dtype] = set()
        for tower in (model.image, model.text):
            tower.projection.register_forward_hook(lambda _module, _inputs, output: dtypes.add(output.dtype))
        embeddings = embed_validation(model, validation, precision, lambda: None)
    assert dtypes == {torch.bfloat16 if precision == "bf16" else torch.float32}
    found = [embeddings.images, embeddings.texts, embeddings.classes, embeddings.logit_scale, embeddings.logit_bias]
    assert all(part is not None and (part.device.type, part.dtype) == ("cpu", torch.float32) for part in found)
    assert embeddings.images.shape == (len(validation.store), 16)


def test_the_fake_device_finds_an_evaluation_that_mixes_devices(validation: ValidationSet) -> None:
    with fake_cuda(allow_non_fake_inputs=True):
        model = CLIP(tiny_config()).to(CUDA)
        model.text.positions = torch.nn.Parameter(torch.zeros(8, 32))
        with pytest.raises(RuntimeError, match=r"found at least two devices"):
            embed_validation(model, validation, "fp32", lambda: None)
