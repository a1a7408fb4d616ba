"""`clip-infer` without a command: retrieval on the validation images of a run."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from clip_core.data.image_files import is_image_there
from clip_core.errors import RunError
from clip_core.inference.clip import CLIPInference
from clip_core.run.reader import RunReader
from clip_core.text import printable

_MOST_IMAGES = 200
_SHOWN = 5


def demonstrate(clip: CLIPInference, run: Path) -> int:
    """Rank captions for one validation image of a run and images for its caption, and print commands to go on with.

    Raises:
        RunError: if no validation image of the run can be read.
    """
    pairs = [(path, caption) for path, caption in _validation(run) if is_image_there(path)]
    if not pairs:
        raise RunError(f"no validation image of {run} is found; name an image with a command, see clip-infer --help")
    about = clip.encoder.about
    image, caption = pairs[len(pairs) // 2]
    captions = list(about.classes or dict.fromkeys(text for _, text in pairs))[:_MOST_IMAGES]
    print(f"{about.summary}; validation images\n")
    print(f"Captions for {printable(str(image))} (its own: {printable(caption)}), by similarity:")
    texts, values = clip.image_text_retrieval(image, captions, _SHOWN)
    _print(texts, values.tolist())
    paths = list(dict.fromkeys(path for path, _ in pairs))[:_MOST_IMAGES]
    print(f"\nImages for {printable(caption)!r} among {len(paths):,}, by similarity:")
    found, values = clip.text_image_retrieval(caption, clip.gallery(paths), _SHOWN)
    _print([str(path) for path in found], values.tolist())
    print("\nWith your own captions and images:")
    shown = " ".join(shlex.quote(printable(text)) for text in texts[:2])
    model, quoted = shlex.quote(printable(str(run))), shlex.quote(printable(str(image)))
    print(f"  clip-infer text-retrieval --model {model} --image {quoted} --texts {shown}")
    print(f"  clip-infer retrieval --model {model} --text {shlex.quote(printable(caption))} --image-dir FOLDER")
    return 0


def _validation(run: Path) -> list[tuple[Path, str]]:
    try:
        return [(Path(pair.image), pair.caption) for pair in RunReader(run).validation_pairs().pairs]
    except RunError as error:
        print(f"clip-infer: {printable(str(error))}", file=sys.stderr)
        return []


def _print(labels: Sequence[str], values: Sequence[float]) -> None:
    for label, value in zip(labels, values, strict=True):
        print(f"{value:>+8.4f}  {printable(label)}")
