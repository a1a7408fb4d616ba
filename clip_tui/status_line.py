"""The line below the tabs of Live: the latest health alarm, the best checkpoint, requests and their outcomes."""

from collections.abc import Mapping

from rich.text import Text

from clip_core.run.history import Event
from clip_core.run.metrics import HIGH, LOW, Direction, Format, Metric, best_by, is_second, ordered
from clip_core.run.requests import Request
from clip_core.text import printable
from clip_tui.theme import GREEN, RED, YELLOW
from clip_tui.watcher import Snapshot, best_text

ANSWERED_SECONDS = 60.0  # for so long an acknowledged request is shown
_BETWEEN = " · "
_DOT = Text().append(_BETWEEN, "dim")  # a style of its own would be that of all that it joins
_SHORTEST_ALARM = 20  # columns


def status_line(snapshot: Snapshot, now: float, width: int) -> Text:
    """`⚠ step 75: val loss rising · best mean recall 18.4% @1020 · ✓ checkpoint 720 saved · pause: pending`.

    The alarm is cut where there is no room for all of it; the Logs screen has it whole. It is dim once the run has
    become better after it.
    """
    parts = []
    best = best_text(snapshot.best)
    if best is not None:
        parts.append(Text(f"best {best}"))
    requests = requests_line(snapshot, now)
    if requests:
        parts.append(requests)
    alarm = next((event for event in reversed(snapshot.events) if event.health), None)
    if alarm is not None:
        past = snapshot.best is not None and snapshot.best.step > alarm.step
        text = Text(f"⚠ step {alarm.step:,}: {printable(alarm.message)}", "dim" if past else YELLOW)
        rest = sum(part.cell_len + len(_BETWEEN) for part in parts)
        text.truncate(max(_SHORTEST_ALARM, width - rest), overflow="ellipsis")
        parts.insert(0, text)
    if snapshot.gone:
        parts.insert(0, Text("its directory was deleted or moved; what is shown was read before", RED))
    if snapshot.problem is not None:  # first, where it is not cut: half of what is shown elsewhere is missing
        parts.insert(0, Text(printable(snapshot.problem), RED))
    line = _DOT.join(parts)
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def requests_line(snapshot: Snapshot, now: float) -> Text:
    """Requests that the trainer has not acknowledged, then the outcome of the latest ones, on one line."""
    parts = []
    for request in snapshot.pending:
        name = kind_text(request) if isinstance(request, Request) else f"invalid request {request.id}"
        state = "pending" if snapshot.state.alive else "no trainer runs"
        parts.append(Text(f"{printable(name, 60)}: {state}", YELLOW))
    answered = [event for event in snapshot.events if event.outcome is not None]
    parts += [_outcome(event) for event in reversed(answered) if now - event.time <= ANSWERED_SECONDS]
    line = _DOT.join(parts)
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def kind_text(request: Request) -> str:
    """A request in words."""
    name = request.kind.replace("_", " ")
    return name if request.value is None else f"{name} {request.value:.3g}"


def _outcome(event: Event) -> Text:
    if event.outcome == "done":
        return Text(f"✓ {printable(event.message)}", GREEN)
    return Text(f"✗ {printable(event.message)}", RED)


def validation_rows(snapshot: Snapshot, *, intervals: bool = False) -> list[tuple[str, str, str, bool]]:
    """The last evaluation beside the best checkpoint's: label, now, best, and whether the last one is better.

    Args:
        intervals: with the 95 % confidence interval after the value now: `18.9% (16-22)`.
    """
    best = snapshot.best.scores if snapshot.best else {}
    keys = dict.fromkeys((*snapshot.evaluation, *best))
    rows = []
    for metric in ordered(keys):
        if metric.kind != "eval" or metric.direction is Direction.NONE:
            continue
        now, then = snapshot.value(metric.key), best.get(metric.key)
        chosen = "*" if snapshot.best is not None and metric.key == snapshot.best.metric else ""
        better = now is not None and then is not None and metric.better(now, then)
        interval = _interval(metric, snapshot.evaluation) if intervals else ""
        rows.append((short_label(metric) + chosen, _text(metric, now) + interval, _text(metric, then), better))
    first = best_by(best or dict.fromkeys(keys, 0.0)).key
    return sorted(rows, key=lambda row: not row[0].startswith(_label_of(first)))


def _interval(metric: Metric, scores: Mapping[str, float]) -> str:
    low, high = scores.get(metric.key + LOW), scores.get(metric.key + HIGH)
    return "" if low is None or high is None else f" ({100 * low:.0f}-{100 * high:.0f})"


def _label_of(key: str) -> str:
    return short_label(next(iter(ordered([key]))))


def short_label(metric: Metric) -> str:
    """`R@1 i→t`."""
    short = metric.label.replace("image to text", "i→t").replace("text to image", "t→i").replace("recall@", "R@")
    return short.replace("second validation set, ", "2nd ") if is_second(metric.key) else short


def _text(metric: Metric, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" if metric.format is Format.SHARE else metric.text(value)
