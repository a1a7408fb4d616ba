"""The configuration of published weights, and checks that the readers of each format share."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clip_core.data.cleaning import Cleaning
from clip_core.errors import CheckpointError
from clip_core.network import ClipConfig, first_mistake

# SigLIP's preprocessing.
SQUASHED = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "resize_mode": "squash"}


@dataclass(frozen=True)
class PublishedConfig:
    """The architecture of published weights, from a configuration file or from the shapes of the tensors.

    `end_token`: the token at which the text tower pools, where the configuration names one; else None, and `config` has
    the last token of the vocabulary until the tokenizer is known.
    `highest_token`: the text tower pools at the highest token id of the caption.
    `own_tokenizer`: the tokenizer is not CLIP's BPE, so it must come with the weights.
    `cleaning`: of text before such a tokenizer; None: as its tokenizer.json has it.
    `siglip`: they are a SiglipModel of transformers, whose tokenizer files say little of framing and cleaning.
    `trunk`: the image tower is a timm trunk.
    """

    config: ClipConfig
    end_token: int | None
    highest_token: bool
    own_tokenizer: bool = False
    cleaning: Cleaning | None = None
    siglip: bool = False
    trunk: bool = False


def make_config(where: Path | str, values: Mapping[str, Any]) -> ClipConfig:
    """A ClipConfig from plain values.

    Raises:
        CheckpointError: naming what is out of range.
    """
    try:
        return ClipConfig.model_validate(values)
    except ValidationError as error:
        raise CheckpointError(f"{where} describes an invalid network: {first_mistake(error)}.") from None


def unsupported(where: Path | str, trait: str) -> CheckpointError:
    return CheckpointError(f"{where} has {trait}, which is not supported.")


def mlp_ratio(width: int, hidden: int) -> float:
    """A ratio with int(width * ratio) == hidden, in spite of rounding."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def number(where: Path | str, settings: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive integer of a configuration; two equal ones, as for a square image, count as one.

    Raises:
        CheckpointError: if it is missing or something else.
    """
    value = settings.get(key, default)
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{where}: {key} is {value!r:.60}; it must be a whole number from 1.")
    return value
