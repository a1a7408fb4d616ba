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


# Names of OpenAI's `clip.load`, and where those weights are on the hub.
_OPENAI = {
    "ViT-B/32": "openai/clip-vit-base-patch32", "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14", "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}  # fmt: skip
_OPENAI |= {name.replace("/", "-"): hub for name, hub in _OPENAI.items()}
_ARCHITECTURE = re.compile(
    r"(?:coca_|nllb-clip-|xlm-|roberta-)*"
    r"(?:(?:ViT|EVA\d*|ViTamin|MobileCLIP\d?)-\w+[-/]\d+|RN\d+|MobileCLIP\d?-\w+|ViTamin-\w+|convnext_\w+)"
    r"(?:[-@x_][\w.@+-]*)?",
    re.IGNORECASE,
)
_LOCAL = "local-dir:"
_URL = re.compile(r"(?i)(https?|hf|s3|gs|ftp|file):/+(.+)")
_HUB_HOSTS = ("huggingface.co", "hf.co", "www.huggingface.co")


def local_source(source: Path | str) -> Path:
    """A model as typed, without what open_clip and web browsers put before it; what exists stays as it is.

    `local-dir:FOLDER` is the folder; the address of a repository on the Hugging Face hub is `hf-hub:org/name`.

    Raises:
        CheckpointError: for another address, and for the name of an architecture, which says nothing of the weights.
    """
    text, path = str(source), Path(source)
    if path.exists():
        return path
    if text.startswith(_LOCAL):
        return Path(text.removeprefix(_LOCAL)).expanduser()
    address = _URL.fullmatch(text)
    if address is not None:
        return Path(PREFIX + _hub_repository(*address.groups()))
    match = _ARCHITECTURE.match(text)
    if match is not None and text[match.end() :][:1] in ("", "/") and not path.suffix[1:].isalpha():
        openai = _OPENAI.get(match[0] if match.end() == len(text) else "")
        known = f" (OpenAI's weights are {openai})" if openai else ""
        raise CheckpointError(
            f"{printable(text, 80)} names an architecture, not weights; give a weight file, a folder or a name on the "
            f"Hugging Face hub, as org/name{known}."
        )
    return path


def _hub_repository(scheme: str, rest: str) -> str:
    """`org/name` of an address on the hub."""
    text = f"{scheme}://{rest}"  # a Path has one slash
    host, _, below = rest.partition("/")
    parts = (rest if scheme.lower() == "hf" else below).strip("/").split("/")
    plain = len(parts) == 2 or (len(parts) in (3, 4) and parts[2] == "tree")
    if scheme.lower() == "hf" or host.lower() in _HUB_HOSTS:
        name = "/".join(parts[:2])
        if plain and _NAME.fullmatch(name):
            return name
        if len(parts) >= 5 and parts[2] in ("resolve", "blob") and _NAME.fullmatch(name):
            file = printable("/".join(parts[4:]).partition("?")[0], 80)
            raise CheckpointError(
                f"{printable(text, 120)} is the address of one file; give the repository, {name}, or download the file "
                f"(hf download {name} {file}) and give its path."
            )
    raise CheckpointError(
        f"{printable(text, 120)} is an address, and nothing is downloaded from there; download the file and give its "
        "path, or give a name on the Hugging Face hub, as org/name."
    )


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
