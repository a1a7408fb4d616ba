"""clip-infer: similarity, zero-shot classification, retrieval and evaluation of a CLIP model."""

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from cyclopts import App, Parameter
from cyclopts.validators import Number

from clip_core import __version__
from clip_core.cli.app import run_app
from clip_core.cli.evaluate import evaluate
from clip_core.cli.model_options import Model, latest_run
from clip_core.errors import UsageError
from clip_core.text import printable

if TYPE_CHECKING:
    from clip_core.inference.clip import CLIPInference
    from clip_core.inference.gallery import Gallery

app = App(
    version=__version__,
    name="clip-infer",
    help="Similarity, zero-shot classification, retrieval and evaluation of a CLIP model.\n\n"
    "Without a command: a demonstration on the latest run below ./runs.",
)

Mode = Literal["similarity", "classification", "retrieval", "text-retrieval"]

Image = Annotated[Path, Parameter(help="path of an image")]
Texts = Annotated[list[str], Parameter(consume_multiple=True, negative="", help='one or more: --texts "a cat" "a dog"')]
TopK = Annotated[int | None, Parameter(validator=Number(gte=1), help="how many results (default: all)")]
Index = Annotated[Path | None, Parameter(help="folder that keeps the embeddings (default: one in the user's cache)")]
Engine = Annotated[
    str | None, Parameter(help="a LanceDB database in place of the index: a folder, or s3://BUCKET/PATH")
]


@Parameter(name="*")
@dataclass(frozen=True)
class ModelAndOutput(Model):
    """The model and the backend, and how the result is written."""

    as_json: Annotated[bool, Parameter(name="--json", negative="", help="print one JSON object")] = False
    plot: Annotated[Path | None, Parameter(help="also draw the result into this file, e.g. result.png")] = None

    def load(self) -> "CLIPInference":
        if self.plot:
            from clip_core.inference.plot import check_plot_path

            check_plot_path(self.plot)
        return super().load()

    def show(
        self,
        clip: "CLIPInference",
        labels: Sequence[str],
        values: Sequence[float],
        answer: Mapping[str, object],
        *,
        percent: bool = False,
        notes: Sequence[str] = (),
    ) -> None:
        """One JSON object; or one line about the model, then one line per score, with its note after it."""
        about = clip.encoder.about
        if self.as_json:
            print(json.dumps({**answer, **about.facts}))  # ASCII: no caption can control a terminal
            return
        print(about.summary)
        for label, value, note in zip(labels, values, notes or [""] * len(labels), strict=True):
            shown = f"{value:>8.1%}  " if percent else f"{value:>+8.4f}  "
            print(f"{shown}{note:<{max(map(len, notes), default=0)}}{'  ' if notes else ''}{printable(label)}")

    def draw_bars(self, image: Path, labels: Sequence[str], values: Sequence[float], title: str) -> None:
        if self.plot:
            from clip_core.inference.plot import plot_bars

            plot_bars(image, labels, values, title, self.plot)


_LATEST, _DEFAULT = Model(), ModelAndOutput()


@app.command
def similarity(
    *,
    image: Image,
    texts: Texts,
    options: ModelAndOutput = _DEFAULT,
) -> int:
    """Cosine similarity of an image with each text, in the order of the texts; from a bundle, whether they match."""
    _refuse_nothing(texts, "--texts")
    clip = options.load()
    _warn_truncated(clip, texts)
    values = clip.image_text_similarity(image, texts).tolist()
    answer: dict[str, object] = {"mode": "similarity", "image": str(image), "texts": texts, "similarities": values}
    threshold, notes = clip.encoder.about.threshold, []
    if threshold:
        matches = [value >= threshold.value for value in values]
        answer |= {"threshold": threshold.model_dump(), "matches": matches}
        notes = ["match" if each else "no match" for each in matches]
    options.show(clip, texts, values, answer, notes=notes)
    if threshold and not options.as_json:
        print(threshold.summary)
    options.draw_bars(image, texts, values, "cosine similarity")
    return 0


@app.command
def classification(
    *,
    image: Image,
    classes: Annotated[
        list[str] | None,
        Parameter(
            consume_multiple=True,
            negative="",
            help="class names: --classes red blue (default: the run's captions, where they are classes)",
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            help="prompt template with {} for the class; repeat it to ensemble several (default: 'a photo of a {}', "
            "or '{}' where every class is a caption of the training pairs)",
        ),
    ] = None,
    none_of_these: Annotated[
        bool,
        Parameter(
            negative="",
            help='add the class "none of these", first where no class reaches the threshold chosen on the '
            "validation pairs",
        ),
    ] = False,
    top_k: TopK = None,
    options: ModelAndOutput = _DEFAULT,
) -> int:
    """Zero-shot classification: the probability of each class, best first."""
    from clip_core.inference.threshold import NONE_OF_THESE

    _refuse_nothing(classes, "--classes")
    clip = options.load()
    _note_commas(classes or [])
    names = classes or list(clip.encoder.about.classes or ())
    if not names:
        raise UsageError("the captions of this model's run are not classes; name classes with --classes.")
    templates = template or default_templates(names, clip.encoder.about.classes)
    _warn_truncated(clip, [each.replace("{}", name) for each in templates for name in names])
    ranked = clip.zero_shot_classification(image, names, templates, none_of_these)[:top_k]
    labels, values = [name for name, _ in ranked], [value for _, value in ranked]
    answer: dict[str, object] = {
        "mode": "classification",
        "image": str(image),
        "templates": templates,
        "classes": labels,
        "probabilities": values,
    }
    if none_of_these and clip.threshold:
        answer |= {"threshold": clip.threshold.model_dump()}
    options.show(clip, labels, values, answer, percent=True)
    if none_of_these and clip.threshold and not options.as_json:
        print(f"{NONE_OF_THESE}: {clip.threshold.summary}")
    options.draw_bars(image, labels, values, "probability")
    return 0


@app.command
def retrieval(
    *,
    text: Annotated[str, Parameter(help="a caption to search for")],
    image_dir: Annotated[Path, Parameter(help="folder of images, searched with its subfolders")],
    top_k: Annotated[int, Parameter(validator=Number(gte=1), help="how many results")] = 5,
    index: Index = None,
    engine: Engine = None,
    options: ModelAndOutput = _DEFAULT,
) -> int:
    """Text-to-image retrieval from a folder. Embeddings are stored; only new and changed images are embedded again."""
    clip = options.load()
    _warn_truncated(clip, [text])
    found = _gallery(clip, image_dir, index, engine)
    images, scores = clip.text_image_retrieval(text, found, top_k)
    paths, values = [str(path) for path in images], scores.tolist()
    answer = {
        "mode": "retrieval",
        "text": text,
        "images": paths,
        "similarities": values,
        "gallery": len(found),
        "skipped": {str(path): reason for path, reason in found.failures.items()},
    }
    options.show(clip, paths, values, answer)
    if options.plot:
        from clip_core.inference.plot import plot_grid

        plot_grid(paths, values, text, options.plot)
    return 0


@app.command
def gallery(
    *,
    image_dir: Annotated[Path, Parameter(help="folder of images, with its subfolders")],
    save: Annotated[Path | None, Parameter(help="also write paths and embeddings: NAME.parquet or NAME.npz")] = None,
    index: Index = None,
    engine: Engine = None,
    options: Model = _LATEST,
) -> int:
    """Embed a folder of images for retrieval, or what changed in it; interrupted, it goes on from there next time."""
    if save is not None and save.suffix not in (".parquet", ".npz"):
        raise UsageError(f"--save is {printable(str(save))}; it must end in .parquet or .npz.")
    if save is not None and not save.parent.is_dir():
        raise UsageError(f"--save is {printable(str(save))}; there is no folder {printable(str(save.parent))}.")
    clip = options.load()
    found = _gallery(clip, image_dir, index, engine)
    print(f"{len(found):,} images in the gallery; {found.embedded:,} were new or changed")
    if save is not None:
        found.save(save)
        print(f"saved {printable(str(save))}")
    return 0


@app.command(name="text-retrieval")
def text_retrieval(
    *,
    image: Image,
    texts: Texts,
    top_k: TopK = None,
    options: ModelAndOutput = _DEFAULT,
) -> int:
    """Image-to-text retrieval: the texts by similarity, best first."""
    _refuse_nothing(texts, "--texts")
    clip = options.load()
    _warn_truncated(clip, texts)
    ranked, scores = clip.image_text_retrieval(image, texts, top_k)
    values = scores.tolist()
    answer = {"mode": "text-retrieval", "image": str(image), "texts": ranked, "similarities": values}
    options.show(clip, ranked, values, answer)
    options.draw_bars(image, ranked, values, "cosine similarity")
    return 0


app.command(evaluate)


@app.default
def demonstration(
    *,
    mode: Annotated[Mode | None, Parameter(help="a command as a flag: --mode retrieval")] = None,
    options: Model = _LATEST,
) -> int:
    """A demonstration on the latest run: retrieval with one validation image and with its caption."""
    from clip_core.cli.infer_demo import demonstrate

    folder = options.model or latest_run()
    return demonstrate(replace(options, model=folder).load(), folder)


def main(argv: Sequence[str] | None = None) -> int:
    return run_app(app, _mode_first(list(sys.argv[1:] if argv is None else argv)))


def _mode_first(argv: list[str]) -> list[str]:
    """`--mode NAME` anywhere, as the command NAME in front."""
    for at, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name == "--mode":
            value = value if equals else "".join(argv[at + 1 : at + 2])
            mode = value.replace("_", "-")
            rest = argv[:at] + argv[at + (1 if equals else 2) :]
            return [mode, *rest] if mode in get_args(Mode) else ["--mode", value, *rest]
    return argv


def default_templates(names: Sequence[str], captions: Sequence[str] | None) -> list[str]:
    """`{}` where every class is a caption of the training pairs, else CLIP's template."""
    from clip_core.inference.clip import TEMPLATE
    from clip_core.text import normalise_caption

    known = {normalise_caption(caption) for caption in captions or ()}
    return ["{}"] if all(normalise_caption(name) in known for name in names) else [TEMPLATE]


def _gallery(clip: "CLIPInference", folder: Path, index: Path | None = None, engine: str | None = None) -> "Gallery":
    from clip_core.data.progress import DecodeProgress
    from clip_core.inference.gallery import Gallery

    def say(sentence: str) -> None:
        print(f"clip-infer: {printable(sentence)}", file=sys.stderr)

    def waiting() -> None:
        say(f"another process is embedding {folder}; waiting for it.")

    with DecodeProgress(say, "embedded") as progress:
        gallery = Gallery.open(clip.encoder, folder, index, progress, waiting, engine)
    if gallery.left_out:
        more = f", such as {gallery.left_out[0]}"
        say(f"{len(gallery.left_out):,} hidden images and folders of thumbnails left out{more}.")
    if gallery.failures:
        path, reason = next(iter(gallery.failures.items()))
        say(
            f"{len(gallery.failures):,} of {len(gallery.failures) + len(gallery):,} images skipped; "
            f"the first is {path}: {reason.removeprefix(f'{path} ')}"
        )
    if not gallery.stored:
        say("the embeddings cannot be stored in the index and will be computed again next time; name a folder: --index")
    if not len(gallery):
        raise UsageError(f"there is no readable image below {folder}; choose another --image-dir.")
    return gallery


def _refuse_nothing(words: Sequence[str] | None, flag: str) -> None:
    if words is not None and not words:
        raise UsageError(f'{flag} is given without a value; name at least one: {flag} "a cat" "a dog"')


def _warn_truncated(clip: "CLIPInference", texts: Sequence[str]) -> None:
    tokenizer = clip.encoder.tokenizer
    cut = tokenizer.count_truncated(texts)
    if cut:
        print(
            f"clip-infer: {cut} of {len(texts)} texts are longer than {tokenizer.context_length} tokens "
            "and were truncated.",
            file=sys.stderr,
        )


def _note_commas(classes: Sequence[str]) -> None:
    """Say so where class names look like one list with commas: --classes takes them separated by spaces."""
    joined = len(classes) == 1 and any(mark in classes[0] for mark in ",;|")
    if joined or any(name.rstrip().endswith((",", ";")) for name in classes):
        names = [shlex.quote(name.strip()) for name in re.split("[,;|]", " ".join(classes)) if name.strip()]
        what = "this is one class" if len(classes) == 1 else "the commas belong to the names"
        said = f"{what}, {', '.join(map(repr, classes))}; separate classes by spaces: --classes {' '.join(names)}"
        print(f"note: {printable(said)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
