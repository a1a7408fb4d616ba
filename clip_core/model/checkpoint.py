"""Checkpoints: folders of a run with weights and what resuming needs; valid once meta.json is there and true.

step_0000180/  model.safetensors  state.safetensors  state.json  meta.json (sizes and sha256 of the others and of the
run's tokenizer.json, and its own digest; written last)
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
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
from clip_core.files import finite, flush_directory, flush_file, load_json, read_json, sha256, write_json
from clip_core.model.clip import CLIP, attach_encoders, uninitialised_clip
from clip_core.model.hub import hub_name, local_source
from clip_core.model.published import read_published
from clip_core.model.weight_files import open_weights, read_tensors
from clip_core.network import ClipConfig, ImageTower, TextTower, first_mistake
from clip_core.run.paths import META, RunPaths, is_run
from clip_core.run.reader import RunReader

SCHEMA = 3  # of meta.json
WEIGHTS = "model.safetensors"
STATE_TENSORS = "state.safetensors"
STATE = "state.json"


@dataclass(frozen=True)
class LoadedModel:
    """A network on the CPU in fp32, ready for evaluation, and where it came from.

    `folder`: of the checkpoint, or what published weights were read from. `files`: those that hold its weights.
    `notes`: what was taken, assumed or ignored in published weights, a line each.
    """

    model: CLIP
    config: ClipConfig
    tokenizer: Tokenizer
    folder: Path
    step: int
    run: Path | None
    scores: dict[str, float]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

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
    kept: bool = False,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint under a temporary name, flushed, meta.json last, then rename it.

    Args:
        folder: where it will be; nothing is there yet.
        tensors: what resuming needs beside the weights (the optimiser's moments), by name.
        state: what resuming needs that is not a tensor, as plain JSON.
        scores: metrics of this step, by their keys.
        kept: somebody asked for it, so `delete_superseded` leaves it alone.
        weights: of `model`, where the model itself has a part of them.
    Raises:
        CheckpointError: if it cannot be written, as on a full disk; nothing is left of it.
    """
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        (beside / STATE).write_text(json.dumps(state), encoding="utf-8")
        mode = (beside / STATE).stat().st_mode & 0o777  # of the umask; safetensors makes its files 0600
        for name, contents in ((WEIGHTS, weights or model.state_dict()), (STATE_TENSORS, tensors)):
            save_file(_on_cpu(contents), beside / name)
            (beside / name).chmod(mode)
        meta = {
            "schema": SCHEMA,
            "step": step,
            "epoch": epoch,
            "model": model.config.model_dump(mode="json"),
            "logit_scale": float(model.logit_scale().detach()),
            "scores": scores,
            "kept": kept,
            "tokenizer": _sha256_of(RunPaths(folder.parent.parent).tokenizer),
            "files": {path.name: _flushed(path) for path in sorted(beside.iterdir())},
        }
        write_meta(beside, meta)
        beside.rename(folder)
        flush_directory(folder.parent)
    except (SafetensorError, OSError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint {folder} could not be written ({error}); the previous one is still valid."
        ) from None


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().contiguous().cpu() for name, value in tensors.items()}


def _flushed(path: Path) -> dict[str, Any]:
    """Flush a file to disk; its size and sha256."""
    flush_file(path)
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def _sha256_of(path: Path) -> str | None:
    return sha256(path) if path.is_file() else None


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write meta.json with the digest that `read_meta` checks: a bit flipped in it would change the network."""
    write_json(folder / META, meta | {"digest": _digest(meta)})


def _digest(meta: dict[str, Any]) -> str:
    content = json.dumps(finite({name: value for name, value in meta.items() if name != "digest"}), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def read_meta(folder: Path, *, verify: bool = True) -> dict[str, Any]:
    """A checkpoint's meta.json, after checking that its files are the ones that were written.

    Args:
        verify: compare the sha256 of every file, not its size alone.
    Raises:
        CheckpointError: if there is no checkpoint, another version wrote it, or a file is missing or differs.
    """
    try:
        meta = load_json(folder / META)
        files, schema = dict(meta["files"]), meta["schema"]
        if schema != SCHEMA:
            raise CheckpointError(
                f"{folder} was written by another version of clip-tui (schema {schema!r:.20}, this one reads {SCHEMA})."
            )
        if meta["digest"] != _digest(meta):
            raise CheckpointError(f"{folder / META} is damaged: its digest differs; use another checkpoint.")
        for name, expected in files.items():
            path = folder / Path(name).name
            same = path.is_file() and path.stat().st_size == expected["size"]
            if not same or (verify and sha256(path) != expected["sha256"]):
                raise CheckpointError(
                    f"{path} is damaged: size or sha256 differ from meta.json; use another checkpoint."
                )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} is not a complete checkpoint ({error}).") from None
    return dict(meta)


def valid_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, latest first."""
    found = []
    for folder in sorted(RunPaths(run).checkpoints.glob("step_*"), reverse=True):
        try:
            read_meta(folder)
        except CheckpointError:
            continue
        found.append(folder)
    return found


def read_state(folder: Path) -> dict[str, Any]:
    """What resuming needs beside the tensors, with what `change_state` changed."""
    try:
        return dict(load_json(folder / STATE)) | dict((read_json(folder / META) or {}).get("state", {}))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / STATE} cannot be read ({error}); resume from another checkpoint.") from None


def refuse_other_tokenizer(meta: dict[str, Any], tokenizer: Path) -> None:
    """Refuse a tokenizer.json that is not, to the byte, the one that a checkpoint was trained with.

    Raises:
        CheckpointError: naming the file.
    """
    if meta.get("tokenizer") not in (None, _sha256_of(tokenizer)):
        raise CheckpointError(
            f"{tokenizer} is not the one that the checkpoint of step {meta['step']} was trained with: its sha256 "
            "differs; restore it, or use another run."
        )


def delete_damaged(run: Path) -> None:
    """Delete what an interrupted save left, and checkpoints whose files are not the ones that were written."""
    valid = set(valid_checkpoints(run))
    for folder in RunPaths(run).checkpoints.iterdir():
        if folder not in valid and folder.is_dir():
            _delete(folder)


def delete_superseded(run: Path, *, keep: int, best: str) -> None:
    """Delete all checkpoints but the `keep` latest, the best, and those that somebody asked for, which do not count."""
    folders = sorted(RunPaths(run).checkpoints.glob("step_*"))
    automatic = [folder for folder in folders if not (read_json(folder / META) or {}).get("kept")]
    for folder in automatic[:-keep]:
        if folder.name != best:
            _delete(folder)


def keep_checkpoint(folder: Path) -> None:
    """Mark a checkpoint that is there as one that somebody asked for; see `delete_superseded`."""
    write_meta(folder, read_meta(folder, verify=False) | {"kept": True})


def change_state(folder: Path, **values: Any) -> None:
    """Change what resuming from a checkpoint begins with; its meta.json is replaced, its other files stay."""
    meta = read_meta(folder, verify=False)
    write_meta(folder, meta | {"state": meta.get("state", {}) | values})


def _delete(folder: Path) -> None:
    """meta.json first, so that an interrupted deletion leaves no checkpoint that looks complete."""
    (folder / META).unlink(missing_ok=True)
    shutil.rmtree(folder)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or a run's best, else its latest, else any complete one.

    Raises:
        CheckpointError: if there is none.
    """
    if (path / META).is_file():
        return path
    if not path.exists():
        raise CheckpointError(f"no model at {path}: give a run directory, a checkpoint or published weights.")
    if not is_run(path):
        raise CheckpointError(f"{path} is neither a run directory nor a checkpoint.")
    reader = RunReader(path)
    named = reader.chosen_checkpoint()
    if named is not None:
        return named
    valid = valid_checkpoints(path)
    if not valid:
        raise CheckpointError(f"the run {path} has no checkpoint yet; wait for its first evaluation.")
    return valid[0]


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name.

    Raises:
        CheckpointError: if it is damaged or no safetensors file.
    """
    return read_tensors(path)


def load_weights(model: CLIP, folder: Path, *, assign: bool = False) -> None:
    """Load a checkpoint's weights into `model`.

    Args:
        assign: what was read becomes the parameters, instead of being copied into those that are there.
    Raises:
        CheckpointError: if names or shapes differ, or a value is not finite.
    """
    model.load_state_dict(dict(stored_weights(model, folder)), strict=True, assign=assign)


def stored_weights(model: CLIP, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """A checkpoint's weights for `model`, read one at a time.

    Raises:
        CheckpointError: if names or shapes differ, or a value is not finite.
    """
    path = folder / WEIGHTS
    weights, expected = open_weights(path).tensors, model.state_dict()
    missing, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    wrong = sorted(n for n in expected.keys() & weights.keys() if tuple(expected[n].shape) != weights[n].shape)
    if missing or extra or wrong:
        raise CheckpointError(
            f"{path} belongs to another network: missing {missing[:5]}, unexpected {extra[:5]}, "
            f"of another shape {wrong[:5]}."
        )
    for name, stored in weights.items():
        value = stored.read()
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path} has values that are not finite in {name}.")
        yield name, value


def _refuse_larger_than_file(config: ClipConfig, folder: Path) -> None:
    """Refuse a description of more weights than the file has bytes, before memory is allocated for them."""
    least = 0
    for tower in (config.image, config.text):
        if isinstance(tower, ImageTower | TextTower):
            least += tower.layers * tower.width * (4 * tower.width + 2 * tower.mlp_width)
            least += tower.vocab_size * tower.width if isinstance(tower, TextTower) else 0
    size = (folder / WEIGHTS).stat().st_size if (folder / WEIGHTS).is_file() else least
    if least > size:
        raise CheckpointError(
            f"{folder / META} describes a network of at least {least:,} parameters, and {WEIGHTS} has {size:,} bytes; "
            "they do not belong together."
        )


def _encoders_moved(config: ClipConfig, run: Path | None) -> ClipConfig:
    """External encoders by the names that the run has now: they may have been moved since the checkpoint."""
    if run is None or not config.external:
        return config
    names = {tower.encoder.side: tower.encoder.name for tower in RunReader(run).record().model.external}
    for tower in config.external:
        config = config.with_encoder(tower.encoder.side, names.get(tower.encoder.side, tower.encoder.name))
    return config


def load_model(path: Path, *, model_name: str | None = None) -> LoadedModel:
    """The network of a run directory (its best checkpoint), of a checkpoint folder, or of published weights.

    Args:
        path: as for `find_checkpoint`, or as for `read_published`.
        model_name: open_clip's name of the architecture, where published weights come without a configuration.
    Raises:
        CheckpointError: if there is no complete checkpoint, or it does not describe a valid network.
    """
    path = local_source(path)
    own = is_run(path) or (path / META).is_file()
    if hub_name(str(path)) or (path.exists() and not own):
        published = read_published(path, model_name=model_name)
        place = path if path.exists() else published.folder
        return LoadedModel(
            published.build(), published.config, published.tokenizer, place, 0, None, {}, published.files,
            published.notes,
        )  # fmt: skip
    folder = find_checkpoint(path)
    meta = read_meta(folder)
    try:
        config = ClipConfig.model_validate(meta["model"])
    except KeyError as error:
        raise CheckpointError(f"{folder / META} does not describe a network: it has no {error}.") from None
    except ValidationError as error:
        raise CheckpointError(f"{folder / META} does not describe a network: {first_mistake(error)}.") from None
    run = folder.parent.parent if is_run(folder.parent.parent) else None
    config = _encoders_moved(config, run)
    places = (RunPaths(each).tokenizer for each in (folder, folder.parent.parent))
    tokenizer = next((place for place in places if place.is_file()), None)
    if tokenizer is None:
        raise CheckpointError(f"no tokenizer.json for {folder}: copy it from the run into the checkpoint's folder.")
    refuse_other_tokenizer(meta, tokenizer)
    _refuse_larger_than_file(config, folder)
    model = attach_encoders(uninitialised_clip(config))
    load_weights(model, folder, assign=True)
    scores, files = dict(meta.get("scores") or {}), (folder / WEIGHTS,)
    return LoadedModel(model.eval(), config, Tokenizer.load(tokenizer), folder, int(meta["step"]), run, scores, files)
