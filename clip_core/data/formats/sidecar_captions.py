"""A folder of images with a .txt beside each: every line that is not blank is a caption."""

from pathlib import Path

from clip_core.data.formats.collect import Collector
from clip_core.data.formats.source import Contents, Source

SHAPE = "a folder of images with a .txt of captions beside each"
_ENOUGH = 0.5  # share of the images that must have one
_MOST_BYTES = 1_000_000  # of a .txt


def detect(source: Source) -> str | None:
    images = source.first_images
    with_text = sum(image.with_suffix(".txt").is_file() for image in images)
    if not images or with_text < _ENOUGH * len(images):
        return None
    return f"{with_text:,} of the first {len(images):,} images have a .txt beside them"


def read(source: Source) -> Contents:
    """Every image below the folder; one without captions is a bad pair.

    Raises:
        DataError: if there is no image.
    """
    root = source.path
    collector = Collector(root)
    inside = root.resolve()
    for entry, image in enumerate(source.images(), start=1):
        name = image.relative_to(root)
        captions, problem = _captions(image.with_suffix(".txt"), inside)
        collector.add(entry, str(name), captions, str(name), problem)
    return Contents(collector.pairs, root)


def _captions(file: Path, inside: Path) -> tuple[list[str], str | None]:
    """The lines of a .txt, or why there are none."""
    try:
        if not file.is_file():
            return [], f"there is no {file.name} beside it"
        if file.is_symlink() and not file.resolve().is_relative_to(inside):
            return [], f"{file.name} leads out of {inside}"
        if file.stat().st_size > _MOST_BYTES:
            return [], f"{file.name} is larger than {_MOST_BYTES:,} bytes"
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return [], f"{file.name} is not text in UTF-8"
    except OSError as error:
        return [], f"{file.name} cannot be read ({error.strerror})"
    captions = [line.strip() for line in text.split("\n") if line.strip()]
    return captions, None if captions else f"{file.name} is empty"
