"""Weights by their name on the Hugging Face hub, `org/name`: from its local cache, else downloaded into it."""

import re
from pathlib import Path

from clip_core.errors import CheckpointError
from clip_core.text import printable

PREFIX = "hf-hub:"

# A configuration, and the files that may hold its weights, preferred ones first.
_FORMATS = {
    "open_clip_config.json": ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    "config.json": (
        "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
    ),
}  # fmt: skip
_SHARDS = {
    "model.safetensors.index.json": "model-*-of-*.safetensors",
    "pytorch_model.bin.index.json": "pytorch_model-*-of-*.bin",
}
_SMALL = (
    *_FORMATS, "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    "vocab.json", "merges.txt", "spiece.model",
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def hub_name(source: str) -> str | None:
    """`org/name` where `source` is one, and not a path: neither it nor a folder `org` exists; else None."""
    name = source.removeprefix(PREFIX)
    if not _NAME.fullmatch(name):
        return None
    if name != source:
        return name
    path = Path(name)
    return None if path.exists() or path.parent.exists() else name


def fetch(name: str) -> Path:
    """The folder of the hub's cache with a configuration, its weights and its tokenizer.

    The cache is used without asking the hub for a newer revision. HF_HUB_OFFLINE, HF_HUB_CACHE, HF_ENDPOINT and
    HF_TOKEN are those of huggingface_hub.

    Raises:
        CheckpointError: if the weights are neither in the cache nor on the hub, or the hub cannot be reached.
    """
    cached = snapshot(name, ("*",), offline=True)
    if cached is not None and _has_weights(cached):
        return cached
    folder = snapshot(name, _SMALL, offline=False)
    for config, weights in _FORMATS.items():
        for file in weights if folder is not None and (folder / config).is_file() else ():
            folder = snapshot(name, (*_SMALL, file, _SHARDS.get(file, file)), offline=False)
            if folder is not None and (folder / file).is_file():
                return folder
    raise CheckpointError(
        f"{name} on the Hugging Face hub has no supported CLIP weights, or they cannot be downloaded."
    )


def _has_weights(folder: Path) -> bool:
    return any(
        (folder / config).is_file() and any((folder / file).is_file() for file in weights)
        for config, weights in _FORMATS.items()
    )


def snapshot(name: str, patterns: tuple[str, ...], *, offline: bool) -> Path | None:
    """The folder of a repository in the cache, with the files that match; None where it is not in the cache.

    Raises:
        CheckpointError: if it cannot be downloaded.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
    except ModuleNotFoundError:
        raise CheckpointError(
            f"{name} was not found; to look for it on the Hugging Face hub: pip install 'clip-tui[train]'"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), local_files_only=offline))
    except LocalEntryNotFoundError:
        if offline:
            return None
        raise CheckpointError(
            f"{name} was not found here, nor in the cache of the Hugging Face hub, and the hub cannot be reached."
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{name} was not found here, nor on the Hugging Face hub (or you may not read it: set HF_TOKEN)."
        ) from None
    except Exception as error:  # whichever of three HTTP clients the installed version has, with errors of its own
        reason = printable(str(error).strip().partition("\n")[0], 160)
        raise CheckpointError(f"{name} cannot be downloaded from the Hugging Face hub ({reason}).") from None
