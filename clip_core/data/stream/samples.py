"""The pairs of a tar shard as they come by: one sample after the other, in bounded memory, nothing ever unpickled.

Members of a sample follow each other, as webdataset writes them; in an indexed shard (formats/shard.py) they may lie
anywhere. What belongs together is otherwise decided as there: by the name up to its first dot, or to its last one where
names have dots of their own.
"""

import hashlib
import io
import os
import tarfile
from collections import Counter
from collections.abc import Generator, Iterator
from typing import IO, Any, NamedTuple, cast

from clip_core.data.formats.captions import clean_caption
from clip_core.data.formats.shard import (
    DAMAGED_TAR,
    MemberInfo,
    Part,
    chosen,
    next_archive,
    part_of,
    without_image_suffix,
)
from clip_core.data.stream.source import ShardError, Source
from clip_core.text import normalise_caption, printable

BUFFER = 1 << 20  # bytes that a shard is read ahead by, beside what its protocol does
_BLOCK = 512
MOST_IMAGE = 64_000_000  # bytes
_MOST_MEMBERS = 64  # of a sample
_NO_PATH = cast(Any, None)  # a streamed image has no place of its own in a file system


class Reference(NamedTuple):
    """Where a pair is, so that a checkpoint need not hold it: its sample's bytes in a shard, and which caption."""

    shard: int
    start: int
    end: int
    caption: int


class StreamedPair(NamedTuple):
    """A pair; two of them match if their ids of either kind are the same, as the ids are hashes of the contents."""

    reference: Reference
    name: str  # of the image in its shard
    image: bytes
    caption: str
    image_id: int
    caption_id: int
    captions: tuple[str, ...] = ()  # of its sample, where there are several


class Sample(NamedTuple):
    """What members that belong together give: pairs, or the reason why there are none.

    Attributes:
        start, end: the bytes from the header of the first member to the last member's end, padded.
        offset, size: of the image's own bytes in the shard; 0 without an image.
        bad: what is wrong with captions, or with the whole sample.
    """

    start: int
    end: int
    name: str
    offset: int
    size: int
    pairs: list[StreamedPair]
    bad: list[str]


class Tail(NamedTuple):
    """How a shard ends: the byte behind its last member, which is the shard's own end where the empty blocks of a whole
    tar are missing; and the byte of what follows such blocks and is no archive, 0 where nothing does."""

    end: int
    behind: int


class _Member(NamedTuple):
    part: Part
    start: int
    end: int
    offset: int
    size: int
    content: bytes | None  # of an image; None for one that is too large


def read_samples(source: Source, shard: int, ignored: Counter[str]) -> Generator[Sample, None, "Tail"]:
    """Every sample from the source's position on.

    Args:
        shard: its number, for the references.
        ignored: is added to: members that are neither image nor caption, by suffix.
    Returns:
        how the shard ends.
    Raises:
        ShardError: if the shard is no whole, uncompressed tar file, or cannot be read.
    """
    handle = io.BufferedReader(source, BUFFER)
    start: int | None = source.tell()
    end, behind = source.tell(), 0
    try:
        while start is not None:
            end = start
            with tarfile.open(fileobj=handle, mode="r:", tarinfo=MemberInfo, errors="surrogateescape") as tar:
                try:
                    yield from _samples(tar, handle, shard, ignored)
                finally:
                    end = tar.offset
            start, behind = next_archive(handle, end)
            if behind:
                ignored[f"bytes after the end of {printable(source.url, 60)}"] += max((source.size or 0) - behind, 1)
            if start is not None:
                handle.seek(start)
    except DAMAGED_TAR as error:
        end = end if source.size is None else min(end, source.size)  # where it is cut off, the end that was announced
        place = "" if "at byte" in str(error) else f" at byte {end:,}"
        why = f"it is not a whole, uncompressed tar file: {error}{place}"
        raise ShardError(source.url, why, place=end) from None
    return Tail(end, behind)


def read_pair(content: bytes, reference: Reference) -> StreamedPair | None:
    """A pair from the bytes of its sample; None if it is no longer there."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:", tarinfo=MemberInfo, errors="surrogateescape") as tar:
            found = list(_samples(tar, tar.fileobj, reference.shard, Counter()))
    except DAMAGED_TAR:
        return None
    pairs = [pair for sample in found for pair in sample.pairs if pair.reference.caption == reference.caption]
    return pairs[0]._replace(reference=reference) if pairs else None


def _samples(tar: tarfile.TarFile, handle: IO[bytes] | Any, shard: int, ignored: Counter[str]) -> Iterator[Sample]:
    together: list[_Member] = []
    while (info := tar.next()) is not None:
        cast(Any, tar).members = []  # a shard has many, and each is looked at once
        member = _member(tar, handle, info, ignored)
        if member is None:
            continue
        if together and _begins_another([one.part for one in together], member.part):
            yield _sample(together, shard, ignored)
            together = []
        together.append(member)
    if together:
        yield _sample(together, shard, ignored)


def _member(tar: tarfile.TarFile, handle: IO[bytes], info: tarfile.TarInfo, ignored: Counter[str]) -> _Member | None:
    """An image or a caption, read; None for anything else, which is counted."""
    if not info.isfile() or info.issparse():
        if not info.isdir():
            ignored["links and devices"] += 1
        return None
    part = part_of(tar, _NO_PATH, info)
    if part is None:
        last = os.path.basename(info.name)  # noqa: PTH119  (a name in an archive)
        if not last.startswith("."):
            suffix = os.path.splitext(last)[1].lower()  # noqa: PTH122
            ignored[printable(suffix, 20) or "members without a suffix"] += 1
        return None
    content = None
    if part.image and info.size <= MOST_IMAGE:
        handle.seek(info.offset_data)
        content = handle.read(info.size)
        if len(content) != info.size:
            raise tarfile.ReadError("unexpected end of data")
    end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK
    return _Member(part, info.offset, end, info.offset_data, info.size, content)


def _begins_another(together: list[Part], part: Part) -> bool:
    """Whether a member begins another sample than those before it are of."""
    if part.first_key != together[0].first_key or len(together) >= _MOST_MEMBERS:
        return True
    if any((other.middle, other.suffix) == (part.middle, part.suffix) for other in together):
        return True  # a kind that comes again
    middles = {without_image_suffix(other.middle) for other in together}
    middle = without_image_suffix(part.middle)
    if not middle or "" in middles or middle in middles:
        return False
    return any(letter.isdigit() for letter in middle + "".join(middles))  # 2023.01.05 and 2023.01.06


def _sample(together: list[_Member], shard: int, ignored: Counter[str]) -> Sample:
    image, caption, more = chosen(member.part for member in together)
    if more:
        ignored["images and captions beyond the first of their key"] += more
    start, end = together[0].start, together[-1].end
    if image is None:
        name = together[0].part.name
        return Sample(start, end, name, 0, 0, [], ["it has a caption and no image beside it in the shard"])
    member = next(member for member in together if member.part is image)
    bad: list[str] = []
    pairs: list[StreamedPair] = []
    if member.content is None:
        bad.append(f"its image has more than {MOST_IMAGE:,} bytes")
    elif caption is None:
        bad.append("it has no .txt or .json with a caption beside it in the shard")
    else:
        image_id = hash64(member.content)
        values = caption.caption if isinstance(caption.caption, list) else [caption.caption]
        for number, value in enumerate(values or [""]):
            text, mistake = clean_caption(value)
            if mistake := caption.problem or mistake:
                bad.append(mistake)
            else:
                reference = Reference(shard, start, end, number)
                pairs.append(StreamedPair(reference, image.name, member.content, text, image_id, caption_id(text)))
        if len(pairs) > 1:
            captions = tuple(pair.caption for pair in pairs)
            pairs = [pair._replace(captions=captions) for pair in pairs]
    return Sample(start, end, image.name, member.offset, member.size, pairs, bad)


def caption_id(text: str) -> int:
    """The same for captions that count as the same."""
    return hash64(normalise_caption(text).encode("utf-8", "surrogateescape"))


def hash64(content: bytes) -> int:
    """A signed number of 64 bits; that of two contents is the same by chance once in 10^19."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)
