"""Published formats: read back bit for bit, and never in place of something else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clip_core.errors import ParityError, UsageError
from clip_core.model.checkpoint import load_model
from clip_core.model.published import read_published
from export.formats import MARKER, check_same, export_weights
from tests.export.checkpoints import (
    checkpoint,
)
from tests.models import make_run
from tests.published import hugging_face_model, open_clip_model, save_open_clip

# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_a_folder_of_transformers_comes_back_bit_for_bit(act: str, tmp_path: Path):
    reference = hugging_face_model(act=act)
    reference.save_pretrained(tmp_path / "theirs")
    out = export_weights(tmp_path / "theirs", tmp_path / "out", to="hf")
    same_tensors(load_file(out / "model.safetensors"), reference.state_dict())
    again = export_weights(out, tmp_path / "again", to="hf")
    for file in (path for path in out.iterdir() if path.name != MARKER):
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"quick_gelu": True},
        {"vision": {"no_ln_pre": True, "pool_type": "avg"}, "text": {"no_causal_mask": True, "proj_bias": True,
         "pool_type": "last"}, "init_logit_bias": -10.0},
    ],
)  # fmt: skip
def test_a_folder_of_open_clip_comes_back_bit_for_bit(settings: dict[str, Any], tmp_path: Path):
    reference = open_clip_model(**settings)
    save_open_clip(tmp_path / "theirs", reference, **settings)
    out = export_weights(tmp_path / "theirs", tmp_path / "out", to="open_clip")
    same_tensors(load_file(out / "open_clip_model.safetensors"), reference.state_dict())
    again = export_weights(out, tmp_path / "again", to="open_clip")
    for file in (path for path in out.iterdir() if path.name != MARKER):
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name


def test_weights_go_from_open_clip_to_transformers_and_back(tmp_path: Path):
    reference = open_clip_model(quick_gelu=True)
    save_open_clip(tmp_path / "theirs", reference, quick_gelu=True)
    there = export_weights(tmp_path / "theirs", tmp_path / "there", to="hf")
    back = export_weights(there, tmp_path / "back", to="open_clip")
    same_tensors(load_file(back / "open_clip_model.safetensors"), reference.state_dict())


def same_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes(), name


def test_what_reads_back_differently_is_no_export(tmp_path: Path):
    loaded = load_model(checkpoint(tmp_path / "model"))
    out = export_weights(tmp_path / "model", tmp_path / "out", to="open_clip")
    weights = load_file(out / "open_clip_model.safetensors")
    weights["ln_final.bias"][3] += 1e-7
    save_file(weights, out / "open_clip_model.safetensors")
    with pytest.raises(ParityError, match=r"differs from the model in text\.norm_final\.bias;"):
        check_same(out, loaded.model, loaded.tokenizer)
    out = export_weights(tmp_path / "model", out, to="open_clip")
    config = json.loads((out / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    (out / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ParityError, match=r"image\.activation, text\.activation"):
        check_same(out, loaded.model, loaded.tokenizer)


# ---------------------------------------------------------------- places, and the command


def test_only_an_export_of_the_same_run_is_replaced(tmp_path: Path):
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")
    out = tmp_path / "out"
    export_weights(one, out, to="hf")
    export_weights(one, out, to="hf")
    with pytest.raises(UsageError, match=r"of the run 'one'; replace it with --force"):
        export_weights(two, out, to="hf")
    export_weights(two, out, to="hf", force=True)
    with pytest.raises(UsageError, match="something else than an export for open_clip"):
        export_weights(two, out, to="open_clip", force=True)
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="something else than an export for transformers"):
        export_weights(two, out, to="hf", force=True)
    assert (out / "thesis.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "out", "two"]


def test_a_run_is_exported_into_its_folder_and_a_checkpoint_needs_out(tmp_path: Path):
    run = make_run(tmp_path / "run", image={"pooling": "class_token", "patch_bias": False})
    out = export_weights(run, to="open_clip")
    assert out == run / "open_clip"
    assert json.loads((out / MARKER).read_text())["source"] == {
        "run": "run", "checkpoint": "step_0000007", "step": 7,
    }  # fmt: skip
    assert read_published(out).config.image.width == 32
    shutil.copytree(run / "checkpoints" / "step_0000007", tmp_path / "alone")
    shutil.copy(run / "tokenizer.json", tmp_path / "alone")
    with pytest.raises(UsageError, match="--out"):
        export_weights(tmp_path / "alone", to="open_clip")


def test_no_path_of_the_machine_is_in_any_file(tmp_path: Path):
    checkpoint(tmp_path / "model")
    for to in ("hf", "open_clip"):
        for file in export_weights(tmp_path / "model", tmp_path / to, to=to).iterdir():
            assert str(tmp_path).encode() not in file.read_bytes(), file
