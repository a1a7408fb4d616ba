"""The validation pairs of a run: the images and captions that Retrieve and Classify search."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clip_core.errors import RunError
from clip_core.run.reader import RunReader
from clip_core.text import normalise_caption

Pair = tuple[str, str]  # path of the image, caption


@dataclass(frozen=True)
class Gallery:
    """Distinct images and distinct captions, in the order of the file."""

    images: Sequence[str] = ()
    captions: Sequence[str] = ()
    captions_of: dict[str, list[str]] = field(default_factory=dict)

    def is_right(self, image: str, caption: str) -> bool:
        """Whether the validation pairs give this image this caption."""
        wanted = normalise_caption(caption)
        return any(normalise_caption(known) == wanted for known in self.captions_of.get(image, ()))

    def find(self, typed: str) -> str:
        """The validation image of that path or, if only one has it, that file name; else the path as typed."""
        path = Path(typed).expanduser()
        whole = str(Path.cwd() / path)
        if whole in self.captions_of:
            return whole
        named = [image for image in self.images if Path(image).name == typed]
        return named[0] if len(named) == 1 else str(path)


def read_gallery(run: Path) -> Gallery:
    """The gallery of a run; empty where there is none yet."""
    return gallery_of(read_validation(run))


def read_validation(run: Path) -> list[Pair]:
    """The validation pairs of a run; none where there is no valid validation.json yet."""
    try:
        return [(pair.image, pair.caption) for pair in RunReader(run).validation_pairs().pairs]
    except RunError:
        return []


def gallery_of(pairs: Iterable[Pair]) -> Gallery:
    captions_of: dict[str, list[str]] = {}
    captions: dict[str, str] = {}
    for image, caption in pairs:
        captions_of.setdefault(image, []).append(caption)
        captions.setdefault(normalise_caption(caption), caption)
    return Gallery(tuple(captions_of), tuple(captions.values()), captions_of)
