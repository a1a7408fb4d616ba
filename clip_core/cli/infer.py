"""clip-infer: similarity, classification and retrieval with a trained model, from the shell."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from cyclopts import App, Parameter
from cyclopts.validators import Number

from clip_core import __version__
from clip_core.cli.app import run_app
from clip_core.errors import UsageError
from clip_core.text import printable

if TYPE_CHECKING:
    from clip_core.inference.clip import CLIPInference
    from clip_core.inference.gallery import Gallery

app = App(
    version=__version__,
    name="clip-infer",
    help="Ask a trained CLIP: which text fits a picture, which class it is, which pictures fit a text.\n\n"
    "Without a command: a small demonstration on the latest run below ./runs.",
)

Mode = Literal["similarity", "classification", "retrieval", "text-retrieval"]

Model = Annotated[
    Path | None,
    Parameter(
        name=["--model", "--model-path"],
        help="run directory, checkpoint, ONNX bundle or published weights (default: the latest run below ./runs)",
    ),
]
InitModel = Annotated[
    str | None, Parameter(help="open_clip's name of the architecture, where published weights do not say it")
]
Backend = Annotated[Literal["auto", "torch", "onnx"], Parameter(help="onnx on a run directory uses the bundle in it")]
Device = Annotated[str | None, Parameter(help="cpu, cuda, cuda:N or mps (default: the best there is)")]
Image = Annotated[Path, Parameter(help="the picture")]
Texts = Annotated[list[str], Parameter(consume_multiple=True, negative="", help='one or more: --texts "a cat" "a dog"')]
TopK = Annotated[int | None, Parameter(validator=Number(gte=1), help="how many results (default: all)")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="print one JSON object")]
Plot = Annotated[Path | None, Parameter(help="also draw the answer into this file, e.g. answer.png")]


@app.command
def similarity(
    *,
    image: Image,
    texts: Texts,
    model: Model = None,
    init_model: InitModel = None,
    backend: Backend = "auto",
    device: Device = None,
    as_json: AsJson = False,
    plot: Plot = None,
) -> int:
    """Cosine similarity of a picture with each text, in the order of the texts."""
    clip = _load(model, init_model, backend, device, plot)
    _note_truncated(clip, texts)
    values = clip.image_text_similarity(image, texts).tolist()
    _answer(clip, as_json, {"mode": "similarity", "image": str(image), "texts": texts, "similarities": values})
    if not as_json:
        _print_scores(texts, values)
    _plot_bars(plot, image, texts, values, "cosine similarity")
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
            help="class names: --classes red blue (default: the captions of the run, where they are few)",
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            help="text with {} for the class; repeat it to ensemble several (default: 'a photo of a {}', "
            "or '{}' where every class is a caption that the model was trained on)",
        ),
    ] = None,
    top_k: TopK = None,
    model: Model = None,
    init_model: InitModel = None,
    backend: Backend = "auto",
    device: Device = None,
    as_json: AsJson = False,
    plot: Plot = None,
) -> int:
    """Zero-shot classification: the probability of each class, best first."""
    clip = _load(model, init_model, backend, device, plot)
    names = classes or list(clip.encoder.about.classes or ())
    if not names:
        raise UsageError("this model's run has no list of classes; name them with --classes.")
    templates = template or default_templates(names, clip.encoder.about.classes)
    _note_truncated(clip, [each.replace("{}", name) for each in templates for name in names])
    ranked = clip.zero_shot_classification(image, names, templates)[:top_k]
    labels, values = [name for name, _ in ranked], [value for _, value in ranked]
    _answer(
        clip,
        as_json,
        {
            "mode": "classification",
            "image": str(image),
            "templates": templates,
            "classes": labels,
            "probabilities": values,
        },
    )
    if not as_json:
        _print_scores(labels, values, percent=True)
    _plot_bars(plot, image, labels, values, "probability")
    return 0


@app.command
def retrieval(
    *,
    text: Annotated[str, Parameter(help="what to look for")],
    image_dir: Annotated[Path, Parameter(help="folder of pictures, searched with all below it")],
    top_k: TopK = 5,
    model: Model = None,
    init_model: InitModel = None,
    backend: Backend = "auto",
    device: Device = None,
    as_json: AsJson = False,
    plot: Plot = None,
) -> int:
    """The pictures of a folder that fit a text best. They are embedded once; later searches only read."""
    clip = _load(model, init_model, backend, device, plot)
    _note_truncated(clip, [text])
    gallery = _gallery(clip, image_dir)
    images, scores = clip.text_image_retrieval(text, gallery, top_k)
    paths, values = [str(path) for path in images], scores.tolist()
    _answer(
        clip,
        as_json,
        {
            "mode": "retrieval",
            "text": text,
            "images": paths,
            "similarities": values,
            "pictures": len(gallery),
            "skipped": {str(path): reason for path, reason in gallery.failures.items()},
        },
    )
    if not as_json:
        _print_scores(paths, values)
    if plot:
        from clip_core.inference.plot import plot_grid

        plot_grid(paths, values, text, plot)
    return 0


@app.command(name="text-retrieval")
def text_retrieval(
    *,
    image: Image,
    texts: Texts,
    top_k: TopK = None,
    model: Model = None,
    init_model: InitModel = None,
    backend: Backend = "auto",
    device: Device = None,
    as_json: AsJson = False,
    plot: Plot = None,
) -> int:
    """The texts that fit a picture best, best first."""
    clip = _load(model, init_model, backend, device, plot)
    _note_truncated(clip, texts)
    ranked, scores = clip.image_text_retrieval(image, texts, top_k)
    values = scores.tolist()
    _answer(clip, as_json, {"mode": "text-retrieval", "image": str(image), "texts": ranked, "similarities": values})
    if not as_json:
        _print_scores(ranked, values)
    _plot_bars(plot, image, ranked, values, "cosine similarity")
    return 0


@app.default
def demonstration(
    *,
    mode: Annotated[Mode | None, Parameter(help="the command, spelt as a flag")] = None,
    model: Model = None,
    init_model: InitModel = None,
    backend: Backend = "auto",
    device: Device = None,
) -> int:
    """A small demonstration on the latest run: one held-out picture described, one caption looked for."""
    from clip_core.cli.infer_demo import demonstrate

    folder = model or _latest_run()
    return demonstrate(_load(folder, init_model, backend, device), folder)


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
    """`{}` where the classes are whole captions that the model knows, CLIP's own template otherwise."""
    from clip_core.inference.clip import TEMPLATE
    from clip_core.text import normalise_caption

    known = {normalise_caption(caption) for caption in captions or ()}
    return ["{}"] if all(normalise_caption(name) in known for name in names) else [TEMPLATE]


def _load(
    model: Path | None,
    init_model: str | None,
    backend: Literal["auto", "torch", "onnx"],
    device: str | None,
    plot: Path | None = None,
) -> "CLIPInference":
    if plot:
        from clip_core.inference.plot import check_plot_path

        check_plot_path(plot)
    from clip_core.inference.clip import CLIPInference

    return CLIPInference(model or _latest_run(), backend, device, init_model)


def _latest_run() -> Path:
    from clip_core.run_dir import find_runs

    for run in find_runs(Path("runs")):
        if (run / "best.json").exists() or (run / "latest.json").exists() or (run / "bundle").is_dir():
            return run
    raise UsageError("there is no trained run below ./runs; name a model with --model, or train one: clip-train")


def _gallery(clip: "CLIPInference", folder: Path) -> "Gallery":
    from clip_core.inference.gallery import Gallery

    watched = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if watched and (done % 16 == 0 or done == total):
            print(f"\rembedding {done:,} of {total:,} pictures", end="\n" if done == total else "", file=sys.stderr)

    gallery = Gallery.open(clip.encoder, folder, progress=progress)
    if gallery.failures:
        path, reason = next(iter(gallery.failures.items()))
        print(
            f"clip-infer: {len(gallery.failures)} of {len(gallery.failures) + len(gallery)} pictures skipped; "
            f"the first is {printable(str(path))}: {printable(reason)}",
            file=sys.stderr,
        )
    if not len(gallery):
        raise UsageError(f"there is no readable picture below {folder}; choose another --image-dir.")
    return gallery


def _note_truncated(clip: "CLIPInference", texts: Sequence[str]) -> None:
    tokenizer = clip.encoder.tokenizer
    cut = tokenizer.count_truncated(texts)
    if cut:
        print(
            f"clip-infer: {cut} of {len(texts)} texts are longer than {tokenizer.context_length} tokens; "
            "what is beyond was cut off.",
            file=sys.stderr,
        )


def _answer(clip: "CLIPInference", as_json: bool, answer: dict[str, Any]) -> None:
    """The JSON object, or the line that says which model is asked."""
    about = clip.encoder.about
    if as_json:
        facts = {"model": about.source, "backend": about.backend, "device": about.device, "step": about.step}
        print(json.dumps(answer | facts))  # escaped to ASCII: no terminal takes a caption for a command
    else:
        print(f"{printable(about.source)}, step {about.step:,}, {about.backend} on {about.device}")


def _print_scores(labels: Sequence[str], values: Sequence[float], *, percent: bool = False) -> None:
    for label, value in zip(labels, values, strict=True):
        print(f"{value:>8.1%}  {printable(label)}" if percent else f"{value:>+8.4f}  {printable(label)}")


def _plot_bars(plot: Path | None, image: Path, labels: Sequence[str], values: Sequence[float], title: str) -> None:
    if plot:
        from clip_core.inference.plot import plot_bars

        plot_bars(image, labels, values, title, plot)


if __name__ == "__main__":
    sys.exit(main())
