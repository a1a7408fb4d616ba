"""What stands on the stack of the pickle machine: descriptions in place of values."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from clip_core.model.pickle_names import Role


class Name(NamedTuple):
    """A class or function that the pickle names; it is never looked up here."""

    module: str
    name: str
    role: Role

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Storage(NamedTuple):
    """A flat array of a file: the name of its type, as `FloatStorage`, its key in the file, its elements."""

    kind: str
    key: str
    elements: int


class Layout(NamedTuple):
    """A tensor: its storage and its place in it, offset and stride in elements; `dtype` where the storage has none."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str = ""


@dataclass(slots=True, eq=False)
class Made:
    """Anything else on the stack: what it is, and how deep it is nested.

    `items`: of a tuple or a list. `entries`: of a dict, by its keys that are text or whole numbers; the attributes of a
    module. `layout`: of a tensor. `named`: the class of an object.
    """

    kind: str
    depth: int = 0
    items: list[Any] = field(default_factory=list)
    entries: dict[str | int, Any] = field(default_factory=dict)
    layout: Layout | None = None
    named: str = ""


class Checked(NamedTuple):
    """The value of a pickle (text, number, Name, Storage or Made), and every storage that it mentions, by key."""

    value: Any
    storages: dict[str, Storage]
