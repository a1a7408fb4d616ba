"""Checkpoints: a folder that exists once its meta.json is valid, and not before."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import CheckpointError
from clip_core.files import flush_directory, flush_file, sha256, write_json
from clip_core.model.weight_files import read_tensors
from clip_core.model.clip import CLIP
from clip_core.model.hub import hub_name
from clip_core.model.published import is_published, read_published
from clip_core.model.unfilled import unfilled_clip
from clip_core.network import ClipConfig
from clip_core.run.paths import is_run
from clip_core.run.reader import RunReader

SCHEMA = 2


@dataclass(frozen=True)
class LoadedModel:
    """A network on the CPU in fp32, ready for evaluation, and where it came from.

    `folder`: of the checkpoint, or what published weights were read from. `files`: those that hold its weights.
    """

    model: CLIP
    config: ClipConfig
    tokenizer: Tokenizer
    folder: Path
    step: int
    run: Path | None
    scores: dict[str, float]
    files: tuple[Path, ...]

    def weights_sha256(self) -> str:
        """Of the file that holds the weights; of the files' own hashes where they are several."""
        hashes = [sha256(path) for path in self.files]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def save_checkpoint(
    folder: Path,
    *,
    model: CLIP,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    step: int,
    epoch: int,
    scores: dict[str, float],
) -> None:
    """Write a checkpoint folder: beside, flushed, meta.json last, then renamed into place.

    Args:
        folder: where it will stand; there is nothing yet.
        tensors: what resuming needs beside the weights (the optimiser's moments), by name.
        state: what resuming needs that is no tensor, as plain JSON.
    """
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        save_file(_on_cpu(model.state_dict()), beside / "model.safetensors")
        save_file(_on_cpu(tensors), beside / "state.safetensors")
        (beside / "state.json").write_text(json.dumps(state), encoding="utf-8")
        meta = {
            "schema": SCHEMA,
            "step": step,
            "epoch": epoch,
            "model": model.config.model_dump(mode="json"),
            "logit_scale": float(model.logit_scale().detach()),
            "scores": scores,
            "files": {path.name: _flushed(path) for path in sorted(beside.iterdir())},
        }
        write_json(beside / "meta.json", meta)
        beside.rename(folder)
        flush_directory(folder.parent)
    except (SafetensorError, OSError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise CheckpointError(
            f"no checkpoint could be written to {folder} ({error}); the one before it stands."
        ) from None


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().contiguous().cpu() for name, value in tensors.items()}


def _flushed(path: Path) -> dict[str, Any]:
    """Flush a file to disk; its size and sha256."""
    flush_file(path)
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def read_meta(folder: Path, *, verify: bool = True) -> dict[str, Any]:
    """A checkpoint's meta.json, after checking that its files are the ones that were written.

    Raises:
        CheckpointError: if there is no checkpoint, or a file is missing or differs.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        files = dict(meta["files"])
        for name, expected in files.items():
            path = folder / Path(name).name
            if path.stat().st_size != expected["size"] or (verify and sha256(path) != expected["sha256"]):
                raise CheckpointError(
                    f"{path} is damaged: it is not the file that its meta.json describes; use another checkpoint."
                )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} is not a whole checkpoint ({error}).") from None
    return dict(meta)


def valid_checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, latest first."""
    found = []
    for folder in sorted((run / "checkpoints").glob("step_*"), reverse=True):
        try:
            read_meta(folder)
        except CheckpointError:
            continue
        found.append(folder)
    return found


def read_state(folder: Path) -> dict[str, Any]:
    """What resuming needs beside the tensors."""
    try:
        return dict(json.loads((folder / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'state.json'} cannot be read ({error}); resume from another checkpoint."
        ) from None


def delete_damaged(run: Path) -> None:
    """Remove what an interrupted save left, and checkpoints whose files are not the ones that were written."""
    whole = set(valid_checkpoints(run))
    for folder in (run / "checkpoints").iterdir():
        if folder not in whole and folder.is_dir():
            shutil.rmtree(folder)


def delete_superseded(run: Path, *, keep: int, best: str) -> None:
    """Remove all checkpoints but the `keep` latest and the best."""
    folders = sorted((run / "checkpoints").glob("step_*"))
    for folder in folders[:-keep]:
        if folder.name != best:
            shutil.rmtree(folder)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or a run's best, else its latest, else any whole one.

    Raises:
        CheckpointError: if there is none.
    """
    if (path / "meta.json").is_file():
        return path
    if not path.exists():
        raise CheckpointError(f"no model at {path}: give a run directory, a checkpoint or an ONNX bundle.")
    if not is_run(path):
        raise CheckpointError(f"{path} is neither a run directory nor a checkpoint.")
    reader = RunReader(path)
    named = reader.chosen_checkpoint()
    if named is not None:
        return named
    whole = valid_checkpoints(path)
    if not whole:
        raise CheckpointError(f"the run {path} has no checkpoint yet; wait for its first evaluation.")
    return whole[0]


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file, nothing executed.

    Raises:
        CheckpointError: if it is not one.
    """
    return read_tensors(path)


def load_weights(model: CLIP, folder: Path, *, assign: bool = False) -> None:
    """Put a checkpoint's weights into `model`, name by name, shape by shape, refusing what is not finite.

    Args:
        assign: let what was read become the parameters, instead of copying it into those that are there.
    """
    weights = load_tensors(folder / "model.safetensors")
    expected = model.state_dict()
    missing, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    wrong = sorted(n for n in expected.keys() & weights.keys() if expected[n].shape != weights[n].shape)
    if missing or extra or wrong:
        raise CheckpointError(
            f"{folder / 'model.safetensors'} belongs to another network: "
            f"missing {missing[:5]}, left over {extra[:5]}, of another shape {wrong[:5]}."
        )
    bad = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if bad:
        raise CheckpointError(f"{folder / 'model.safetensors'} holds values that are not finite in {bad[:5]}.")
    model.load_state_dict(weights, strict=True, assign=assign)


def load_model(path: Path, *, model_name: str | None = None) -> LoadedModel:
    """The network of a run directory (its best checkpoint), of a checkpoint folder, or of published weights.

    Args:
        path: as for `find_checkpoint`, or as for `read_published`.
        model_name: what open_clip calls the architecture, where published weights do not say it.
    Raises:
        CheckpointError: if there is no whole checkpoint, or it does not describe a network that can be built.
    """
    if hub_name(str(path)) or is_published(path):
        published = read_published(path, model_name=model_name)
        place = path if path.exists() else published.folder
        model = published.build()
        return LoadedModel(model, published.config, published.tokenizer, place, 0, None, {}, published.files)
    folder = find_checkpoint(Path(path))
    meta = read_meta(folder)
    try:
        config = ClipConfig.model_validate(meta["model"])
    except (KeyError, ValidationError) as error:
        raise CheckpointError(f"{folder / 'meta.json'} does not describe a network: {error}.") from None
    run = folder.parent.parent if is_run(folder.parent.parent) else None
    tokenizer = next(
        (d / "tokenizer.json" for d in (folder, folder.parent.parent) if (d / "tokenizer.json").is_file()), None
    )
    if tokenizer is None:
        raise CheckpointError(f"no tokenizer.json for {folder}: copy it from the run into the checkpoint's folder.")
    model = unfilled_clip(config)
    load_weights(model, folder, assign=True)
    scores, files = dict(meta.get("scores") or {}), (folder / "model.safetensors",)
    return LoadedModel(model.eval(), config, Tokenizer.load(tokenizer), folder, int(meta["step"]), run, scores, files)
