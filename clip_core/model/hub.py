"""Weights by a name of the Hugging Face hub, `org/name`: from its cache, else over the network."""

import json
import re
from pathlib import Path

from clip_core.errors import CheckpointError

PREFIX = "hf-hub:"

# A configuration, and the files that may hold its weights; the first that is there is taken.
_FORMATS = (
    ("open_clip_config.json", ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")),
    ("config.json", ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                     "pytorch_model.bin.index.json")),
)  # fmt: skip
_BESIDE = (
    "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
    "merges.txt",
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def hub_name(source: str) -> str | None:
    """`org/name`, where `source` spells one and is no path: nothing stands there, nor a folder called `org`."""
    name = source.removeprefix(PREFIX)
    if not _NAME.fullmatch(name):
        return None
    if name != source:
        return name
    there = Path(name)
    return None if there.exists() or there.parent.exists() else name


def fetch(name: str) -> Path:
    """The folder of the hub's cache with one configuration, its weights and its tokenizer.

    Raises:
        CheckpointError: if they are neither in the cache nor to be had.
    """
    for offline in (True, False):
        for config, weights in _FORMATS:
            file = _file(name, config, offline)
            found = next((path for each in weights if (path := _file(name, each, offline))), None) if file else None
            if file is None or found is None:
                continue
            for each in (*_shards(found), *_BESIDE):
                _file(name, each, offline)
            return file.parent
    raise CheckpointError(f"the Hugging Face hub has no weights of a CLIP under {name!r}.")


def _file(name: str, file: str, offline: bool) -> Path | None:
    """One file of a repository, in the cache; None where there is none of that name."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ModuleNotFoundError:
        raise CheckpointError(
            f"there is no {name} here; to look for it on the Hugging Face hub: pip install huggingface_hub"
        ) from None
    try:
        return Path(hf_hub_download(name, file, local_files_only=offline))
    except LocalEntryNotFoundError:
        if offline:
            return None
        raise CheckpointError(
            f"there is no {name} here, nor in the cache of the Hugging Face hub, and the hub cannot be reached."
        ) from None
    except EntryNotFoundError:
        return None
    except RepositoryNotFoundError:
        raise CheckpointError(f"there is no {name} here, and none on the Hugging Face hub that you may read.") from None
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{name} cannot be fetched from the Hugging Face hub: {reason}") from None


def _shards(weights: Path) -> list[str]:
    """The files that an index names; what is wrong with it is said when it is read."""
    if not weights.name.endswith(".index.json"):
        return []
    try:
        return sorted({str(file) for file in json.loads(weights.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
