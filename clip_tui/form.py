"""The form of a new run: a field for every setting of the configuration, and typed values as a configuration."""

import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from clip_core.config import SECTIONS, TITLES, TrainConfig, parse_config
from clip_core.errors import UsageError
from clip_core.flags import flag
from clip_core.presets import architecture

Kind = Literal["choice", "switch", "text"]
AUTOMATIC, NOTHING = "automatic", "none"

# The settings that a first run asks for, in this order; the others are found by a filter.
FIRST = ("data_file", "create_synthetic", "val_file", "init", "model_size", "epochs", "batch_size", "lr")


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
            return "list, folder or shards"
        if self.default is not None:
            return str(self.default)
        return AUTOMATIC if "default:" in self.help else NOTHING

    @property
    def flag(self) -> str:
        return flag(self.name)

    @property
    def searched(self) -> str:
        """What the filter looks in."""
        return f"{self.flag} {self.name} {self.help} {TITLES[self.section]}".casefold()


def form_fields() -> Iterator[Field]:
    """Every setting of TrainConfig, section by section."""
    for section in SECTIONS:
        model = type(getattr(TrainConfig(), section))
        for name, info in model.model_fields.items():
            yield _field(section, name, info)


def field_of(name: str) -> Field | None:
    """The field of a setting, by its name in the configuration or its flag."""
    wanted = name.removeprefix("--").replace("-", "_")
    return next((field for field in form_fields() if field.name == wanted), None)


def matching(typed: str) -> list[Field]:
    """The fields that have every typed word in their flag, their description or their section's title."""
    words = typed.casefold().split()
    return [field for field in form_fields() if all(word in field.searched for word in words)]


def mistakes(sentence: str) -> dict[str, str]:
    """A refused configuration as a sentence for each field that it names, by `Field.id`, in its order."""
    found: dict[str, str] = {}
    for part in re.split(r";\s(?=--)", sentence):
        named = [field for flag in _FLAG.findall(part) if (field := field_of(flag)) is not None]
        if named:
            found.setdefault(named[0].id, part.rstrip("."))
    return found


def values_of(config: TrainConfig) -> dict[str, Any]:
    """What a form shows for a configuration, by `Field.id`: only what differs from the default."""
    values: dict[str, Any] = {}
    for field in form_fields():
        value = getattr(getattr(config, field.section), field.name)
        if value != field.default:
            values[field.id] = value if isinstance(value, bool) else str(value)
    return values


_FLAG = re.compile(r"--[a-z][a-z0-9-]*")


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
    from clip_core.data.formats.detect import is_there  # not needed for the first frame

    config = parse_config(nested_values(values))
    if config.data.data_file is None and not config.data.create_synthetic:
        raise UsageError("--data-file is missing: name a list, a folder or shards, or switch --create-synthetic on.")
    data = config.data
    indexed = not (data.create_synthetic or data.streamed)
    if data.data_file and indexed and not is_there(data.data_file):
        raise UsageError(
            f"--data-file: {config.data.data_file} does not exist (searched from {Path.cwd()}); correct the path."
        )
    if config.tune.init is None:
        architecture(config.model, vocab_size=300, end_token=1, context_length=config.data.context_length)
    return config


def nested_values(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Typed values, by `Field.id`, as the sections of a configuration; an empty text is left out."""
    nested: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for field in form_fields():
        value = values.get(field.id)
        if isinstance(value, str):
            value = value.strip() or None
        if value is not None:
            nested[field.section][field.name] = Path(value).expanduser() if field.is_path else value
    return nested
