"""The samples of one tar shard: which image belongs to which caption.

Members of a sample share a key, the name up to its first dot, as in webdataset; where names have dots of their own
(2023.01.05.jpg) the key goes to the last one. A key that comes again, as in shards that were joined, is another
sample if its image and caption follow each other; else it is left out: an image never gets the caption of another.
"""

import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, Self, cast

from clip_core.data.formats.caption_files import CAPTION_KEYS, MOST_BYTES, decode_text
from clip_core.data.formats.folder import CAPTION_SUFFIXES
from clip_core.data.image_files import SUFFIXES, Member
from clip_core.errors import DataError
from clip_core.text import printable

DAMAGED_TAR = (tarfile.TarError, ValueError, OverflowError)  # tarfile takes what a header says for a number
_BLOCK = 512
_CHUNK = 2048 * _BLOCK
_EXTENDED = (b"x", b"g", b"X", b"L", b"K")  # pax and GNU
_MOST_EXTENDED = 1 << 20  # bytes


class MemberInfo(tarfile.TarInfo):
    """The header of a member; for ordinary files only what is used is parsed, a third of the time."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if len(buf) == _BLOCK and buf[156:157] in _EXTENDED:  # whose content is read whole, for a name
            info = super().frombuf(buf, encoding, errors)
            if info.size > _MOST_EXTENDED:
                raise tarfile.InvalidHeaderError(f"an extended header of {info.size:,} bytes")  # type: ignore[attr-defined]
            return info
        plain = len(buf) == _BLOCK and buf[156] in b"0\0" and buf[124] < 0x80
        name, prefix = (bytes(part).partition(b"\0")[0] for part in (buf[:100], buf[345:500]))
        if not plain or not name or name.endswith(b"/"):
            return super().frombuf(buf, encoding, errors)
        try:
            checksum, size = (int(bytes(part).strip(b" \0"), 8) for part in (buf[148:156], buf[124:136]))
        except ValueError:
            return super().frombuf(buf, encoding, errors)
        if size < 0 or checksum != sum(buf) - sum(buf[148:156]) + 8 * ord(" "):
            return super().frombuf(buf, encoding, errors)
        info = cls((prefix + b"/" + name if prefix else name).decode(encoding, errors))
        info.size = size
        return info


class Part(NamedTuple):
    """A member that is an image or a caption; its name is folder/stem.middle.suffix."""

    name: str
    folder: str
    stem: str
    middle: str
    suffix: str  # lower case, with its dot
    image: Member | None
    caption: object = None
    problem: str | None = None

    @property
    def first_key(self) -> str:
        """The name up to its first dot."""
        return f"{self.folder}/{self.stem}" if self.folder else self.stem

    @property
    def last_key(self) -> str:
        """The name up to its last dot; that of 1.jpg.txt is that of 1.jpg."""
        middle = self.middle if self.image else without_image_suffix(self.middle)
        return f"{self.first_key}.{middle}" if middle else self.first_key


class Sample(NamedTuple):
    key: str
    image: Part | None
    caption: Part | None
    repeat: int  # 1, or more for a key that comes again


@dataclass
class Shard:
    """What a shard holds."""

    path: Path
    samples: list[Sample] = field(default_factory=list)
    archives: int = 0
    at_last_dot: bool = False
    repeated: list[str] = field(default_factory=list)  # keys that come again
    not_read: Counter[str] = field(default_factory=Counter)


def read_shard(path: Path) -> Shard:
    """Every sample, in the order of the images.

    Raises:
        DataError: if the shard is no tar file, compressed or damaged.
    """
    shard = Shard(path)
    try:
        with path.open("rb") as handle:
            start: int | None = 0
            while start is not None:
                handle.seek(start)
                with tarfile.open(fileobj=handle, mode="r:", tarinfo=MemberInfo, errors="surrogateescape") as tar:
                    _group(shard, list(_parts(tar, shard)))
                    end = tar.offset
                shard.archives += 1
                start, behind = next_archive(handle, end)
                if behind:
                    size = os.fstat(handle.fileno()).st_size
                    shard.not_read[f"bytes after the end of {printable(path.name, 60)}"] += size - behind
    except DAMAGED_TAR as error:
        raise DataError(f"{path} is not a whole, uncompressed tar file ({error}); unpack or fetch it again.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); fetch it again.") from None
    return shard


# ---------------------------------------------------------------- members


def _parts(tar: tarfile.TarFile, shard: Shard) -> Iterator[Part]:
    """The members that are images or captions; the others are counted."""
    while (member := tar.next()) is not None:
        if member.isfile() and not member.issparse():
            part = part_of(tar, shard.path, member)
            if part is not None:
                yield part
            elif not os.path.basename(member.name).startswith("."):  # noqa: PTH119  (a name in an archive)
                suffix = os.path.splitext(member.name)[1].lower()  # noqa: PTH122
                shard.not_read[printable(suffix, 20) or "members without a suffix"] += 1
        elif not member.isdir():
            shard.not_read["links and devices in shards"] += 1
        cast(Any, tar).members = []  # a shard has many, and each is looked at once


def part_of(tar: tarfile.TarFile, shard: Path, member: tarfile.TarInfo) -> Part | None:
    """A member as an image or a caption, which is read; None for any other."""
    folder, _, last = member.name.rpartition("/")
    stem, _, extension = last.partition(".")
    middle, _, suffix = extension.rpartition(".")
    suffix = "." + suffix.lower()
    if not stem:
        return None
    if suffix in SUFFIXES:
        place = Member(shard, member.offset_data, member.size)
        return Part(member.name, folder, stem, middle, suffix, place)
    if suffix in CAPTION_SUFFIXES or suffix == ".json":
        return Part(member.name, folder, stem, middle, suffix, None, *_caption(tar, member, suffix))
    return None


def _caption(tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> tuple[object, str | None]:
    """The caption of a .txt, or of a .json under a known key; and what is wrong with it."""
    content = tar.extractfile(member)
    if member.size > MOST_BYTES or content is None:
        return "", f"its caption has {member.size:,} bytes"
    try:
        text = decode_text(content.read())
        if suffix != ".json":
            return " ".join(text.split()), None
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "", f"its {suffix} is not {'JSON' if suffix == '.json' else 'text in UTF-8'}"
    known = next((value[key] for key in CAPTION_KEYS if key in value), None) if isinstance(value, dict) else value
    return known, None


def next_archive(handle: IO[bytes], end: int) -> tuple[int | None, int]:
    """Where another archive begins behind the zeros that end one, and where something else does (0: nowhere).

    The first is None at the end of the file.

    Raises:
        tarfile.ReadError: if the archive does not end here (tarfile takes a damaged header for its end).
    """
    handle.seek(end)
    if handle.read(_BLOCK).strip(b"\0"):
        raise tarfile.ReadError(f"damaged at byte {end:,}")
    place = handle.tell()
    while chunk := handle.read(_CHUNK):
        if left := len(chunk.lstrip(b"\0")):
            before = (len(chunk) - left) // _BLOCK * _BLOCK
            header, place = chunk[before : before + _BLOCK], place + before
            header += handle.read(_BLOCK - len(header))
            try:
                tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                return None, place
            return place, 0
        place += len(chunk)
    return None, 0


# ---------------------------------------------------------------- samples


def _group(shard: Shard, parts: list[Part]) -> None:
    """Add the samples that the members of one archive make up."""
    at_last_dot = _names_have_dots(parts)
    shard.at_last_dot |= at_last_dot
    by_key: dict[str, list[tuple[int, Part]]] = {}
    for place, part in enumerate(parts):
        by_key.setdefault(part.last_key if at_last_dot else part.first_key, []).append((place, part))
    earlier = Counter(sample.key for sample in shard.samples)
    found: list[tuple[int, Sample]] = []
    for key, members in by_key.items():
        if not at_last_dot and _mismatched([part for _, part in members]):
            shard.not_read["images and captions whose names differ after the first dot"] += len(members)
            continue
        segments, left = _segments(members)
        if left:
            shard.not_read["members of keys that come again, with no image and caption in a row"] += left
        if left or len(segments) > 1 or key in earlier:
            shard.repeated.append(key)
        for number, segment in enumerate(segments, start=1 + earlier[key]):
            image, caption, more = chosen(part for _, part in segment)
            if more:
                shard.not_read["images and captions beyond the first of their key"] += more
            if image or caption:
                found.append((segment[0][0], Sample(key, image, caption, number)))
    shard.samples += [sample for _, sample in sorted(found, key=lambda item: item[0])]


def _segments(members: list[tuple[int, Part]]) -> tuple[list[list[tuple[int, Part]]], int]:
    """The members of one key as samples, and how many belong to none.

    They are one sample if no kind of member comes twice. Else each is a run of members in a row.
    """
    kinds = [(part.middle, part.suffix) for _, part in members]
    runs = _runs(members)
    images = sum(part.image is not None for _, part in members)
    if len(set(kinds)) == len(kinds) and (images <= 1 or len(runs) == 1):
        cut = _cut(members)
        return (cut if len(cut) > 1 and all(map(_is_whole, cut)) else [members]), 0
    segments: list[list[tuple[int, Part]]] = []
    left = 0
    for run in runs:
        cut = _cut(run)
        if all(map(_is_whole, cut)):
            segments += cut
        else:  # the image of such captions is ambiguous
            left += len(run)
    return segments, left


def _runs(members: list[tuple[int, Part]]) -> list[list[tuple[int, Part]]]:
    """Members that follow each other in the shard."""
    runs: list[list[tuple[int, Part]]] = []
    for member in members:
        if runs and member[0] == runs[-1][-1][0] + 1:
            runs[-1].append(member)
        else:
            runs.append([member])
    return runs


def _cut(run: list[tuple[int, Part]]) -> list[list[tuple[int, Part]]]:
    """A run cut where a kind of member, or after a caption another image, comes again."""
    cut: list[list[tuple[int, Part]]] = []
    for place, part in run:
        now = [other for _, other in cut[-1]] if cut else []
        again = any((other.middle, other.suffix) == (part.middle, part.suffix) for other in now)
        same_view = any(other.image and other.middle == part.middle for other in now)
        if not cut or again or (part.image and same_view and any(not other.image for other in now)):
            cut.append([])
        cut[-1].append((place, part))
    return cut


def _is_whole(segment: list[tuple[int, Part]]) -> bool:
    return any(part.image for _, part in segment) and any(part.caption is not None for _, part in segment)


def chosen(parts: Iterable[Part]) -> tuple[Part | None, Part | None, int]:
    """The image and the caption of a sample, and how many more of either it has.

    A .txt goes before a .json, unless that lists several captions of which the .txt has the first.
    """
    members = list(parts)
    images = [part for part in members if part.image]
    captions = [part for part in members if not part.image and part.caption is not None]
    order = (*CAPTION_SUFFIXES, ".json")
    captions.sort(key=lambda part: (order.index(part.suffix), bool(part.middle)))
    if captions:  # of several views, the one that is captioned
        images.sort(key=lambda part: part.middle != captions[0].middle)
    more = max(len(images) - 1, 0) + sum(part.suffix != ".json" for part in captions[1:])
    listed = next((part for part in captions[1:] if _lists(part, captions[0])), None)
    return (images[0] if images else None), listed or (captions[0] if captions else None), more


def _lists(part: Part, first: Part) -> bool:
    """Whether a .json has a list of captions that begins with the one of a .txt, which has no line breaks."""
    values = part.caption if part.suffix == ".json" and part.middle == first.middle else None
    return isinstance(values, list) and bool(values) and " ".join(str(values[0]).split()) == first.caption


def _names_have_dots(parts: list[Part]) -> bool:
    """Whether keys to the first dot throw different files together, and keys to the last one do not lose as many."""
    if not any(part.middle for part in parts):
        return False
    first: dict[str, list[Part]] = {}
    last: dict[str, list[Part]] = {}
    for part in parts:
        first.setdefault(part.first_key, []).append(part)
        last.setdefault(part.last_key, []).append(part)
    if not any(map(_thrown_together, first.values())):
        return False
    pairs = [
        sum(any(part.image for part in group) and any(not part.image for part in group) for group in groups)
        for groups in ([group for group in first.values() if not _mismatched(group)], last.values())
    ]
    return pairs[1] >= pairs[0]


def _thrown_together(group: list[Part]) -> bool:
    return len({part.middle for part in group if part.image}) > 1 or _mismatched(group)


def _mismatched(group: list[Part]) -> bool:
    """Whether the image and the caption have different numbers in the middle of their names: 2023.01 and 2023.02."""
    images = {part.middle for part in group if part.image}
    captions = {without_image_suffix(part.middle) for part in group if not part.image}
    if not images or not captions or images & captions or "" in captions or "" in images:
        return False
    return any(letter.isdigit() for middle in images | captions for letter in middle)


def without_image_suffix(middle: str) -> str:
    """The middle of 2023.01.jpg.txt as that of 2023.01.jpg."""
    rest, _, last = middle.rpartition(".")
    return rest if f".{last.lower()}" in SUFFIXES else middle
