"""clip-infer evaluate: how good a model is on labelled images or on image-text pairs."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from clip_core.cli.model_options import ModelChoice, Precision, latest_run
from clip_core.config import DataFormat
from clip_core.errors import UsageError
from clip_core.text import plural, printable

if TYPE_CHECKING:
    from clip_core.inference.encoder import Encoder
    from clip_core.inference.evaluation.evaluate import Evaluation
    from clip_core.inference.evaluation.evaluation_set import EvaluationSet


@Parameter(name="*")
@dataclass(frozen=True)
class DataFlags:
    """What is evaluated."""

    data: Annotated[
        Path | None,
        Parameter(
            help="a list of pairs, a folder (of images with captions, of classes, or in CLIP_benchmark's layout) or "
            "shards (default: the validation pairs of the run)"
        ),
    ] = None
    split: Annotated[
        Literal["train", "val", "test"] | None,
        Parameter(help="of a data set that states splits (default: test, else val)"),
    ] = None
    image_root: Annotated[
        Path | None, Parameter(help="folder the image paths start from (default: beside the list)")
    ] = None
    form: Annotated[DataFormat | None, Parameter(name="--format", help="format of the pairs (default: detected)")] = (
        None
    )
    image_column: Annotated[str | None, Parameter(help="column or key of the images (default: detected)")] = None
    caption_column: Annotated[str | None, Parameter(help="column or key of the captions (default: detected)")] = None


@Parameter(name="*")
@dataclass(frozen=True)
class Figures:
    """What is computed."""

    templates: Annotated[
        Path | None,
        Parameter(
            help="file of prompt templates, one in a line, with {} for the class (default: the data set's own, else "
            "that of the run's training captions, else CLIP's 80)"
        ),
    ] = None
    linear_probe: Annotated[
        bool, Parameter(negative="", help="also logistic regression on frozen image features (needs scikit-learn)")
    ] = False
    knn: Annotated[
        int | None,
        Parameter(validator=Number(gte=1), help="also k nearest neighbours on frozen image features: --knn 20"),
    ] = None
    hard_negatives: Annotated[
        bool,
        Parameter(negative="", help="also each image with a wrong caption of the same words: order, swap, replace"),
    ] = False
    bins: Annotated[int, Parameter(validator=Number(gte=2, lte=1000), help="bins of confidence")] = 15
    seed: Annotated[int, Parameter(validator=Number(gte=0), help="of the bootstrap and of a train and test part")] = 0
    index: Annotated[Path | None, Parameter(help="folder that keeps the embeddings (default: in the user's cache)")] = (
        None
    )


@Parameter(name="*")
@dataclass(frozen=True)
class Output:
    """Where the report goes."""

    as_json: Annotated[bool, Parameter(name="--json", negative="", help="print the report as JSON")] = False
    json_file: Annotated[Path | None, Parameter(help="write the report as JSON")] = None
    csv: Annotated[
        Path | None, Parameter(help="write tables into this folder: images, captions, classes, confusion")
    ] = None
    plots: Annotated[Path | None, Parameter(help="draw reliability, confusion and recall into this folder (PNG)")] = (
        None
    )
    html: Annotated[Path | None, Parameter(help="write one page with contact sheets of the worst errors")] = None


_MODEL, _DATA, _FIGURES, _OUTPUT = ModelChoice(), DataFlags(), Figures(), Output()


def evaluate(
    *,
    flags: DataFlags = _DATA,
    options: ModelChoice = _MODEL,
    precision: Annotated[
        list[Precision] | None,
        Parameter(consume_multiple=True, negative="", help="variants of a bundle, each a row: --precision fp32 int8"),
    ] = None,
    compare: Annotated[
        Path | None, Parameter(help="another model, on the same set: what changed, and whether that is chance")
    ] = None,
    figures: Figures = _FIGURES,
    output: Output = _OUTPUT,
) -> int:
    """Evaluate a model: zero-shot classification, calibration, retrieval, frozen features; or compare two models."""
    from clip_core.inference.evaluation.evaluate import Options
    from clip_core.inference.evaluation.evaluate import evaluate as compute
    from clip_core.inference.evaluation.leaks import leak_note
    from clip_core.inference.evaluation.report import report, report_text
    from clip_core.inference.evaluation.templates import read_templates

    if precision == []:
        raise UsageError("--precision is given without a value; name at least one: --precision fp32 int8")
    _check_output(output)
    wanted = Options(
        read_templates(figures.templates) if figures.templates else None,
        figures.bins,
        figures.seed,
        figures.linear_probe,
        figures.knn,
        figures.hard_negatives,
        figures.index,
    )
    path = options.model or latest_run()
    options = replace(options, model=path)
    variants: list[Precision | None] = list(dict.fromkeys(precision)) if precision else [None]
    encoders = [options.open(each).encoder for each in variants]
    if compare is not None:
        encoders.append(replace(options, model=compare).open().encoder)
    data = _read(flags, path)
    for encoder in encoders:
        _warn_truncated(encoder, data)
    if flags.data is not None:
        models = [path, compare] if compare else [path]
        data.notes.extend(note for model in models if (note := leak_note(model, data)) is not None)
    found = compute(encoders, data, wanted, _say)
    numbers = report(found)
    if output.as_json:
        print(json.dumps(numbers, indent=2))
    else:
        print("\n".join(report_text(found)))
    for path in _write(found, numbers, output):
        print(f"written to {printable(str(path))}", file=sys.stderr if output.as_json else sys.stdout)
    return 0


def _say(sentence: str) -> None:
    print(f"clip-infer: {printable(sentence)}", file=sys.stderr)


def _check_output(output: Output) -> None:
    """Refuse what could not be written, before any work is done."""
    for flag, path in (("--json-file", output.json_file), ("--html", output.html)):
        if path and not path.absolute().parent.is_dir():
            raise UsageError(f"{flag} is {path}, but there is no folder {path.absolute().parent}; create it.")
        if path and path.is_dir():
            raise UsageError(f"{flag} is {path}, which is a folder; name a file.")
    for flag, path in (("--csv", output.csv), ("--plots", output.plots)):
        if path and path.exists() and not path.is_dir():
            raise UsageError(f"{flag} is {path}, which is a file; name a folder.")
    if output.plots:
        import clip_core.inference.evaluation.plots  # noqa: F401  (matplotlib may be missing)


def _write(found: "Evaluation", numbers: dict[str, Any], output: Output) -> Iterator[Path]:
    """Write the files that were asked for; their paths."""
    from clip_core.files import write_json, write_text

    if output.json_file:
        write_json(output.json_file, numbers)
        yield output.json_file
    if output.csv:
        from clip_core.inference.evaluation.tables import write_tables

        yield from write_tables(found, output.csv)
    if output.plots:
        from clip_core.inference.evaluation.plots import write_plots

        yield from write_plots(found, output.plots)
    if output.html:
        from clip_core.inference.evaluation.page import evaluation_page

        write_text(output.html, evaluation_page(found))
        yield output.html


def _read(flags: DataFlags, model: Path) -> "EvaluationSet":
    """The set that is asked for, else the validation pairs of the run that the model is of."""
    from clip_core.data.formats.detect import read_data
    from clip_core.data.formats.source import ReadOptions
    from clip_core.data.progress import DecodeProgress
    from clip_core.inference.evaluation import evaluation_set as sets

    if flags.data is None:
        return sets.of_run(model)
    if flags.form is None and sets.is_benchmark(flags.data):
        return sets.from_benchmark(flags.data, flags.split, _say)
    options = ReadOptions(flags.image_root, flags.form, flags.image_column, flags.caption_column, "{}")
    with DecodeProgress(_say, "read", unit="B") as progress:
        reading = read_data(flags.data, options, progress)
    return sets.from_reading(reading, flags.split, _say)


def _warn_truncated(encoder: "Encoder", data: "EvaluationSet") -> None:
    if data.pairs is None:
        return
    tokenizer, captions = encoder.tokenizer, data.pairs.captions
    cut = tokenizer.count_truncated(captions)
    if cut:
        _say(
            f"{cut:,} of {plural(len(captions), 'caption')} are longer than {tokenizer.context_length} tokens "
            f"and were truncated for {encoder.about.source}."
        )
