"""Which tensors of a training checkpoint are the weights, and what is said of the others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clip_core.errors import CheckpointError
from clip_core.model.published import read_published
from clip_core.network import Activation
from tests.published import open_clip_model

WEIGHTS = open_clip_model().state_dict()
OTHER = open_clip_model(1).state_dict()
WORDS = "token_embedding.weight"


def below(prefix: str, weights: dict[str, torch.Tensor] = WEIGHTS) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in weights.items()}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def notes(path: Path) -> str:
    """What is said of a file whose weights are WEIGHTS."""
    published = read_published(path)
    assert torch.equal(published.weights["text.tokens.weight"], WEIGHTS[WORDS])
    return "; ".join(published.notes)


CHECKPOINTS: dict[str, tuple[dict[str, Any], str]] = {
    "open_clip": ({"epoch": 1, "state_dict": below("module.")}, "below state_dict.module are read"),
    "compiled": ({"state_dict": below("_orig_mod.")}, "below state_dict are read"),
    "compiled inside DDP": (below("module._orig_mod."), "below module are read"),
    "DDP inside compiled": (below("_orig_mod.module."), "below module are read"),
    "Lightning": ({"state_dict": below("model."), "loops": {}}, "below state_dict.model are read"),
    "model": ({"model": WEIGHTS, "args": {"lr": 1}}, "below model are read"),
    "model_state_dict": ({"model_state_dict": WEIGHTS}, "below model_state_dict are read"),
    "a classifier": (
        {"state_dict": below("clipmodel.") | {"head.weight": torch.ones(5, 32)}},
        "below state_dict.clipmodel are read; 1 other tensor is ignored (state_dict.head.weight)",
    ),
    "EMA of timm": (
        {"state_dict": OTHER, "state_dict_ema": WEIGHTS}, "below state_dict_ema are read, not those below state_dict",
    ),
    "a NumPy learning rate": ({"state_dict": WEIGHTS, "optimizer": {"lr": np.float64(1)}}, "below state_dict are read"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_weights_in_a_training_checkpoint_are_found_and_named(tmp_path: Path, name: str) -> None:
    content, said = CHECKPOINTS[name]
    assert said in notes(saved(tmp_path / "last.ckpt", content))


def test_a_tower_compiled_alone_has_the_wrapper_inside_its_names(tmp_path: Path) -> None:
    content = {name.replace("visual.", "visual._orig_mod."): value for name, value in WEIGHTS.items()}
    assert "below" not in notes(saved(tmp_path / "w.pt", content))


def test_plain_weights_have_no_note_of_prefixes(tmp_path: Path) -> None:
    assert "below" not in notes(saved(tmp_path / "w.pt", WEIGHTS))


def test_the_activation_that_is_assumed_is_said_and_can_be_named(tmp_path: Path) -> None:
    bare, nested = saved(tmp_path / "bare.pt", WEIGHTS), saved(tmp_path / "nested.pt", {"state_dict": WEIGHTS})
    for path, assumed, other, name in (
        (bare, Activation.QUICK_GELU, Activation.GELU, "gelu"),
        (nested, Activation.GELU, Activation.QUICK_GELU, "quickgelu"),
    ):
        published = read_published(path)
        assert published.config.image.activation is assumed
        assert f"--init-model {name}" in published.notes[-1]
        named = read_published(path, model_name=name)
        assert named.config.image.activation is named.config.text.activation is other
        assert not any("activation" in note for note in named.notes)


@pytest.mark.parametrize("name", ["base_model.model.vision_model.q.lora_A.weight", "visual.proj.lora_B.default.weight"])
def test_lora_adapters_are_named(tmp_path: Path, name: str) -> None:
    save_file({name: torch.ones(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="is a PEFT adapter"):
        read_published(tmp_path / "w.safetensors")


def test_float8_weights_are_read_and_said_to_be_coarse(tmp_path: Path) -> None:
    coarse = {name: value.to(torch.float8_e4m3fn) if value.ndim > 1 else value for name, value in WEIGHTS.items()}
    save_file(coarse, tmp_path / "w.safetensors")
    torch.save(coarse, tmp_path / "w.pt")
    for path in (tmp_path / "w.safetensors", tmp_path / "w.pt"):
        published = read_published(path, model_name="gelu")
        assert torch.equal(published.weights["text.tokens.weight"], coarse[WORDS].float())
        assert "stored as float8_e4m3fn" in published.notes[0]


@pytest.mark.parametrize("how", ["scales", "int8"])
def test_quantised_weights_are_refused(tmp_path: Path, how: str) -> None:
    name = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    changed = {name + "_scale": torch.ones(())} if how == "scales" else {name: WEIGHTS[name].to(torch.int8)}
    save_file(WEIGHTS | changed, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="holds quantised weights"):
        read_published(tmp_path / "w.safetensors")
