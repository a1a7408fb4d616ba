"""One folder per class: the folder's name, in a sentence, is the caption of every image below it."""

from pathlib import Path

from clip_core.data.formats.collect import Collector
from clip_core.data.formats.source import Contents, Source
from clip_core.errors import DataError

SHAPE = "one folder of images per class"
_PARTS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


def detect(source: Source) -> str | None:
    names = [folder.name for folder in _folders(source.path)]
    if len(names) >= 2 and _PARTS.issuperset(name.casefold() for name in names):
        path = source.path
        raise DataError(
            f"{path} holds {', '.join(names)}, which are parts and no classes; "
            f"name one: --data {path / names[0]} (and --val-file for another)."
        )
    holding = {image.relative_to(source.path).parts[0] for image in source.first_images}
    if len(names) < 2 or not holding & set(names):
        return None
    return f"it holds {len(names):,} folders with images"


def read(source: Source) -> Contents:
    """Every image below a folder of its own class; images beside the folders have none and are left out.

    Raises:
        DataError: if there is no such image.
    """
    root = source.path
    collector = Collector(root)
    names = (image.relative_to(root) for image in source.images())
    for entry, name in enumerate((name for name in names if len(name.parts) > 1), start=1):
        title = " ".join(name.parts[0].replace("_", " ").split())
        collector.add(entry, str(name), source.options.class_template.replace("{}", title), str(name))
    if not collector.pairs:
        raise DataError(f"{root} holds no folders with images, one per class; name another folder.")
    return Contents(collector.pairs, root)


def _folders(path: Path) -> list[Path]:
    """The folders in a folder that may be classes, sorted."""
    if not path.is_dir():
        return []
    return sorted(
        item for item in path.iterdir() if item.is_dir() and not item.is_symlink() and not item.name.startswith(".")
    )
