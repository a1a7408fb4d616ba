"""The pairs of a flags.json that a stream leaves out as they come by, wherever its shards are now.

A pair of a stream is recognised by its shard, the bytes of its image in it, and its caption; a validation image that a
run stored (RUN/validation) by its content and its caption.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from clip_core.config import streamed_pattern
from clip_core.data.image_files import read_content
from clip_core.data.stream.samples import Sample, hash64
from clip_core.data.stream.shard_list import ShardList, shown_url
from clip_core.errors import DataError
from clip_core.run.paths import RunPaths
from clip_core.run.records import Flags
from clip_core.text import plural, printable

_LONGEST = 200  # letters of a member in a path

_Place = tuple[int, int, str]  # offset and size of the image, caption


@dataclass(frozen=True)
class LeftOut:
    """Which pairs of which shards are left out.

    Attributes:
        places: by the number of a shard.
        images: id of the image and caption, of pairs that were flagged as images of a run.
        named: flags of either kind.
        others: flags of other data.
    """

    places: dict[int, frozenset[_Place]] = field(default_factory=dict)
    images: frozenset[tuple[int, str]] = frozenset()
    named: int = 0
    others: int = 0

    @classmethod
    def of(cls, flags: Flags, shards: ShardList) -> "LeftOut":
        """What the flags name of these shards.

        A shard is recognised by its path or URL; one that is not, by its name below the folder that all are in, as it
        may have been moved.
        """
        by_shard: dict[str, set[_Place]] = {}
        images: set[tuple[int, str]] = set()
        others = 0
        for pair in flags.pairs:
            place = place_of(pair.image)
            if place is not None:
                shard, offset, size = place
                by_shard.setdefault(shard, set()).add((offset, size, pair.caption))
            elif (image := _stored_image(Path(pair.image))) is not None:
                images.add((image, pair.caption))
            else:
                others += 1
        places, used = _assigned(by_shard, shards)
        others += sum(len(found) for shard, found in by_shard.items() if shard not in used)
        named = sum(map(len, places.values())) + len(images)
        return cls(places, frozenset(images), named, others)

    def sift(self, shard: int, sample: Sample) -> tuple[Sample, int]:
        """A sample without what is left out, and how many pairs that was."""
        places = self.places.get(shard, frozenset())
        if not (places or self.images):
            return sample, 0
        bad = [] if (sample.offset, sample.size, "") in places else sample.bad  # a pair without a caption
        kept = [
            pair
            for pair in sample.pairs
            if (sample.offset, sample.size, pair.caption) not in places
            and (pair.image_id, pair.caption) not in self.images
        ]
        left = len(sample.pairs) - len(kept) + len(sample.bad) - len(bad)
        return sample._replace(pairs=kept, bad=bad), left

    def sentence(self, file: Path) -> str:
        """What is left out, before it is read."""
        others = f"; {self.others:,} of its flags are of other data" if self.others else ""
        are = "is" if self.named == 1 else "are"
        return f"{plural(self.named, 'pair')} named by {printable(str(file))} {are} left out of the stream{others}"


def place_of(image: str) -> tuple[str, int, int] | None:
    """Shard, offset and size of a member's path, also of a remote shard; None for another path.

    A caption without an image has the path of its shard, and neither.
    """
    if "!/" not in image and image.lower().endswith(".tar"):
        return streamed_pattern(Path(image)) or image, 0, 0
    shard, mark, member = image.rpartition("!/")
    offset, plus, size = member.partition("/")[0].partition("+")
    if not (mark and plus and offset.isdecimal() and size.isdecimal()) or len(member) > _LONGEST:
        return None
    return streamed_pattern(Path(shard)) or shard, int(offset), int(size)


def _stored_image(image: Path) -> int | None:
    """The id of a validation image that a run on a remote stream stored; None for another image."""
    paths = RunPaths(image.parent.parent)
    if image.parent != paths.validation_images or not paths.stream.is_file():
        return None
    try:
        return hash64(read_content(image))
    except (OSError, DataError):
        return None


def _assigned(by_shard: dict[str, set[_Place]], shards: ShardList) -> tuple[dict[int, frozenset[_Place]], set[str]]:
    """The places of each shard by its number, and the flagged shards that were found."""
    by_name: dict[str, list[str]] = {}
    for shard in by_shard:
        by_name.setdefault(PurePosixPath(shard).name, []).append(shard)
    places: dict[int, frozenset[_Place]] = {}
    used: set[str] = set()
    for number, (url, name) in enumerate(zip(shards.urls, shards.names, strict=True)):
        shown = shown_url(url)
        short = shown_url(name)
        alike: Iterable[str] = [shown] if shown in by_shard else by_name.get(PurePosixPath(short).name, ())
        found = [shard for shard in alike if shard == shown or f"/{shard}".endswith(f"/{short}")]
        if found:
            places[number] = frozenset().union(*(by_shard[shard] for shard in found))
            used.update(found)
    return places, used
