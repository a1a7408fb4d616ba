"""Fields of the configuration as flags of the command line."""

from typing import Any

# Fields with more than one spelling on the command line; the field's own stays.
SPELLINGS: dict[str, tuple[str, ...]] = {"data_file": ("--data", "--data-file")}


def flag(field: str) -> str:
    """The command-line spelling of a field: `batch_size` -> `--batch-size`."""
    return "--" + field.replace("_", "-")


def spell(field: str, value: Any) -> list[str]:
    """A field with a value, as it is typed: `("augment", False)` -> `["--no-augment"]`."""
    if isinstance(value, bool):
        return [flag(field) if value else flag(f"no_{field}")]
    if isinstance(value, tuple):
        return [flag(field), *map(str, value)]
    return [flag(field), str(value)]
