"""Folders in which weights are found, or that are named for what they are."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from clip_core.errors import CheckpointError
from clip_core.files import load_json
from clip_core.model.not_weights import adapter
from clip_core.model.weight_files import INDEX, SUFFIXES
from clip_core.run.paths import MANIFEST
from clip_core.text import printable

OPEN_CLIP_CONFIG = "open_clip_config.json"
HUGGING_FACE_CONFIG = "config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
                     "open_clip_pytorch_model.bin")  # fmt: skip
WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")

_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
_STEP = re.compile(r"checkpoint-(\d+)")
_ONE_TOWER = {
    "clip_vision_model": "image", "clip_text_model": "text", "siglip_vision_model": "image",
    "siglip_text_model": "text", "siglip2_vision_model": "image", "siglip2_text_model": "text",
}  # fmt: skip
_BESIDE = {
    "tokenizer.json": ("tokenizer.json", "vocab.json"),
    "preprocessor_config.json": ("preprocessor_config.json", "processor_config.json"),
}
_IMAGES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".heic", ".tif", ".tiff"])
_LISTED = 3


class Place(NamedTuple):
    """A weight file and the configuration beside it; `note`: how it was found, where that was not plain."""

    weights: Path
    config: Path | None
    note: str


def find_weights(path: Path) -> Place:
    """The weights that `path` means, and the configuration beside them.

    Raises:
        CheckpointError: saying what is there instead.
    """
    if path.is_file():
        beside = _configuration(path.parent) if path.name in (*OPEN_CLIP_WEIGHTS, *WEIGHTS) else None
        if path.name.startswith("adapter_model.") and (path.parent / "adapter_config.json").is_file():
            raise adapter(path, "adapter_config.json is beside it")
        return Place(path, beside, "")
    if not path.is_dir():
        raise CheckpointError(f"no weights at {path}: give a weight file, a folder, or a hub name, as org/name.")
    folder, note = _inside(path)
    config = _configuration(folder)
    if config is None:
        raise _without_configuration(folder)
    refuse_one_tower(config)
    names = OPEN_CLIP_WEIGHTS + WEIGHTS if config.name == OPEN_CLIP_CONFIG else WEIGHTS
    for name in names:
        if (folder / name).is_file():
            return Place(folder / name, config, note)
    raise _without_weights(folder, config, names)


def missing_beside(config: Path) -> str:
    """What is assumed, in one line, where tokenizer or preprocessing are not beside a Hugging Face model."""
    if config.name != HUGGING_FACE_CONFIG:
        return ""
    beside = {each.name for each in config.parent.iterdir()}
    missing = [name for name, any_of in _BESIDE.items() if not beside.intersection(any_of)]
    verb = "are" if len(missing) > 1 else "is"
    return f"no {' and no '.join(missing)} beside it: CLIP's own {verb} assumed" if missing else ""


def refuse_one_tower(config: Path) -> None:
    """Refuse the configuration of an image or a text tower alone.

    Raises:
        CheckpointError: naming the tower.
    """
    kind = str(_json(config).get("model_type", ""))
    tower = _ONE_TOWER.get(kind.removesuffix("_with_projection"))
    if tower is not None:
        raise one_tower(config.parent, tower, f"model_type {kind}")


def one_tower(where: Path, tower: str, why: str) -> CheckpointError:
    """What weights of one tower are refused with."""
    other = "text" if tower == "image" else "image"
    return CheckpointError(
        f"{where} is the {tower} tower of a CLIP alone ({printable(why, 80)}), and similarities need its {other} tower "
        "too; give the whole model, saved from CLIPModel."
    )


def _inside(path: Path) -> tuple[Path, str]:
    """The folder of the model inside a folder of the hub's cache or of sentence-transformers, else `path`."""
    if _configuration(path) is not None:
        return path, ""
    if (path / "snapshots").is_dir():
        return _snapshot(path)
    if (path / "modules.json").is_file():
        return _of_sentence_transformers(path)
    return path, ""


def _snapshot(path: Path) -> tuple[Path, str]:
    """The revision of a repository in the hub's cache that `main` names, or its only one."""
    main = path / "refs" / "main"
    try:
        named = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    except (OSError, UnicodeDecodeError):
        named = ""
    there = sorted(each.name for each in (path / "snapshots").iterdir() if each.is_dir())
    chosen = named if named in there else there[0] if len(there) == 1 else None
    if chosen is None:
        what = f"give one of them: {_some(f'snapshots/{each}' for each in there)}" if there else "download it again"
        raise CheckpointError(f"{path} is a repository in a hub cache with {len(there)} revisions; {what}.")
    return path / "snapshots" / chosen, f"revision {printable(chosen[:12], 12)} of the hub cache is read"


def _of_sentence_transformers(path: Path) -> tuple[Path, str]:
    """The CLIPModel of a folder of sentence-transformers."""
    modules = _json(path / "modules.json", list)
    kinds = [(str(each.get("type", "")), str(each.get("path", ""))) for each in modules if isinstance(each, dict)]
    for kind, name in kinds:
        if kind.endswith("CLIPModel") and name == Path(name).name and name not in ("..", ".") and "\\" not in name:
            return path / name, f"the CLIPModel in {printable(name, 60)} of sentence-transformers is read"
    named = printable(", ".join(kind.rpartition(".")[2] for kind, _ in kinds), 80) or "nothing"
    raise CheckpointError(
        f"{path} is a folder of sentence-transformers without a CLIPModel (it has {named}): a text encoder, and "
        "similarities need an image tower too; give a CLIP."
    )


def _without_configuration(path: Path) -> CheckpointError:
    """What a folder is that has no configuration of a CLIP."""
    names = sorted(each.name for each in path.iterdir())
    if "adapter_config.json" in names:
        base = _json(path / "adapter_config.json").get("base_model_name_or_path")
        return adapter(path, f"for {printable(str(base), 80)}" if base else "it has adapter_config.json")
    if "model_index.json" in names:
        return CheckpointError(
            f"{path} is a pipeline of diffusers, which has one tower of a CLIP at most; give the whole CLIP."
        )
    if MANIFEST in names:
        return _bundle(path)
    cached = [name for name in names if _CACHED.fullmatch(name)] or [
        f"hub/{each.name}" for each in _folders(path / "hub") if _CACHED.fullmatch(each.name)
    ]
    if cached:
        return CheckpointError(f"{path} is a hub cache of several models; give the folder of one: {_some(cached)}.")
    steps = sorted((int(match[1]), name) for name in names if (match := _STEP.fullmatch(name)))
    if steps:
        return CheckpointError(
            f"{path} is the output folder of a Trainer; give one of its checkpoints, e.g. the last, "
            f"{path / steps[-1][1]}."
        )
    lacks = f"{path} is neither a run directory nor a checkpoint, and has neither {OPEN_CLIP_CONFIG} nor config.json"
    files = [name for name in names if name.lower().endswith((*SUFFIXES, INDEX))]
    if files:
        return CheckpointError(f"{lacks}; give the weight file itself: {_some(files)}.")
    images = sum(Path(name).suffix.lower() in _IMAGES for name in names)
    if images:
        return CheckpointError(f"{lacks}; it has {images:,} image{'s' if images > 1 else ''}: give a model.")
    inside = [each.name for each in _folders(path) if _configuration(each) is not None]
    if inside:
        return CheckpointError(f"{lacks}; give the folder of a model inside it: {_some(inside)}.")
    return CheckpointError(f"{lacks}; give a weight file, or the folder of a model.")


def _bundle(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is an ONNX bundle already; give the run, checkpoint or weights it was made from.")


def _without_weights(path: Path, config: Path, names: tuple[str, ...]) -> CheckpointError:
    """What a folder has in place of weights beside its configuration."""
    if (path / MANIFEST).is_file():
        return _bundle(path)
    lacks = f"{path} has {config.name} and no weights"
    there = sorted(each.name for each in path.iterdir())
    sharded = [name for name in there if name.startswith(("pytorch_model_fsdp", "global_step"))]
    if sharded:
        merge = "accelerate merge-weights" if "fsdp" in sharded[0] else "zero_to_fp32.py"
        return CheckpointError(
            f"{lacks} in one piece: {printable(sharded[0], 60)} holds those of a distributed run; merge them "
            f"with {merge}."
        )
    if "adapter_config.json" in there:
        return adapter(path, "it has adapter_config.json")
    others = [name for name in there if name.endswith((".h5", ".msgpack", ".onnx", ".gguf", *SUFFIXES))]
    has = f" (it has {_some(others)})" if others else ""
    return CheckpointError(f"{lacks}{has}; one of these should be there: {', '.join(names)}.")


def _configuration(folder: Path) -> Path | None:
    names = (OPEN_CLIP_CONFIG, HUGGING_FACE_CONFIG)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _folders(path: Path) -> list[Path]:
    return sorted(each for each in path.iterdir() if each.is_dir()) if path.is_dir() else []


def _json(path: Path, kind: type = dict) -> Any:
    """What a JSON file holds; something empty where it cannot be read, which its reader says."""
    try:
        found = load_json(path)
    except (OSError, ValueError):
        return kind()
    return found if isinstance(found, kind) else kind()


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return printable(", ".join(listed[:_LISTED]), 200) + (", ..." if len(listed) > _LISTED else "")
