"""findings.jsonl of `clip-data check --findings`: every group of pairs with a finding, read a group at a time.

The first line says what was checked and how many of each kind were found. Each other line is one group:

    [1, 1, "2 images", [["/data/a.jpg", "a cat"], ["/data/copy of a.jpg", "a cat"]]]

the place of its kind in the first line, how many of its first pairs stay when the others are left out, a note, pairs.
"""

import hashlib
import json
import re
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from clip_core.config import streamed_pattern
from clip_core.errors import RunError
from clip_core.files import open_regular, replacing
from clip_core.run.paths import images_of
from clip_core.run.records import Record
from clip_core.text import printable

if TYPE_CHECKING:
    from clip_core.data.check import Finding, Group
    from clip_core.data.pairs import Pair

_IMAGE_NAME = re.compile(r"[0-9a-f]{24}\.jpg")
MOST_GROUPS = 100_000  # of a kind that are listed
_LONGEST_LINE = 64 << 20  # bytes


class FoundKind(Record):
    """A kind of finding: see `Finding`."""

    kind: str
    count: int
    text: str
    advice: str
    left_out: bool = False

    @property
    def title(self) -> str:
        return self.kind.replace("_", " ")


class Checked(Record):
    """The first line."""

    data: str
    time: float  # seconds since 1970
    pairs: int
    images: int
    findings: list[FoundKind]


class FoundGroup(NamedTuple):
    """Pairs of one group, image and caption; the first `keep` stay when the others are left out."""

    pairs: Sequence[tuple[str, str]]
    keep: int = 0
    note: str = ""


def image_name(image: str) -> str:
    """The name of a small image in the folder beside, by the path of its pair."""
    return hashlib.blake2b(image.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest() + ".jpg"


def is_image_name(name: str) -> bool:
    """Whether `image_name` may have given it."""
    return _IMAGE_NAME.fullmatch(name) is not None


def write_findings(path: Path, data: str, pairs: Sequence["Pair"], images: int, found: Sequence["Finding"]) -> None:
    """Write every group, at most MOST_GROUPS of a kind; one group is in memory at a time."""
    kinds = [FoundKind(**{name: getattr(one, name) for name in FoundKind.model_fields}) for one in found]
    checked = Checked(data=data, time=round(time.time(), 3), pairs=len(pairs), images=images, findings=kinds)

    def line(number: int, group: "Group") -> str:
        listed = [(pair.path, pair.caption) for pair in (pairs[int(row)] for row in group.rows)]
        return json.dumps([number, group.keep, group.note, listed])  # ASCII: it carries names that are not UTF-8

    with replacing(path) as beside, beside.open("w", encoding="ascii") as out:
        out.write(json.dumps(checked.model_dump()) + "\n")
        for number, finding in enumerate(found):
            if finding.groups is not None:
                out.writelines(line(number, group) + "\n" for group in islice(finding.groups(), MOST_GROUPS))
            else:
                for example in finding.examples:
                    listed = list(zip(example.images, example.captions, strict=False))
                    out.write(json.dumps([number, 0, example.note, listed]) + "\n")


@dataclass
class FindingsFile:
    """A file that was looked through once; its groups are read when they are asked for.

    Attributes:
        lines: for each kind, the byte at which each of its groups begins.
    """

    path: Path
    checked: Checked
    lines: list["array[int]"] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> "FindingsFile":
        """Find where each group begins.

        Raises:
            RunError: if it is no such file.
            OSError: if it cannot be read.
        """
        with open_regular(path) as handle:
            head = handle.readline(_LONGEST_LINE)
            try:
                checked = Checked.model_validate_json(head)
            except ValidationError:
                raise RunError(printable(f"{path.name} is not what clip-data check writes; check again.")) from None
            found = cls(path, checked, [array("Q") for _ in checked.findings])
            place = len(head)
            for line in handle:
                number = line[1 : line.find(b",")]
                if line.endswith(b"\n") and number.isdigit() and len(number) < 6 and int(number) < len(found.lines):
                    found.lines[int(number)].append(place)
                place += len(line)
        return found

    def image(self, image: str) -> Path:
        """Where the image of a pair can be opened: for one of a remote shard, where it was written small."""
        path = Path(image)
        small = images_of(self.path) / image_name(image)
        return small if streamed_pattern(path) is not None and small.is_file() else path

    def group(self, kind: int, place: int) -> FoundGroup:
        """One group of a kind; without pairs, and saying so, where its line is damaged."""
        try:
            with open_regular(self.path) as handle:
                handle.seek(self.lines[kind][place])
                number, keep, note, pairs = json.loads(handle.readline(_LONGEST_LINE))
            listed = [(str(image), str(caption)) for image, caption in pairs]
            if number != kind:
                raise ValueError
            return FoundGroup(listed, min(max(int(keep), 0), len(listed)), str(note))
        except (OSError, ValueError, TypeError, RecursionError):
            return FoundGroup((), 0, f"cannot be read from {self.path.name}; check again")
