"""The form of a new run: a field for every setting of the configuration, and typed values as a configuration."""

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from clip_core.config import SECTIONS, TrainConfig, architecture, flag, parse_config
from clip_core.errors import UsageError

Kind = Literal["choice", "switch", "text"]
AUTOMATIC, NOTHING = "automatic", "none"


@dataclass(frozen=True)
class Field:
    """One setting as a form shows it."""

    section: str
    name: str
    kind: Kind
    help: str
    default: Any
    choices: tuple[str, ...] = ()
    is_path: bool = False

    @property
    def id(self) -> str:
        return f"{self.section}-{self.name}"

    @property
    def placeholder(self) -> str:
        if self.name == "data_file":
            return "a list, a folder of images, or tar shards"
        if self.default is not None:
            return str(self.default)
        return AUTOMATIC if "default:" in self.help else NOTHING

    @property
    def flag(self) -> str:
        return flag(self.name)


def form_fields() -> Iterator[Field]:
    """Every setting of TrainConfig, section by section."""
    for section in SECTIONS:
        model = type(getattr(TrainConfig(), section))
        for name, info in model.model_fields.items():
            yield _field(section, name, info)


def _field(section: str, name: str, info: FieldInfo) -> Field:
    kinds = _members(info.annotation)
    choices = tuple(str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind))
    kind: Kind = "switch" if bool in kinds else "choice" if choices and Path not in kinds else "text"
    is_path = Path in kinds and not choices
    shown = choices if kind == "choice" else ()
    return Field(section, name, kind, info.description or "", info.default, shown, is_path)


def _members(annotation: Any) -> tuple[Any, ...]:
    """The parts of a union without None; a plain type is its own only part."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(part for part in get_args(annotation) if part is not type(None))
    return (annotation,)


def read_form(values: Mapping[str, Any]) -> TrainConfig:
    """Typed values, by `Field.id`, as a configuration; an empty text means the default.

    Raises:
        UsageError: naming each flag that cannot be used.
    """
    nested: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for field in form_fields():
        value = values.get(field.id)
        if isinstance(value, str):
            value = value.strip() or None
        if value is not None:
            nested[field.section][field.name] = Path(value).expanduser() if field.is_path else value
    from clip_core.data.formats.detect import is_there  # not needed for the first frame

    config = parse_config(nested)
    if config.data.data_file is None and not config.data.create_synthetic:
        raise UsageError("--data-file is missing: name a list, a folder or shards, or switch --create-synthetic on.")
    if config.data.data_file and not config.data.create_synthetic and not is_there(config.data.data_file):
        raise UsageError(
            f"--data-file: {config.data.data_file} does not exist (searched from {Path.cwd()}); correct the path."
        )
    if config.tune.init is None:
        architecture(config.model, vocab_size=300, end_token=1, context_length=config.data.context_length)
    return config
