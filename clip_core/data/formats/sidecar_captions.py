"""A folder of images with a .txt or .caption beside each: every line that is not blank is a caption."""

from pathlib import Path
from typing import Any

from clip_core.data.formats.caption_files import CaptionFiles, hold_boxes, match, read_captions
from clip_core.data.formats.class_folders import NUMBERED
from clip_core.data.formats.collect import Collector
from clip_core.data.formats.source import Contents, Source
from clip_core.errors import DataError
from clip_core.text import printable

SHAPE = "a folder of images with a .txt, .caption or .json of captions beside each"


def detect(source: Source) -> str | None:
    """One image with captions is enough: what folders are called is no caption where captions are."""
    if not source.path.is_dir() or not (source.folder.captions or source.folder.lists):
        return None
    found = match(source.folder)
    if not found.of:
        return None
    if found.in_json == len(found.of):
        return f"{len(found.of):,} of {len(source.folder.images):,} images have a .json with captions beside them"
    where = f"in another folder ({found.apart})" if found.apart else "beside them"
    return f"{len(found.of):,} of {len(source.folder.images):,} images have a file of captions {where}"


def read(source: Source) -> Contents:
    """Every image below the folder; one without captions is a bad pair.

    Raises:
        DataError: if there is no image, or the files hold boxes and no captions.
    """
    folder = source.folder
    root = folder.path
    if not folder.images:
        raise DataError(f"there is no image below {root}; name another folder.")
    found = match(folder)
    if hold_boxes(list(found.of.values())):
        raise DataError(
            f"the .txt of the images in {root} hold numbers, as of object detection, and no captions; "
            "give captions, or --format class-folders if the folders' names are classes."
        )
    collector = Collector(root)
    inside = root.resolve()
    for entry, image in enumerate(folder.images, start=1):
        name = str(image.relative_to(root))
        captions, problem = _captions(image, found.of.get(image), inside)
        collector.add(entry, name, captions, name, problem, folder.split_of(image))
    second = {f"{suffix} of images that have a .txt": count for suffix, count in found.second.items()}
    return Contents(
        collector.pairs,
        root,
        notes=[*folder.notes(), *_notes(root, folder.images, found)],
        not_read=folder.not_read(frozenset(found.of.values()), captions=found.alone) | second,
    )


def _notes(root: Path, images: list[Path], found: CaptionFiles) -> list[str]:
    notes = []
    without = len(images) - len(found.of)
    if without:
        notes.append(f"{without:,} of {len(images):,} images have no captions")
    if found.shared:
        files = "file of captions is" if found.shared == 1 else "files of captions are"
        notes.append(f"{found.shared:,} {files} for two images each, which differ in their suffix only")
    if found.in_json and found.in_json < len(found.of):
        notes.append(f"the captions of {found.in_json:,} images without a .txt are read from the .json beside them")
    if found.apart:
        notes.append(f"captions matched to images by their names in {found.apart}")
    numbered = next((image.parent.name for image in images if NUMBERED.match(image.parent.name)), None)
    if numbered and all(NUMBERED.match(name) for name in {image.relative_to(root).parts[0] for image in images}):
        notes.append(f"the number in front of a folder's name, as in {printable(numbered)}, is ignored")
    return notes


def _captions(image: Path, file: Path | None, inside: Path) -> tuple[list[Any], str | None]:
    if file is None:
        return [], f"there is no {image.stem}.txt beside it"
    if file.is_symlink():
        target = file.resolve()
        # A folder of links has those of an image and of its captions lead to the same place.
        if not target.is_relative_to(inside) and target.parent != image.resolve().parent:
            return [], f"{file.name} leads out of {inside}, and not to where the image is"
    return read_captions(file)
