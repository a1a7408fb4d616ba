"""What Retrieve and Classify search: validation pairs, training pairs, a folder, a stored gallery."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

from clip_core.config import DataConfig
from clip_core.data.progress import Progress, no_progress
from clip_core.errors import ClipError, DataError, RunError
from clip_core.files import cache_folder
from clip_core.run.reader import RunReader
from clip_core.text import normalise_caption, printable
from clip_tui.commands import near

Pair = tuple[str, str]  # path of the image, caption
Part = Literal["training", "validation"]
Kind = Literal["validation", "training", "folder", "stored"]

_STORED_SHOWN = 12  # the latest ones


@dataclass(frozen=True)
class Place:
    """Where a gallery comes from.

    Attributes:
        path: of a folder or of a stored gallery.
        about: of a stored gallery, the folder of its images.
    """

    kind: Kind = "validation"
    path: Path | None = None
    about: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        named = {"validation": "validation set", "training": "training set"}
        return named.get(self.kind) or printable(
            f"stored gallery of {self.about}" if self.about else f"folder {self.path}"
        )


@dataclass(frozen=True)
class Gallery:
    """Distinct images and distinct captions, in the order of the file.

    `note`: what is missing, and why.
    """

    images: Sequence[str] = ()
    captions: Sequence[str] = ()
    captions_of: Mapping[str, Sequence[str]] = field(default_factory=dict)
    images_of: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by the normalised caption
    note: str | None = None

    def find(self, typed: str) -> str:
        """The image of that path or, if only one has it, that file name; else the path as typed."""
        path = Path(typed).expanduser()
        whole = str(Path.cwd() / path)
        if whole in self.captions_of:
            return whole
        named = [image for image in self.images if Path(image).name == typed]
        return named[0] if len(named) == 1 else str(path)

    def is_image(self, typed: str) -> bool:
        """Whether this names an image of the gallery, or a file."""
        try:
            found = self.find(typed)
            return found in self.captions_of or (len(typed) < 1000 and Path(found).is_file())
        except (OSError, ValueError, RuntimeError):  # a text that no path may be
            return False


def gallery_of(pairs: Iterable[Pair], note: str | None = None) -> Gallery:
    captions_of: dict[str, list[str]] = {}
    captions: dict[str, str] = {}
    images_of: dict[str, list[str]] = {}
    for image, caption in pairs:
        captions_of.setdefault(image, []).append(caption)
        captions.setdefault(normalise_caption(caption), caption)
        images_of.setdefault(normalise_caption(caption), []).append(image)
    return Gallery(tuple(captions_of), tuple(captions.values()), captions_of, images_of, note)


def read_gallery(run: Path, place: Place | None = None, progress: Progress = no_progress) -> Gallery:
    """The gallery of a run at a place; empty, with a note, where it cannot be read.

    Args:
        progress: called with the bytes of a list read so far, and all, from the thread of the caller.
    """
    place = place or Place()
    try:
        if place.kind == "folder" and place.path is not None:
            return _read_folder(place.path, progress)
        if place.kind == "stored" and place.path is not None:
            return _without_captions(_stored(place.path))
    except (ClipError, OSError, ValueError) as error:
        return Gallery(note=printable(str(error)))
    if place.kind == "validation":
        return gallery_of(read_validation(run), damaged_validation(run))
    parts = read_parts(run, _data_of(run), progress)
    return gallery_of(parts.training, parts.note)


def _data_of(run: Path) -> DataConfig | None:
    try:
        return RunReader(run).record().config.data
    except RunError:
        return None


def damaged_validation(run: Path) -> str | None:
    """Why the validation pairs cannot be read; None where they can, or were not written yet."""
    reader = RunReader(run)
    try:
        reader.validation_pairs()
    except RunError as error:
        return printable(str(error)) if reader.paths.validation.exists() else None
    return None


def read_validation(run: Path) -> list[Pair]:
    """The validation pairs of a run; none where there is no valid validation.json yet."""
    try:
        return [(pair.image, pair.caption) for pair in RunReader(run).validation_pairs().pairs]
    except RunError:
        return []


# ---------------------------------------------------------------- training pairs


@dataclass(frozen=True)
class Parts:
    """The pairs of a run; `note` is why the training pairs cannot be read now."""

    training: Sequence[Pair] = ()
    validation: Sequence[Pair] = ()
    note: str | None = None

    def of(self, part: Part) -> Sequence[Pair]:
        return self.training if part == "training" else self.validation


def read_parts(run: Path, data: DataConfig | None, progress: Progress = no_progress) -> Parts:
    """The validation pairs of a run, and the pairs of its list whose image is not among them."""
    validation = read_validation(run)
    if not validation or data is None:
        return Parts((), validation, damaged_validation(run))
    if data.streamed:
        return Parts((), validation, "the training pairs are streamed, so there is no list of them")
    try:
        every = _read_list(data, progress)
    except ClipError as error:
        return Parts((), validation, f"the training pairs cannot be read now: {error}")
    excluded = {image for image, _ in validation}
    folders: dict[Path, Path] = {}  # resolving each folder once is enough, and much faster
    excluded |= {_resolved(image, folders) for image in excluded}
    training = [pair for pair in every if pair[0] not in excluded and _resolved(pair[0], folders) not in excluded]
    return Parts(training, validation)


def _read_list(data: DataConfig, progress: Progress) -> Sequence[Pair]:
    """The valid pairs of the run's data."""
    from clip_core.data.formats.detect import read_data  # not needed for the first frame
    from clip_core.data.formats.source import ReadOptions
    from clip_core.data.splits import split_training

    if data.data_file is None:
        raise DataError("the run does not name its data.")
    reading = read_data(data.data_file, ReadOptions.of(data), progress)
    pairs = split_training(reading.pairs, reading.columns, val_file=data.val_file is not None).train
    return [(str(pair.image), pair.caption) for pair in pairs if pair.problem is None]


def _resolved(image: str, folders: dict[Path, Path]) -> str:
    path = Path(image)
    if path.parent not in folders:
        folders[path.parent] = path.parent.resolve()
    return str(folders[path.parent] / path.name)


# ---------------------------------------------------------------- folders and stored galleries


def _read_folder(folder: Path, progress: Progress) -> Gallery:
    """The images of a folder with their captions where it has some, else the images alone."""
    from clip_core.data.formats.detect import read_data
    from clip_core.data.formats.source import ReadOptions
    from clip_core.data.image_files import list_folder

    if not folder.exists():
        raise DataError(f"{folder} does not exist (searched from {Path.cwd()}); correct the path.")
    try:
        reading = read_data(folder, ReadOptions.of(DataConfig()), progress)
        pairs = [(str(pair.image), pair.caption) for pair in reading.pairs if pair.problem is None]
        if pairs:
            return gallery_of(pairs)
    except ClipError:
        if not folder.is_dir():
            raise
    images = [str(path) for path in list_folder(folder.absolute()).images]
    if not images:
        raise DataError(f"no image is below {folder}; choose another folder.")
    return _without_captions(images)


def _without_captions(images: Sequence[str]) -> Gallery:
    return Gallery(tuple(images), (), {image: [] for image in images})


def stored_galleries() -> list[tuple[Place, str]]:
    """The galleries in the user's cache, latest first, each with a line that says what it holds."""
    from clip_core.inference.gallery_store import INDEX  # needs NumPy, which the first frame does not

    try:
        found = sorted((cache_folder() / "galleries").glob(f"*/{INDEX}"), key=lambda path: -path.stat().st_mtime)
    except OSError:
        return []
    return list(islice(_described(found[: 4 * _STORED_SHOWN]), _STORED_SHOWN))


def _described(found: Iterable[Path]) -> Iterator[tuple[Place, str]]:
    seen: set[tuple[str, ...]] = set()  # each model stores the same images once more
    for index in found:
        try:
            images = _stored(index.parent)
        except (DataError, OSError, ValueError):
            continue
        if images and tuple(images) not in seen:
            seen.add(tuple(images))
            folder = near(Path(os.path.commonpath([str(Path(image).parent) for image in images])))
            yield Place("stored", index.parent, folder), f"{len(images):,} images of {folder}"


def _stored(folder: Path) -> list[str]:
    from clip_core.inference.gallery_store import stored_paths

    return stored_paths(folder)
