"""From any model to a folder that transformers or open_clip reads; read back and compared bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

import clip_core
from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import ParityError, UsageError
from clip_core.files import flush_directory, flush_file, load_json, write_json
from clip_core.inference.encoder import check_tokenizer
from clip_core.model.checkpoint import LoadedModel, load_model
from clip_core.model.clip import CLIP
from clip_core.model.published import read_published
from clip_core.network import ClipConfig, ImageTower, Pooling, TextTower
from export import hugging_face, open_clip
from export.job import ExportJob, Say, silent
from export.output_folder import check_output, put_in_place, temporary_folder

Format = Literal["hf", "open_clip"]
MARKER = "clip_export.json"  # written last; names the format, the source and the files
_CAPTIONS = ("", "a red circle", "Two dogs, running;   it's FUN!", "x " * 5000)


class _Writer(NamedTuple):
    reader: str  # who reads the folder, for people
    obstacles: Callable[[ClipConfig, Tokenizer], list[str]]
    write: Callable[[Path, CLIP, Tokenizer], None]


_WRITERS: dict[Format, _Writer] = {
    "hf": _Writer("transformers", hugging_face.obstacles, hugging_face.write),
    "open_clip": _Writer("open_clip", open_clip.obstacles, open_clip.write),
}


def export_weights(
    path: Path,
    out: Path | None = None,
    *,
    to: Format,
    force: bool = False,
    model_name: str | None = None,
    say: Say = silent,
) -> Path:
    """Write a model in a published format.

    Args:
        path: a run (its best checkpoint), a checkpoint, or published weights.
        out: the folder to write; by default `hf` or `open_clip` in the run.
        to: `hf` for transformers, `open_clip` for open_clip's `local-dir:`.
        force: replace an export that was made from another run.
        model_name: open_clip's name of the architecture, where published weights do not say it.
        say: called with each line for the user.
    Returns:
        The folder.
    Raises:
        UsageError: if the format cannot express the model, naming the trait, or if `out` holds something else.
        ParityError: if the folder, read back, is not the model bit for bit; then nothing is left at `out`.
        RunBusyError: if another process exports into the same folder.
    """
    with ExportJob(path, out, to, say) as job:
        write_weights(job, to=to, force=force, model_name=model_name)
        return job.out


def write_weights(job: ExportJob, *, to: Format, force: bool = False, model_name: str | None = None) -> None:
    """`export_weights` with a lock that the caller holds."""
    loaded, writer = load_model(job.source, model_name=model_name), _WRITERS[to]
    job.say_notes(loaded.notes)
    tokenizer, text = loaded.tokenizer, loaded.config.text
    check_tokenizer(tokenizer, vocab_size=text.vocab_size, end_token=text.end_token, context_length=text.context_length)
    external = [f"{tower.encoder.architecture} as its {tower.encoder.side} encoder" for tower in loaded.config.external]
    traits = external or writer.obstacles(loaded.config, tokenizer)
    if traits:
        raise UsageError(f"{job.source} cannot be written for {writer.reader}: it has {' and '.join(traits)}.")
    out, name = job.out, (loaded.run or loaded.folder).resolve().name
    check_output(
        out, what=f"an export for {writer.reader}", run=name, made_from=lambda at: made_from(at, to), force=force
    )
    with temporary_folder(out) as folder:
        job.now(f"writing {loaded.folder} for {writer.reader}", step=loaded.step)
        writer.write(folder, loaded.model, tokenizer)
        job.now("reading it back")
        check_same(folder, loaded.model, tokenizer)
        finish_export(folder, to, name, loaded)
        put_in_place(folder, out)


def check_same(folder: Path, model: CLIP, tokenizer: Tokenizer) -> None:
    """Read a folder as any published weights are read, and compare it with the model.

    Raises:
        ParityError: naming what differs.
    """
    found, weights, padded = read_published(folder), model.state_dict(), _reads_padding(model.config)
    names = weights.keys() | found.weights.keys()
    differing = sorted(
        name
        for name in names
        if name not in weights or name not in found.weights or not torch.equal(weights[name].cpu(), found.weights[name])
    )
    here, there = _identity(model.config), _identity(found.config)
    differing += sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))
    if _captions(tokenizer, padded) != _captions(found.tokenizer, padded):
        differing.append("the tokens of captions")
    if differing:
        raise ParityError(
            f"what was written, read back, differs from the model in {', '.join(differing[:5])}; nothing was kept."
        )


def _identity(config: ClipConfig) -> dict[str, Any]:
    """The network and its preprocessing as flat values that are equal for equal networks."""
    values = {
        f"{name}.{key}": value
        for name, tower in (("image", config.image), ("text", config.text))
        for key, value in tower.model_dump(mode="json").items()
    }
    if isinstance(config.image, ImageTower):
        values["image.class_token"] = config.image.has_class_token
        if config.image.pooling is Pooling.CLASS_TOKEN:
            del values["image.norm_after_pooling"]  # one token: before and after are the same
    values |= {f"preprocessing.{key}": value for key, value in config.preprocessing.model_dump(mode="json").items()}
    if config.preprocessing.resize_mode != "longest":
        del values["preprocessing.fill"]
    return values | {"embed_dim": config.embed_dim, "logit_bias": config.logit_bias}


def _reads_padding(config: ClipConfig) -> bool:
    return isinstance(config.text, TextTower) and config.text.reads_padding


def _captions(tokenizer: Tokenizer, padded: bool) -> list[list[int]]:
    """The tokens of a few captions up to their end, or with their padding, where the text tower reads it."""
    rows: list[list[int]] = [row.tolist() for row in tokenizer.encode(_CAPTIONS)]
    if padded:
        return rows
    return [row[: row.index(tokenizer.end_token) + 1] for row in rows]


def finish_export(folder: Path, to: str, name: str, loaded: LoadedModel) -> None:
    """Write the marker of an export, the last of its files, when everything else is on the disk."""
    files = _files(folder)
    for each in files:
        flush_file(folder / each)
    source = {"run": name, "checkpoint": loaded.folder.name, "step": loaded.step}
    marker = {"format": to, "clip-tui": clip_core.__version__, "source": source, "files": files}
    write_json(folder / MARKER, marker)
    flush_directory(folder)


def made_from(folder: Path, to: str) -> str | None:
    """The run of an export in the format `to`, if the folder holds that and nothing else."""
    try:
        marker = load_json(folder / MARKER)
        whole = set(_files(folder)) == {*marker["files"], MARKER}
        return str(marker["source"]["run"]) if whole and marker["format"] == to else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _files(folder: Path) -> list[str]:
    return sorted(each.relative_to(folder).as_posix() for each in folder.rglob("*") if not each.is_dir())
