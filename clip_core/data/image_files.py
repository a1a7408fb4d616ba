"""Where an image's bytes are: a file, or a member of a tar shard, which is read in place and never extracted.

A member has a path too, so that stores, galleries, probes and lists need not know about shards:

    /photos/00007.tar!/1536+20480/cat.jpg    the 20,480 bytes from byte 1,536 of the shard; the name is for people
"""

import importlib.util
import os
import re
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from clip_core.config import streamed_pattern
from clip_core.errors import ImageError

HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None  # the extra heic
SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
).union(HEIF_SUFFIXES if HAS_HEIF else ())

# Folders of Synology's and QNAP's drives and of archives made by macOS: copies in small of the images beside them, or
# images that were deleted; compared without regard to case.
THUMBNAILS = frozenset({"@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "__macosx"})

_KINDS = (  # first bytes
    (b"\xff\xd8\xff", ".jpg"), (b"\x89PNG", ".png"), (b"GIF8", ".gif"), (b"BM", ".bmp"), (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"), (b"P6", ".ppm"), (b"\0\0\0\x0cjP", ".jp2"),
)  # fmt: skip
_MEMBER = re.compile(r"(?P<shard>.+\.tar)![/\\](?P<offset>\d{1,15})\+(?P<size>\d{1,12})[/\\][^/\\]+", re.DOTALL | re.I)
_HEADER = 512  # bytes of a tar header, right before the member
_MOST_BYTES = 512_000_000  # of a member; a larger one is no image
_MOST_NAME = 80


class Member(NamedTuple):
    """Some bytes of a tar shard."""

    shard: Path
    offset: int
    size: int

    def path(self, name: str) -> Path:
        """Its path; of the member's own name only harmless letters are kept."""
        return Path(member_path(str(self.shard), self.offset, self.size, name))

    def read(self) -> bytes:
        """The member's bytes.

        Raises:
            OSError: if the shard is missing.
            ImageError: if there is no such member in it any more.
        """
        if not self.shard.is_file():
            if (url := streamed_pattern(self.shard)) is not None:
                raise ImageError(f"the image is in the remote shard {url}, which is not opened for it.")
            raise FileNotFoundError
        if self.size > _MOST_BYTES:
            raise ImageError(f"the member of {self.shard} at byte {self.offset} has {self.size:,} bytes; shrink it.")
        with self.shard.open("rb") as handle:
            handle.seek(max(self.offset - _HEADER, 0))
            header, content = handle.read(_HEADER), handle.read(self.size)
        if not _announces(header, self.size) or len(content) != self.size:
            raise ImageError(f"{self.shard} has no member at byte {self.offset}, it has changed; read the list again.")
        return content


def member_path(shard: str, offset: int, size: int, name: str) -> str:
    """The path of a member, also of a shard at a URL, which only `clip-data check` reads again."""
    last = re.sub(r"[^\w.+-]", "_", re.split(r"[/\\]", name)[-1])[-_MOST_NAME:]
    return f"{shard}!/{offset}+{size}/{last if last.strip('._') else 'image'}"


def key_of(name: str) -> str:
    """A member's name up to the first dot behind its folder, as webdataset has it."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def member_of(path: Path) -> Member | None:
    """The member that a path of the form above names; None for the path of a file."""
    found = _MEMBER.fullmatch(str(path)) if ".tar!" in str(path).lower() else None
    return found and Member(Path(found["shard"]), int(found["offset"]), int(found["size"]))


def image_facts(path: Path) -> tuple[int, int]:
    """Bytes and time of change (ns) of an image; a member's are its own size and its shard's time.

    The time is the later of the two that a file has: copying and unpacking may set the content's own back, so that
    another image of the same size would look like the one before it, but not that of its last change on this disk.

    Raises:
        OSError: if the file is missing.
    """
    member = member_of(path)
    facts = (member.shard if member else path).stat()
    return member.size if member else facts.st_size, max(facts.st_mtime_ns, facts.st_ctime_ns)


def is_image_there(path: Path) -> bool:
    """Whether the file, or the shard of a member, exists."""
    member = member_of(path)
    return (member.shard if member else path).is_file()


def read_content(path: Path) -> bytes:
    """The bytes of an image, of a file or of a member.

    Raises:
        OSError: if it is missing or cannot be read.
        ImageError: if it is no file, or the member is no longer there.
    """
    member = member_of(path)
    if member is not None:
        return member.read()
    check_is_file(path)
    if path.stat().st_size > _MOST_BYTES:
        raise ImageError(f"{path} has {path.stat().st_size:,} bytes; shrink it.")
    return path.read_bytes()


def suffix_of_content(content: bytes) -> str:
    """The suffix that fits an image's first bytes; .img for what is none that is known."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    if content[4:8] == b"ftyp":
        return ".avif" if b"avif" in content[8:32] else ".heic"
    return next((suffix for mark, suffix in _KINDS if content.startswith(mark)), ".img")


def check_is_file(path: Path) -> None:
    """Refuse what is not a regular file: a named pipe would be waited for without end."""
    if not path.is_file():
        if path.exists():
            raise ImageError(f"{path} is not a file; give the path of an image.")
        raise FileNotFoundError


class FolderListing(NamedTuple):
    """What one walk through a folder found.

    Attributes:
        images: every image by suffix, sorted.
        folders: each folder that was read, with the time of its last change (ns) before it was read.
        left_out: hidden images, and folders that are hidden or hold thumbnails, in no order.
    """

    images: list[Path]
    folders: dict[str, int]
    left_out: list[Path]


def list_folder(folder: Path) -> FolderListing:
    """The images below a folder.

    Hidden files and folders, linked folders, and the thumbnails and recycled files of network drives are left out.
    """
    listing = FolderListing([], {}, [])
    for place, folders, names in os.walk(folder):
        with suppress(OSError):
            listing.folders[place] = os.stat(place).st_mtime_ns  # noqa: PTH116
        hidden = [name for name in folders if name.startswith(".") or name.casefold() in THUMBNAILS]
        listing.left_out.extend(Path(place, name) for name in hidden)
        folders[:] = [name for name in folders if name not in hidden]
        for name in names:
            if os.path.splitext(name)[1].lower() in SUFFIXES:  # noqa: PTH122
                (listing.left_out if name.startswith(".") else listing.images).append(Path(place, name))
    listing.images.sort()
    return listing


def _announces(header: bytes, size: int) -> bool:
    """Whether this is the header of a file of so many bytes."""
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return info.isfile() and info.size == size
