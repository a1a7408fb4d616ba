"""Both towers and the whole forward pass on a fake CUDA device: mixed devices and dtypes are errors, without a GPU.

The backward pass is not here: PyTorch's autograd engine needs a real device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from clip_core.model.clip import CLIP
from clip_core.network import Activation, ClipConfig, ImageTower, Pooling, Preprocessing, Stem, TextTower

CASES: dict[str, dict[str, Any]] = {
    "patches": {},
    "conv stem": {"image": {"stem": Stem.CONV}},
    "openai": {
        "image": {"pooling": Pooling.CLASS_TOKEN, "class_token": True, "pre_norm": True, "patch_bias": False},
        "both": {"activation": Activation.QUICK_GELU},
    },
    "sigmoid loss": {"text": {"causal": False, "pooling": Pooling.LAST, "projection_bias": True}, "bias": True},
    "first token": {"text": {"pooling": Pooling.FIRST}, "both": {"activation": Activation.GELU_TANH}},
}


def config(*, image: Any = None, text: Any = None, both: Any = None, bias: bool = False) -> ClipConfig:
    shared = {"width": 32, "heads": 2, "layers": 2, **(both or {})}
    return ClipConfig(
        embed_dim=24,
        logit_bias=bias,
        image=ImageTower(image_size=32, patch_size=8, **shared, **(image or {})),
        text=TextTower(vocab_size=50, end_token=1, context_length=16, **shared, **(text or {})),
        preprocessing=Preprocessing(image_size=32),
    )


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_the_forward_pass_stays_on_one_device(case: str, dtype: torch.dtype) -> None:
    with FakeTensorMode(), torch.device("cuda"), default_dtype(dtype):
        model = CLIP(config(**CASES[case]))
        pixel_values = torch.randn(4, 3, 32, 32)
        groups = [torch.randint(0, 50, (3, 5)), torch.randint(0, 50, (2, 16))]
        kept = torch.randint(0, 16, (4, 6))
        found = model(pixel_values, groups, kept)
        assert (found.image.shape, found.text.shape) == ((4, 24), (5, 24))
        for embeds in (found.image, found.text):
            assert (embeds.device.type, embeds.dtype) == ("cuda", torch.float32)
        logits = found.logit_scale * found.image @ found.text.T
        logits = logits if found.logit_bias is None else logits + found.logit_bias
        assert (logits.device.type, logits.dtype, logits.shape) == ("cuda", torch.float32, (4, 5))
        model.clamp_temperature()


def test_no_part_of_a_forward_pass_waits_for_the_device() -> None:
    """`.item()`, `.tolist()` and branches on a value need its data, which a fake tensor does not have."""
    with FakeTensorMode(), torch.device("cuda"):
        model = CLIP(config())
        assert model.encode_image(torch.randn(2, 3, 32, 32)).device.type == "cuda"
        assert model.encode_text(torch.randint(0, 50, (2, 7))).device.type == "cuda"
        with pytest.raises(Exception, match="_local_scalar_dense"):
            model.logit_scale().detach().item()


def test_the_fake_device_finds_what_it_is_for() -> None:
    with FakeTensorMode():
        with torch.device("cuda"):
            model = CLIP(config())
        with pytest.raises(RuntimeError, match="device"):
            model.encode_image(torch.randn(2, 3, 32, 32, device="cpu"))
        with pytest.raises(RuntimeError, match=r"dtype|type"):
            model.encode_image(torch.randn(2, 3, 32, 32, device="cuda", dtype=torch.bfloat16))
