"""Networks of transformers, built from a local folder: its code is the library's own, its weights are checked."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from clip_core.errors import CheckpointError
from clip_core.model.encoders.files import CONFIG, read_settings, require
from clip_core.model.weight_files import open_weights
from clip_core.text import printable

_UNUSED = ("pooler", "position_ids", "mask_token")  # weights that features do not need


def refuse_code(where: Path, settings: dict[str, Any]) -> None:
    """Refuse a configuration that asks for code of its own.

    Raises:
        CheckpointError: naming what it asks for.
    """
    for key in ("auto_map", "trust_remote_code", "custom_pipelines"):
        if settings.get(key):
            raise CheckpointError(
                f"{where} asks for code of its own ({key}), which is never run; use an encoder that transformers "
                "itself has."
            )


def build_empty(folder: Path, class_name: str = "AutoModel", part: str | None = None) -> nn.Module:
    """The architecture of a folder on the meta device, without weights.

    Args:
        class_name: of transformers. part: `vision_config` where the configuration is of two towers.
    Raises:
        CheckpointError, MissingExtraError: as `build`.
    """
    library = require("transformers")
    config = _config(library, folder)
    config = getattr(config, part) if part else config
    make = library.AutoModel.from_config if class_name == "AutoModel" else getattr(library, class_name)
    with quiet(library), _one_sentence(folder), torch.device("meta"):
        model: nn.Module = make(config)
    return model.eval()


def build(folder: Path, weights: Path, class_name: str = "AutoModel") -> nn.Module:
    """The network of a folder with its weights, in fp32 and evaluation mode.

    Raises:
        CheckpointError: if weights are damaged, missing or of another shape, or code is asked for.
        MissingExtraError: if transformers is not installed.
    """
    library = require("transformers")
    _config(library, folder)
    file = open_weights(weights)  # damage, pickled code and missing parts are found here, in one sentence
    safe = all(path.suffix == ".safetensors" for path in file.files)
    with quiet(library), _one_sentence(folder):
        model, loaded = getattr(library, class_name).from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True, use_safetensors=safe, dtype=torch.float32,
            output_loading_info=True,
        )  # fmt: skip
    missing = [name for name in loaded["missing_keys"] if not any(part in name for part in _UNUSED)]
    wrong = [str(entry[0] if isinstance(entry, tuple) else entry) for entry in loaded.get("mismatched_keys", ())]
    if missing or wrong:
        what, names = ("are of another shape", wrong) if wrong else ("are missing", missing)
        listed = printable(", ".join(sorted(names)[:3]), 160)
        raise CheckpointError(
            f"{weights} does not hold the network that {folder / CONFIG} describes: {len(names)} tensors {what}, "
            f"as {listed}."
        )
    bad = next((name for name, value in model.named_parameters() if not torch.isfinite(value).all()), None)
    if bad is not None and not any(part in bad for part in _UNUSED):
        raise CheckpointError(f"{weights} has values that are not finite in {printable(bad, 80)}.")
    built: nn.Module = model.eval()
    return built


def without_pooler(model: nn.Module) -> nn.Module:
    """The model without the layer on its first token, which features do not use and many weights do not hold."""
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.register_module("pooler", None)
    return model


def _config(library: ModuleType, folder: Path) -> Any:
    where = folder / CONFIG
    refuse_code(where, read_settings(where))
    with quiet(library), _one_sentence(folder):
        return library.AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)


@contextmanager
def _one_sentence(folder: Path) -> Iterator[None]:
    """Whatever transformers raises on a folder, as one sentence."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # the library raises errors of every kind on what it cannot read
        cause = printable(str(error).strip().partition("\n")[0], 160)
        raise CheckpointError(f"{folder} cannot be read by transformers ({type(error).__name__}: {cause}).") from None


@contextmanager
def quiet(library: ModuleType) -> Iterator[None]:
    """No progress bar and no report of transformers on the terminal."""
    log = library.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
