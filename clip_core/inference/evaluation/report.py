"""An evaluation as JSON and as text that fits 100 columns."""

import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from clip_core.files import finite
from clip_core.inference.evaluation.evaluate import Evaluation, Outcome, first_failure
from clip_core.text import plural, printable

SCHEMA = 1
_WIDTH = 98
_CLASSES = 20  # of the per-class table on the screen; --json-file and --csv have them all
_NAME = 24  # characters of a class
_CHANGED = 20  # items that changed, of either kind, in the JSON

_WRONG = {"order": "against shuffled", "swap": "against 2 swapped", "replace": "against 1 replaced"}
_ORDER = {  # by CaptionProbes.bag_of_words
    True: "makes no difference: a bag of words",
    False: "makes a difference",
    None: "too few captions to tell",
}
_FIGURES = {  # key of a comparison -> label
    "zero_shot_top1": "zero-shot top-1",
    "image_to_text_recall@1": "image to text R@1",
    "text_to_image_recall@1": "text to image R@1",
}


def report(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as JSON; every key is listed in docs/evaluate.md."""
    data = evaluation.data
    return {
        "schema": SCHEMA,
        "data": {
            "name": data.name,
            "images": len(data.images),
            "pairs": len(data.pairs) if data.pairs else None,
            "captions": len(data.pairs.captions) if data.pairs else None,
            "classes": len(data.class_names) if data.class_names else None,
            "class_names": data.class_names,
            "templates": evaluation.templates,
            "unreadable": {str(path): reason for path, reason in evaluation.failures.items()},
            "seed": evaluation.options.seed,
            "notes": evaluation.notes,
        },
        "models": [_model(outcome) for outcome in evaluation.outcomes],
        "comparisons": [
            {
                "first": 0,
                "second": number,
                "figures": [asdict(each) for each in figures],
                "changed": changed(evaluation, number),
            }
            for number, figures in enumerate(evaluation.comparisons, start=1)
        ],
    }


def _model(outcome: Outcome) -> dict[str, Any]:
    scores, about = outcome.scores, outcome.scores.about
    facts = about.facts | {
        "embed_dim": about.embed_dim,
        "image_size": about.image_size,
        "logit_scale": about.logit_scale,
        "images_per_second": scores.images_per_second,
    }
    figures = ("zero_shot", "retrieval", "linear_probe", "knn", "hard_negatives")
    values = {name: getattr(scores, name) for name in figures}
    checked: dict[str, Any] = finite(facts | {name: asdict(each) if each else None for name, each in values.items()})
    return checked


def changed(evaluation: Evaluation, number: int) -> dict[str, dict[str, list[str]]]:
    """The first items that only the second model gets right (gained), or only the first (lost), for each figure."""
    first, second = evaluation.outcomes[0], evaluation.outcomes[number]
    images = [str(path) for path in evaluation.data.images]
    captions = evaluation.data.pairs.captions if evaluation.data.pairs else []
    ranks = []
    if first.predictions and second.predictions:
        ranks.append(("zero_shot_top1", images, first.predictions.ranks, second.predictions.ranks))
    if first.ranks and second.ranks:
        ranks.append(("image_to_text_recall@1", images, first.ranks.image_to_text, second.ranks.image_to_text))
        ranks.append(("text_to_image_recall@1", captions, first.ranks.text_to_image, second.ranks.text_to_image))
    return {
        what: {
            "gained": [items[row] for row in ((a != 0) & (b == 0)).nonzero()[0][:_CHANGED]],
            "lost": [items[row] for row in ((a == 0) & (b != 0)).nonzero()[0][:_CHANGED]],
        }
        for what, items, a, b in ranks
    }


# ---------------------------------------------------------------- text


def report_text(evaluation: Evaluation) -> list[str]:
    """The report as lines for a terminal, safe to print."""
    return [part for line in _lines(evaluation) for part in _wrapped(line)]


def _wrapped(line: str) -> list[str]:
    """A line that is too long as several, all but the first indented; a path is not cut."""
    if len(line) <= _WIDTH:
        return [line]
    return textwrap.wrap(
        line, _WIDTH, subsequent_indent=" " * 12, drop_whitespace=True, break_long_words=False, break_on_hyphens=False
    )


def _lines(evaluation: Evaluation) -> Iterator[str]:
    yield from _data_lines(evaluation)
    outcomes = evaluation.outcomes
    for number, label in enumerate(map(_label, outcomes), start=1):
        yield row(f"model {number}" if len(outcomes) > 1 else "model", label)
    yield ""
    yield from _table(evaluation)
    for number, outcome in enumerate(outcomes):
        yield from _class_lines(outcome, f" of model {number + 1}" if len(outcomes) > 1 else "")
    for number, figures in enumerate(evaluation.comparisons, start=2):
        yield ""
        yield f"model {number} against model 1, on the same queries (difference with its 95 % interval)"
        for each in figures:
            low, high = each.interval
            yield (
                f"  {_FIGURES[each.what]:<18} {each.difference:+7.1%} ({low:+.1%} to {high:+.1%}); "
                f"{each.gained:,} gained, {each.lost:,} lost; McNemar p {_p(each.p_value)}"
            )


def row(label: str, text: str) -> str:
    return f"{label:<11} {printable(text)}"


def _data_lines(evaluation: Evaluation) -> Iterator[str]:
    data = evaluation.data
    yield row("data", _data_text(evaluation))
    for note in evaluation.notes:
        yield row("note", note)
    if evaluation.failures:
        total = len(evaluation.failures) + len(data.images)
        first = first_failure(evaluation.failures)
        yield row("unreadable", f"{len(evaluation.failures):,} of {total:,} images, not evaluated; first {first}")


def _data_text(evaluation: Evaluation) -> str:
    data = evaluation.data
    parts = [plural(len(data.images), "image")]
    if data.pairs:
        parts.append(f"{plural(len(data.pairs), 'pair')}, {plural(len(data.pairs.captions), 'distinct caption')}")
    if data.class_names:
        parts.append(f"{len(data.class_names):,} classes")
    return f"{data.name}: {', '.join(parts)}"


def _label(outcome: Outcome) -> str:
    about, rate = outcome.scores.about, outcome.scores.images_per_second
    speed = f", {rate:,.0f} images/s" if rate else ", stored embeddings"
    return f"{about.summary}, logit scale {about.logit_scale:.4g}{speed}"


def row_cells(evaluation: Evaluation) -> Iterator[tuple[str, list[str]]]:
    """The table of figures: label and one cell for each model; a figure that no model has is left out."""
    every = [dict(_figures(outcome)) for outcome in evaluation.outcomes]
    for label in dict.fromkeys(label for figures in every for label in figures):
        yield label, [figures.get(label, "") for figures in every]


def _figures(outcome: Outcome) -> Iterator[tuple[str, str]]:
    scores = outcome.scores
    if zero := scores.zero_shot:
        if zero.top1 is not None and zero.top1_interval:
            yield "zero-shot top-1", _share(zero.top1, zero.top1_interval)
        if zero.top5 is not None and zero.top5_interval:
            yield "zero-shot top-5", _share(zero.top5, zero.top5_interval)
        if zero.mean_per_class is not None:
            yield "mean per class", f"{zero.mean_per_class:6.1%}"
        yield "mAP over classes", f"{zero.mean_average_precision:6.1%}"
        if zero.calibration:
            over = zero.calibration.over
            yield "ECE", f"{zero.calibration.ece:6.1%} ({'over' if over > 0 else 'under'}confident by {abs(over):.1%})"
    if scores.retrieval:
        for name, way in (
            ("image to text", scores.retrieval.image_to_text),
            ("text to image", scores.retrieval.text_to_image),
        ):
            for k, value in way.recall.items():
                if k == 1 or k < way.gallery:
                    yield f"{name} R@{k}", _share(value, way.intervals[k])
            yield f"{name} mAP", f"{way.mean_average_precision:6.1%}"
            yield f"{name} rank", f"{way.median_rank:,.0f} of {way.gallery:,} (median)"
    for name, probe, setting in (("linear probe", scores.linear_probe, "C"), ("k-NN", scores.knn, "k")):
        if probe:
            yield f"{name} top-1", f"{_share(probe.top1, probe.interval)}, {setting} {probe.setting:g}"
    if scores.hard_negatives:
        for each in scores.hard_negatives.kinds:
            yield _WRONG[each.kind], f"{_share(each.accuracy, each.interval)} of {each.pairs:,}, chance 50%"
        yield "word order", _ORDER[scores.hard_negatives.bag_of_words]


def _table(evaluation: Evaluation) -> Iterator[str]:
    """Models side by side where they fit, else below each other."""
    listed = list(row_cells(evaluation))
    width = max((len(cell) for _, cells in listed for cell in cells), default=0) + 2
    count = len(evaluation.outcomes)
    if 22 + width * count <= _WIDTH:
        if count > 1:
            yield f"{'':<22}" + "".join(f"{f'model {number}':<{width}}" for number in range(1, count + 1)).rstrip()
        for label, cells in listed:
            yield f"{label:<22}" + "".join(f"{cell:<{width}}" for cell in cells).rstrip()
        return
    for label, cells in listed:
        for number, cell in enumerate(cells, start=1):
            yield f"{label if number == 1 else '':<22}model {number}  {cell}"


def _class_lines(outcome: Outcome, of: str) -> Iterator[str]:
    zero = outcome.scores.zero_shot
    if not zero or not zero.per_class:
        return
    rows = [each for each in zero.per_class if each.images]
    rows.sort(key=lambda each: (each.recall or 0.0, each.name))
    yield ""
    cut = f"; the {_CLASSES} worst of {len(rows):,}, all are in --json-file and --csv" * (len(rows) > _CLASSES)
    yield f"classes{of}, worst first{cut}"
    yield f"  {'class':<{_NAME}} {'images':>7} {'recall':>7} {'prec.':>7} {'F1':>7} {'AP':>7}  most confused with"
    for each in rows[:_CLASSES]:
        other = f"{printable(each.confused_with, _NAME)} ({each.confused:,})" if each.confused_with else ""
        yield (
            f"  {_fit(each.name)} {each.images:>7,} {_cell(each.recall)} {_cell(each.precision)} {_cell(each.f1)} "
            f"{_cell(each.average_precision)}  {other}"
        ).rstrip()


def _fit(name: str) -> str:
    return f"{printable(name, _NAME):<{_NAME}}"


def _cell(value: float | None) -> str:
    return f"{'-' if value is None else f'{value:.1%}':>7}"


def _share(value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{value:6.1%} ({low:.1%} to {high:.1%})"


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def summary_rows(evaluation: Evaluation) -> dict[str, str]:
    """The head of the report as label -> text."""
    several = len(evaluation.outcomes) > 1
    models = {
        f"model {number}" if several else "model": _label(outcome)
        for number, outcome in enumerate(evaluation.outcomes, start=1)
    }
    return {"data": _data_text(evaluation), **models, "notes": "; ".join(evaluation.notes)}
