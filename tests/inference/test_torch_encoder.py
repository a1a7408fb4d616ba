"""The PyTorch encoder: what it says of itself, and its devices and dtypes on a fake GPU."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from clip_core.errors import BackendError
from clip_core.inference import torch_encoder
from clip_core.inference.torch_encoder import TorchEncoder
from clip_core.model.checkpoint import load_model
from tests.models import make_run, save


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("torch") / "run")


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What the encoder would turn into arrays: a fake tensor has no values to turn."""
    found: list[torch.Tensor] = []

    def keep(embeds: torch.Tensor) -> np.ndarray:
        found.append(embeds)
        return np.zeros(tuple(embeds.shape), np.float32)

    monkeypatch.setattr(torch_encoder, "_array", keep)
    return found


def on_fake_cuda(encoder: TorchEncoder, *, dtype: torch.dtype = torch.float32) -> FakeTensorMode:
    """Move the encoder to a GPU that no machine needs to have: shapes, devices and dtypes only."""
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    with mode:
        for module in encoder._model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    fake = torch.empty(parameter.shape, dtype=dtype, device="cuda")
                    module._parameters[name] = torch.nn.Parameter(fake, requires_grad=False)
            for name, buffer in list(module._buffers.items()):
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
    encoder._device = torch.device("cuda")
    return mode


@pytest.mark.parametrize("image", [None, {"pooling": "class_token"}, {"stem": "conv"}])
def test_both_towers_stay_on_the_gpu(tmp_path: Path, results: list[torch.Tensor], image) -> None:
    encoder = TorchEncoder(make_run(tmp_path / "run", image=image), "cpu")
    with on_fake_cuda(encoder):
        assert encoder._images(np.zeros((3, 3, 32, 32), np.float32)).shape == (3, 16)
        assert encoder._texts(np.full((5, 9), 1, np.int64)).shape == (5, 16)
    assert [(each.device.type, each.dtype) for each in results] == [("cuda", torch.float32)] * 2


def test_inputs_left_on_the_cpu_are_found(run: Path, results: list[torch.Tensor]) -> None:
    encoder = TorchEncoder(run, "cpu")
    with on_fake_cuda(encoder):
        encoder._device = torch.device("cpu")
        with pytest.raises(RuntimeError, match="device"):
            encoder._images(np.zeros((3, 3, 32, 32), np.float32))
        with pytest.raises(RuntimeError, match="device"):
            encoder._texts(np.full((5, 9), 1, np.int64))


def test_weights_of_another_dtype_than_the_inputs_are_found(run: Path, results: list[torch.Tensor]) -> None:
    encoder = TorchEncoder(run, "cpu")
    with on_fake_cuda(encoder, dtype=torch.bfloat16), pytest.raises(RuntimeError, match=r"dtype|type"):
        encoder._images(np.zeros((3, 3, 32, 32), np.float32))


def test_the_summary_names_step_and_best_metric(run: Path, tmp_path: Path) -> None:
    about = TorchEncoder(run, "cpu").about
    assert about.summary == f"{run}, step 7, torch on cpu"
    assert (about.checkpoint, about.scores, about.note) == ("step_0000007", {"image_to_text_recall@1": 0.25}, None)
    other = make_run(tmp_path / "other")
    scores = {"mean_recall": 0.687, "zero_shot_top1": 0.5}
    save(other, load_model(run).model, step=1374, scores=scores)
    about = TorchEncoder(other, "cpu").about
    assert about.best_metric is not None
    assert about.best_metric.endswith("50.0%")
    assert about.summary == f"{other}, step 1,374, {about.best_metric}, torch on cpu"


@pytest.mark.parametrize("device", ["abacus", "cuda:x", "cuda:99", "cpu:1"])
def test_a_device_that_is_not_there_is_one_sentence(run: Path, device: str) -> None:
    with pytest.raises(BackendError, match=device) as caught:
        TorchEncoder(run, device)
    assert "\n" not in str(caught.value)
