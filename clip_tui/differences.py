"""Runs beside each other: their state, scores and sizes, and the settings in which they differ."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clip_core.config import SECTIONS
from clip_core.errors import RunError
from clip_core.flags import flag
from clip_core.run.metrics import best_by, is_bound, ordered, text_of
from clip_core.run.reader import RunReader
from clip_core.run.records import RunRecord
from clip_core.text import printable
from clip_tui.numbers import duration, number
from clip_tui.status_line import short_label
from clip_tui.watcher import best_text, overview

Row = tuple[str, ...]  # a name, then a value a run
NOTHING = "–"
_OWN = "--run-dir"  # differs between any two runs


def comparison(runs: Sequence[Path]) -> list[tuple[str, list[Row]]]:
    """Titled groups of rows, with a value for each run; settings that are equal everywhere are left out."""
    readers = [RunReader(run) for run in runs]
    records = [_record(reader) for reader in readers]
    groups = [("Runs", list(_about(runs, records))), ("Best checkpoint", list(_scores(readers)))]
    settings = [_settings(record) for record in records]
    resolved = [_resolved(record) for record in records]
    groups.append(("Different settings", list(_different(settings))))
    groups.append(("Different values in use", list(_different(resolved))))
    return [(title, rows) for title, rows in groups if rows]


def _record(reader: RunReader) -> RunRecord | None:
    try:
        return reader.record()
    except RunError:
        return None


def _about(runs: Sequence[Path], records: Sequence[RunRecord | None]) -> Iterator[Row]:
    seen = [overview(run) for run in runs]
    yield "state", *(snapshot.state.value for snapshot in seen)
    statuses = [snapshot.status for snapshot in seen]
    yield "step", *(f"{status.step:,} / {status.steps:,}" if status else NOTHING for status in statuses)
    yield "training time", *(duration(status.train_seconds) if status else NOTHING for status in statuses)
    yield "best", *(best_text(snapshot.best) or NOTHING for snapshot in seen)
    if None in records:
        yield "settings", *("read" if record else "cannot be read" for record in records)
    parameters = [record.parameters if record else None for record in records]
    yield "parameters", *(number(each.image + each.text) if each else NOTHING for each in parameters)
    yield "training pairs", *(number(record.data.train_pairs) if record else NOTHING for record in records)
    yield "device", *(record.device_name if record else NOTHING for record in records)
    prints = {record.data.fingerprint for record in records if record}
    if len(prints) > 1:
        yield "data", *(record.data.fingerprint[:8] or NOTHING if record else NOTHING for record in records)


def _scores(readers: Sequence[RunReader]) -> Iterator[Row]:
    scores = [best.scores if (best := reader.best()) else {} for reader in readers]
    for metric in ordered({key for each in scores for key in each if not is_bound(key)}):
        star = " ●" if any(each and best_by(each).key == metric.key for each in scores) else ""
        yield (
            short_label(metric) + star,
            *(NOTHING if metric.key not in each else text_of(metric, each) for each in scores),
        )


def _settings(record: RunRecord | None) -> dict[str, Any]:
    """What was given, by flag; None where it was left to be chosen automatically."""
    if record is None:
        return {}
    return {
        flag(name): value
        for section in SECTIONS
        for name, value in getattr(record.config, section).model_dump().items()
        if flag(name) != _OWN
    }


def _resolved(record: RunRecord | None) -> dict[str, Any]:
    return record.resolved.model_dump() if record else {}


def _different(of_runs: Sequence[dict[str, Any]]) -> Iterator[Row]:
    if sum(bool(values) for values in of_runs) < 2:  # the settings of one run alone are no differences
        return
    for name in dict.fromkeys(key for values in of_runs for key in values):
        values = [values.get(name) if values else NOTHING for values in of_runs]
        if len({repr(value) for value, known in zip(values, of_runs, strict=True) if known}) > 1:
            yield name.replace("_", " "), *(_shown(value) for value in values)


def _shown(value: Any) -> str:
    if value is None:
        return "automatic"
    return printable(f"{value:g}" if isinstance(value, float) else str(value), 80)
