"""Any data set written as the plain pair list, with or without copies of its images."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_core.data.formats.detect import Reading
from clip_core.data.image_files import SUFFIXES, member_of
from clip_core.errors import DataError, ImageError, UsageError
from clip_core.files import write_json
from clip_core.text import printable


@dataclass(frozen=True)
class Converted:
    """What was written: `image_root` is where the list's paths start from, if not beside the list."""

    out: Path
    pairs: int
    images: int
    left_out: int
    image_root: Path | None

    def sentence(self) -> str:
        text = f"wrote {self.pairs:,} pairs of {self.images:,} images to {self.out}"
        text += f", without {self.left_out:,} unusable" if self.left_out else ""
        if self.image_root is None:
            return f"{text}."
        return f"{text}; its paths start from {self.image_root}: use it with --image-root {self.image_root}."


def convert(reading: Reading, out: Path, *, copy_images: bool = False) -> Converted:
    """Write the usable pairs of a data set as a pair list; the list comes last, so an existing one is complete.

    Args:
        reading: what to write; nothing of it is decoded.
        out: the list to write.
        copy_images: copy the images, byte for byte, into a folder beside the list.
    Raises:
        UsageError: if the list exists, or the images are in shards and are not copied.
        DataError: if no pair is usable, or an image cannot be copied.
    """
    if out.exists():
        raise UsageError(f"{out} is already there; give another name, or delete it.")
    pairs = [pair for pair in reading.pairs if pair.problem is None]
    if not pairs:
        raise DataError(f"{reading.path} holds no usable pair, first {reading.pairs[0].problem}; nothing is written.")
    if not copy_images and any(member_of(pair.image) for pair in pairs):
        raise UsageError(f"the images of {reading.path} are in shards; add --copy-images.")
    captions: dict[Path, list[str]] = {}
    splits: dict[Path, str | None] = {}
    for pair in pairs:
        captions.setdefault(pair.image, []).append(pair.caption)
        splits.setdefault(pair.image, pair.split)
    folder, root = out.parent, None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if copy_images:
            names = _copy(list(captions), folder, f"{out.stem}_images")
        else:
            names, root = _relative(list(captions), folder.resolve(), reading)
        entries = zip(names, captions.values(), splits.values(), strict=True)
        write_json(out, [_entry(name, texts, split) for name, texts, split in entries])
    except OSError as error:
        raise DataError(f"{error.filename or out} cannot be written ({error.strerror}); give another path.") from None
    return Converted(out, len(pairs), len(names), len(reading.pairs) - len(pairs), root)


def _entry(name: str, texts: list[str], split: str | None) -> dict[str, Any]:
    entry = {"image": name, "caption": texts[0] if len(texts) == 1 else texts}
    return entry | ({"split": split} if split else {})


def _relative(images: list[Path], folder: Path, reading: Reading) -> tuple[list[str], Path | None]:
    """Names below the list's own folder if all images are, else below the folder that the data set starts from."""
    own = os.path.commonpath([folder, *(image.parent.resolve() for image in images)]) == str(folder)
    root = folder if own else reading.root.resolve()
    names = [(image.parent.resolve() / image.name).relative_to(root).as_posix() for image in images]
    return names, None if own else reading.root.absolute()


def _copy(images: list[Path], folder: Path, name: str) -> list[str]:
    """Copies numbered in order: the names of shards and strangers are not to be trusted."""
    (folder / name).mkdir(exist_ok=True)
    names = []
    for number, image in enumerate(images):
        suffix = image.suffix.lower()
        names.append(f"{name}/{number:06d}{suffix if suffix in SUFFIXES else '.img'}")
        member = member_of(image)
        try:
            content = member.read() if member else image.read_bytes()
        except (OSError, ImageError) as error:
            raise DataError(f"{printable(str(image))} cannot be copied ({error}); clip-data check names all.") from None
        (folder / names[-1]).write_bytes(content)
    return names
