"""Facts of an encoder's files: their hash, their licence, the hub's cache, what is installed."""

import hashlib
import importlib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from clip_core.errors import CheckpointError, MissingExtraError
from clip_core.files import open_regular, sha256
from clip_core.model.hub import PREFIX, hub_name, snapshot
from clip_core.text import printable

CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_SMALL = ("*.json", "README.md", "LICENSE*", "merges.txt")
_LARGEST_JSON = 64 * 2**20  # bytes; a tokenizer.json of 250,000 tokens has 17 million
_LICENCES = {
    "apache license": "apache-2.0", "mit license": "mit", "bsd 3-clause": "bsd-3-clause",
    "bsd 2-clause": "bsd-2-clause", "gnu general public license": "gpl", "creativeml": "creativeml",
    "attribution-noncommercial": "cc-by-nc",
}  # fmt: skip


def identity_of(files: Iterable[Path], settings: object) -> str:
    """sha256 over files, by their contents, and over the settings that change features."""
    key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for path in files:
        key.update(f"\n{path.name} {file_hash(path)}".encode())
    return key.hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file; of one that has the same size and time of change as before, the one computed then.

    Raises:
        CheckpointError: if it cannot be read.
    """
    try:
        facts = path.stat()
        return _file_hash(path, facts.st_size, facts.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None


@lru_cache(maxsize=256)
def _file_hash(path: Path, size: int, changed: int) -> str:
    return sha256(path)


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object of a file.

    Raises:
        CheckpointError: if it is missing, damaged or no JSON object.
    """
    try:
        with open_regular(path) as handle:
            content = handle.read(_LARGEST_JSON + 1)
        said = json.loads(content.decode("utf-8-sig")) if len(content) <= _LARGEST_JSON else None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({printable(str(error), 120)}).") from None
    if not isinstance(said, dict):
        raise CheckpointError(f"{path} is not a JSON object of at most {_LARGEST_JSON:,} bytes.")
    return said


def weights_in(folder: Path) -> Path:
    """The file with the weights of a folder, or their index.

    Raises:
        CheckpointError: if there is none.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder} has no weights; one of these should be there: {', '.join(_WEIGHTS)}.")


def licence_of(folder: Path, settings: dict[str, Any] | None = None) -> str | None:
    """The licence that the front matter of README.md, the settings or a LICENSE file names; None where none does."""
    for line in _front_matter(folder / "README.md"):
        key, _, value = line.partition(":")
        if key.strip() in ("license", "licence") and value.strip():
            return printable(value.strip().strip("\"'"), 60)
    stated = (settings or {}).get("license") or ((settings or {}).get("pretrained_cfg") or {}).get("license")
    if isinstance(stated, str) and stated.strip():
        return printable(stated.strip(), 60)
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE"):
        start = " ".join(_start(folder / name).split())
        known = next((short for words, short in _LICENCES.items() if words in start.lower()[:300]), None)
        if start:
            return known or printable(start, 60)
    return None


def _front_matter(path: Path) -> list[str]:
    lines = _start(path).splitlines()
    if not lines or lines[0].strip() != "---":
        return []
    end = next((number for number, line in enumerate(lines[1:], start=1) if line.strip() == "---"), 0)
    return lines[1:end]


def _start(path: Path) -> str:
    try:
        with open_regular(path) as handle:
            return handle.read(16_384).decode("utf-8", "replace")
    except OSError:
        return ""


def hub_folder(name: str) -> Path | None:
    """The folder of a name on the Hugging Face hub, from its cache or downloaded; None where `name` is not one.

    Raises:
        CheckpointError: if it is neither in the cache nor downloaded.
    """
    found = hub_name(name)
    if found is None:
        return None
    cached = snapshot(found, ("*",), offline=True)
    if cached is not None and _has_weights(cached):
        return cached
    forms = (_OPEN_CLIP[:1], ("model.safetensors", "model-*-of-*.safetensors"), _OPEN_CLIP[1:],
             ("pytorch_model.bin", "pytorch_model-*-of-*.bin"))  # fmt: skip
    for patterns in forms:
        folder = snapshot(found, (*_SMALL, *patterns), offline=False)
        if folder is not None and _has_weights(folder):
            return folder
    raise CheckpointError(f"{found} on the Hugging Face hub has no weights of a supported encoder.")


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (*_WEIGHTS, *_OPEN_CLIP))


def absolute(name: str) -> str:
    """`name`, absolute where it is a path."""
    if name.startswith(PREFIX) or not Path(name).expanduser().exists():
        return name
    return str(Path(name).expanduser().absolute())


def require(package: str) -> ModuleType:
    """Import timm or transformers, which are optional.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] != package:
            raise
        raise MissingExtraError(
            f"this encoder needs {package}, which is not installed: pip install 'clip-tui[encoders]'"
        ) from None


def installed(packages: Sequence[str]) -> dict[str, bool]:
    """Whether each package is installed, without importing it."""
    return {package: importlib.util.find_spec(package) is not None for package in packages}
