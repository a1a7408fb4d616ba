"""What a description of published weights comes to, whatever its format."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clip_core.config import explain
from clip_core.errors import CheckpointError
from clip_core.network import ClipConfig


@dataclass(frozen=True)
class Traits:
    """The identity that a configuration, or the shapes, give.

    `end_token`: what the answer is read at, where it is said; None where it is the highest number in the caption, or
    where it does not matter: then the tokenizer says which it is, and `config` holds the vocabulary's last.
    `highest_token`: the answer is read at the highest number in the caption.
    `own_tokenizer`: the tokenizer is not CLIP's BPE, so it must come with the weights.
    """

    config: ClipConfig
    end_token: int | None
    highest_token: bool
    own_tokenizer: bool = False


def make_config(where: Path | str, values: Mapping[str, Any]) -> ClipConfig:
    """A ClipConfig from plain values.

    Raises:
        CheckpointError: naming what is out of range.
    """
    try:
        return ClipConfig.model_validate(values)
    except ValidationError as error:
        raise CheckpointError(f"{where} describes no network that can be built: {explain(error)}") from None


def unsupported(where: Path | str, trait: str) -> CheckpointError:
    return CheckpointError(
        f"{where} has {trait}, which is not supported; supported are CLIPs whose two towers are plain Transformers."
    )


def mlp_ratio(width: int, hidden: int) -> float:
    """The ratio r for which int(width * r) is the hidden width, whatever the rounding of floats."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def number(where: Path | str, settings: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A whole number from a configuration; two equal ones, as for a square image, count as one.

    Raises:
        CheckpointError: if it is missing or something else.
    """
    value = settings.get(key, default)
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{where}: {key} is {value!r:.60}; it should be a whole number from 1.")
    return value
