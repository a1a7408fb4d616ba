"""What lies in a data folder: one walk, in which each file is taken, counted as not read, or hidden.

Links are followed to regular files and to folders that are not read already, so that folders of links and the
snapshots of huggingface_hub are read; loops and devices are not. Runs, bundles and caches in the folder are no data.
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from clip_core.data.image_files import HAS_HEIF, HEIF_SUFFIXES, SUFFIXES
from clip_core.errors import DataError
from clip_core.run.paths import MANIFEST, is_run
from clip_core.text import printable

if TYPE_CHECKING:
    from clip_core.data.formats.caption_files import CaptionFiles

CAPTION_SUFFIXES = (".txt", ".caption")  # the first is taken where an image has both
LIST_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"})
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # as Hugging Face's ImageFolder names them
SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip

_TRIFLES = frozenset({"thumbs.db", "desktop.ini"})
_CACHES = frozenset({"__pycache__", "__macosx", "@eadir", "cache", "caches"})
_CACHE_TAG = "CACHEDIR.TAG"
_MOST_KINDS = 12  # of other files, counted each


@dataclass
class Folder:
    """The files below a folder, each list sorted."""

    path: Path
    images: list[Path] = field(default_factory=list)
    captions: list[Path] = field(default_factory=list)
    lists: list[Path] = field(default_factory=list)  # among them metadata.csv
    others: Counter[str] = field(default_factory=Counter)  # files of other kinds, by suffix
    left_alone: Counter[str] = field(default_factory=Counter)  # folders and links, in words
    links: int = 0  # that were followed
    matched: "CaptionFiles | None" = None  # the captions of the images, once they were looked for

    @cached_property
    def metadata(self) -> list[Path]:
        return [file for file in self.lists if file.name.lower() in METADATA]

    @cached_property
    def split_level(self) -> int | None:
        """0 in train/cat/1.jpg, 1 in cat/train/1.jpg: where every image is below a folder called train, val or test."""
        names: tuple[set[str], set[str]] = set(), set()
        for place in {os.path.dirname(image) for image in self.images}:  # noqa: PTH120  (much faster)
            parts = Path(place).relative_to(self.path).parts
            for level in (0, 1):
                names[level].add(parts[level].casefold() if level < len(parts) else "")
        return next((level for level in (0, 1) if names[level] and names[level] <= SPLITS.keys()), None)

    def split_of(self, file: Path) -> str | None:
        """The split that a file in a folder with splits belongs to."""
        if self.split_level is None:
            return None
        return SPLITS.get(file.relative_to(self.path).parts[self.split_level].casefold())

    def not_read(self, taken: frozenset[Path] = frozenset(), captions: int = 0, images: int = 0) -> dict[str, int]:
        """What was left out, in words.

        Args:
            taken: the lists that were read.
            captions: files of captions that were not.
            images: images that lie in no folder of a class.
        """
        kinds = self.others + Counter(file.suffix.lower() for file in self.lists if file not in taken)
        most = kinds.most_common(_MOST_KINDS)
        rest = kinds.total() - sum(count for _, count in most)
        counts = dict(most) | ({"other files": rest} if rest else {}) | dict(self.left_alone)
        extra = {"images in no class folder": images, "files of captions without an image": captions}
        return {words: count for words, count in extra.items() if count} | counts

    def notes(self) -> list[str]:
        """What a reader of any folder says."""
        notes = []
        if self.links:
            are = "1 link is" if self.links == 1 else f"{self.links:,} links are"
            notes.append(f"{are} followed")
        heif = sum(self.others[suffix] for suffix in HEIF_SUFFIXES)
        if heif and not HAS_HEIF:
            notes.append(f"{heif:,} HEIC images need pillow-heif: pip install 'clip-tui[heic]'")
        if self.split_level is not None:
            counts = Counter(str(self.split_of(image)) for image in self.images)
            said = ", ".join(f"{name} ({count:,} images)" for name, count in counts.items())
            notes.append(f"splits by the folders' names: {said}")
        return notes


def scan(path: Path) -> Folder:
    """Every file below a folder; hidden ones are left out.

    Raises:
        DataError: if the folder cannot be read.
    """
    folder = Folder(path)
    try:
        seen = {_identity(place) for place in (path.resolve(), *path.resolve().parents)}
        with os.scandir(path):
            pass
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); give a readable folder.") from None
    folders: list[Path] = [path]
    linked: list[Path] = []
    while folders or linked:
        # Folders before links to folders: what is below the folder itself is read where it lies.
        place = folders.pop() if folders else linked.pop()
        try:
            if place != path:
                identity = _identity(place)
                if identity in seen:
                    folder.left_alone["linked folders that are above, or read already"] += 1
                    continue
                seen.add(identity)
                folder.links += place.is_symlink()
            with os.scandir(place) as found:
                entries = [entry for entry in found if not entry.name.startswith(".")]
        except OSError:
            folder.left_alone["folders that cannot be read"] += 1
            continue
        kind = _kind(place, {entry.name for entry in entries}) if place != path else None
        if kind is not None:
            folder.left_alone[f"{kind} ({printable(place.relative_to(path).as_posix(), 60)})"] += 1
            continue
        for entry in entries:
            if _is(entry.is_dir):
                (linked if entry.is_symlink() else folders).append(place / entry.name)
            else:
                _take(folder, place, entry)
    for files in (folder.images, folder.captions, folder.lists):
        files.sort()
    return folder


def hub_snapshot(path: Path) -> Path:
    """The snapshot in a repository of huggingface_hub's cache; the path itself if it is none.

    Raises:
        DataError: naming the snapshots, if there are several and none is called main.
    """
    if not ((path / "snapshots").is_dir() and (path / "blobs").is_dir()):
        return path
    found = sorted(item for item in (path / "snapshots").iterdir() if item.is_dir())
    if len(found) == 1:
        return found[0]
    main = path / "refs" / "main"
    named = main.read_text(encoding="utf-8", errors="replace").strip() if main.is_file() else ""
    chosen = next((item for item in found if item.name == named), None)
    if chosen is None:
        names = " or ".join(str(item) for item in found[:5]) or "none"
        raise DataError(f"{path} is a hub cache with {len(found):,} snapshots; name one: {names}.")
    return chosen


def _take(folder: Folder, place: Path, entry: os.DirEntry[str]) -> None:
    if entry.name.lower() in _TRIFLES:
        return
    if not _is(entry.is_file):
        link = entry.is_symlink()
        folder.left_alone["links that lead to no file" if link else "devices, pipes and sockets"] += 1
        return
    suffix = PurePath(entry.name).suffix.lower()
    if suffix in SUFFIXES:
        folder.images.append(place / entry.name)
    elif suffix in CAPTION_SUFFIXES:
        folder.captions.append(place / entry.name)
    elif suffix in LIST_SUFFIXES:
        folder.lists.append(place / entry.name)
    else:
        folder.others[suffix or "files without a suffix"] += 1
        return
    folder.links += entry.is_symlink()


def _kind(place: Path, names: set[str]) -> str | None:
    """Why a folder is no data, from the names in it; None if it may be."""
    if "checkpoints" in names and is_run(place):
        return "a run directory"
    if MANIFEST in names and "onnx" in names:
        return "a bundle"
    if _CACHE_TAG in names or place.name.lower() in _CACHES:
        return "a cache"
    return None


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link to itself
        return False


def _identity(place: Path) -> tuple[int, int]:
    facts = place.stat()
    return facts.st_dev, facts.st_ino
