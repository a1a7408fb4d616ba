"""The images and captions of a run that its model has never seen: what retrieval searches unless told otherwise."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_core.text import normalise_caption


@dataclass(frozen=True)
class Gallery:
    """Distinct images and distinct captions, in the order of the file."""

    images: Sequence[str] = ()
    captions: Sequence[str] = ()
    captions_of: dict[str, list[str]] = field(default_factory=dict)

    def is_right(self, image: str, caption: str) -> bool:
        """Whether the pair list gives this image this caption."""
        wanted = normalise_caption(caption)
        return any(normalise_caption(known) == wanted for known in self.captions_of.get(image, ()))


def read_gallery(run: Path) -> Gallery:
    """The validation pairs of a run (RUN/val_pairs.json); empty where there are none yet."""
    return gallery_of(read_pairs_file(run / "val_pairs.json"))


def gallery_of(pairs: Sequence[tuple[str, str]]) -> Gallery:
    captions_of: dict[str, list[str]] = {}
    captions: dict[str, str] = {}
    for image, caption in pairs:
        captions_of.setdefault(image, []).append(caption)
        captions.setdefault(normalise_caption(caption), caption)
    return Gallery(tuple(captions_of), tuple(captions.values()), captions_of)


def read_pairs_file(path: Path) -> list[tuple[str, str]]:
    """(image, caption) of each entry of a JSON pair list; relative images are looked for beside the file."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    pairs: list[tuple[str, str]] = []
    for entry in entries if isinstance(entries, list) else ():
        pairs += _pairs_of(entry, path.parent)
    return pairs


def _pairs_of(entry: Any, folder: Path) -> list[tuple[str, str]]:
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        return []
    captions = entry.get("caption")
    captions = captions if isinstance(captions, list) else [captions]
    return [(str(folder / entry["image"]), caption) for caption in captions if isinstance(caption, str)]
