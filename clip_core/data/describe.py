"""What was read of a data set, in words: format, columns, example pairs, what was assumed and what was not read."""

from array import array
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from clip_core.config import spelt, streamed_pattern
from clip_core.data.formats.detect import Reading
from clip_core.data.splits import split_counts
from clip_core.text import printable

_EXAMPLES = 3
_CAPTION = 200  # characters of an example
_NAME = 48  # of a name that captions are aligned by
_NOTES = 3  # in one line of a log; clip-data check has them all
Item = TypeVar("Item")


def reading_facts(reading: Reading) -> dict[str, Any]:
    """Format and why, columns, splits, notes, not_read and three examples, for --json."""
    usable = array("Q", (place for place, pair in enumerate(reading.pairs) if pair.problem is None))
    return {
        "format": reading.format,
        "why": reading.why,
        "columns": reading.columns,
        "image_root": spelt(reading.root),
        "splits": split_counts(reading.pairs),
        "notes": reading.notes,
        "not_read": reading.not_read,
        "examples": [
            {"image": reading.pairs[place].path, "caption": reading.pairs[place].caption}
            for place in spread(usable, _EXAMPLES)
        ],
    }


def reading_text(facts: Mapping[str, Any]) -> list[str]:
    """The facts as aligned lines."""
    rows = [("format", f"{facts['format']}: {facts['why']}")]
    rows += [(f"{name}s in", column) for name, column in facts["columns"].items() if name != "split"]
    if facts["splits"]:
        column = facts["columns"].get("split")
        rows.append(("splits", counted(facts["splits"]) + (f", by {column}" if column else "")))
    rows.append(("paths from", facts["image_root"]))
    rows += [("note", note) for note in facts["notes"]]
    if facts["not_read"]:
        rows.append(("not read", counted(facts["not_read"])))
    return [row(label, text) for label, text in [*rows, *_example_rows(facts)]]


def two_lines(reading: Reading) -> tuple[str, str]:
    """The same for a log: format and columns; the first pair, what was assumed and what was not read."""
    columns = ", ".join(f"{name}s in {column}" for name, column in reading.columns.items() if name != "split")
    first = f"{reading.path} read as {reading.format}: {reading.why}{'; ' + columns if columns else ''}."
    pair = next((pair for pair in reading.pairs if pair.problem is None), None)
    parts = [f'first pair {pair.name or pair.image.name} "{printable(pair.caption, 80)}"' if pair else "no usable pair"]
    parts += [note.rstrip(".") for note in islice(reading.notes, _NOTES)]
    if len(reading.notes) > _NOTES:
        parts.append(f"{len(reading.notes) - _NOTES:,} more notes, see clip-data check")
    if reading.not_read:
        parts.append(f"not read: {counted(reading.not_read)}")
    return printable(first), printable(f"{'; '.join(parts)}.")


def counted(counts: Mapping[str, int]) -> str:
    """`4 .heic, 2 .txt without an image`."""
    return ", ".join(f"{count:,} {'without a split' if what == 'none' else what}" for what, count in counts.items())


def _example_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Image and caption of each example, the captions one below the other where no name is too long for that."""
    folder = Path(facts["image_root"])
    root = streamed_pattern(folder) or str(folder.absolute())
    names = [printable(example["image"].removeprefix(f"{root.rstrip('/')}/")) for example in facts["examples"]]
    widest = max(map(len, names), default=0)
    width = widest if widest <= _NAME else 0
    captions = [printable(example["caption"], _CAPTION) for example in facts["examples"]]
    texts = [f"{name:<{width}}  {caption}" for name, caption in zip(names, captions, strict=True)]
    return [("" if number else "examples", text) for number, text in enumerate(texts)]


def row(label: str, text: str) -> str:
    """One aligned line, safe to print."""
    return f"{label:<11} {printable(text)}"


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """A few items from the first to the last."""
    places = [round(step * (len(items) - 1) / max(count - 1, 1)) for step in range(count)] if items else []
    return [items[place] for place in dict.fromkeys(places)]
