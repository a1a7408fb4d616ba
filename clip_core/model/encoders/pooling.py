"""How the tokens of a text encoder become one row: what sentence-transformers' files say, else the mean."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_core.errors import CheckpointError
from clip_core.files import load_json
from clip_core.model.encoders.files import read_settings
from clip_core.text import printable

_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt",
    "pooling_mode_lasttoken": "last",
}
_NAMES = {"cls": "cls", "mean": "mean", "max": "max", "mean_sqrt_len_tokens": "mean_sqrt", "lasttoken": "last"}


@dataclass(frozen=True)
class TextPooling:
    """`how`: as for `masked_pool`. `normalise`: L2 afterwards. `limit`: longest text in tokens, None: not stated.

    `weights_folder`: of the Transformer. `notes`: what was assumed.
    """

    how: str
    normalise: bool
    limit: int | None
    weights_folder: Path
    notes: tuple[str, ...] = ()


def read_pooling(folder: Path) -> TextPooling:
    """The modules of a sentence-transformers folder; the mean for a plain folder.

    Raises:
        CheckpointError: for a module or a pooling that is not supported.
    """
    modules = folder / "modules.json"
    if not modules.is_file():
        note = "pooled by the mean of its tokens, as nothing beside it says how"
        return TextPooling("mean", False, None, folder, (note,))
    kinds = []
    for module in _list(modules):
        kind = str(module.get("type", "")).rpartition(".")[2]
        kinds.append((kind, _inside(folder, modules, str(module.get("path", "")))))
    names = [kind for kind, _ in kinds]
    unsupported = next((kind for kind in names if kind not in ("Transformer", "Pooling", "Normalize")), None)
    if unsupported is not None or names[:2] != ["Transformer", "Pooling"]:
        raise CheckpointError(
            f"{modules} has a module {printable(unsupported or ', '.join(names), 60)!r}, which is not supported: "
            "Transformer, Pooling and Normalize are."
        )
    transformer = kinds[0][1]
    said = folder / "sentence_bert_config.json"
    limit = read_settings(said).get("max_seq_length") if said.is_file() else None
    limit = limit if isinstance(limit, int) and limit > 2 else None
    return TextPooling(_how(kinds[1][1] / "config.json"), "Normalize" in names, limit, transformer)


def _how(path: Path) -> str:
    said = read_settings(path)
    named = said.get("pooling_mode")
    if isinstance(named, str) and named in _NAMES:
        return _NAMES[named]
    chosen = [mode for key, mode in _MODES.items() if said.get(key)]
    if len(chosen) != 1:
        asked = ", ".join(sorted(key for key, value in said.items() if key.startswith("pooling_mode") and value))
        raise CheckpointError(f"{path} asks for a pooling that is not supported ({printable(asked or 'none', 100)}).")
    return chosen[0]


def _list(path: Path) -> list[dict[str, Any]]:
    try:
        found = load_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({printable(str(error), 100)}).") from None
    if not isinstance(found, list) or not found or not all(isinstance(entry, dict) for entry in found):
        raise CheckpointError(f"{path} is not a list of modules.")
    return found


def _inside(folder: Path, modules: Path, path: str) -> Path:
    if path and (Path(path).name != path or path in (".", "..")):
        raise CheckpointError(f"{modules} names {printable(path, 80)!r}, a place outside its folder.")
    return folder / path
