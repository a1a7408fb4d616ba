"""The strip of small curves."""

from pathlib import Path

from clip_core.run.curve import Bucket, Points
from clip_core.run.records import State
from clip_tui.watcher import Snapshot
from clip_tui.widgets.sparks import sparkline, strip_text


def points(*values: float) -> Points:
    return Points.of([Bucket(step, step, value, value) for step, value in enumerate(values)])


def test_a_small_curve_spans_the_whole_run_and_grows_at_its_end_only() -> None:
    assert sparkline(points(0, 1, 2, 3), 8, 8) == "▁▃▆█    "
    assert sparkline(points(5, 5, 5, 5), 4, 4) == "▅▅▅▅"
    assert sparkline(points(0.5, 0.25), 2, 2, top=1.0) == "▅▃"  # half of 1, whatever the highest value is
    assert sparkline(points(*range(100)), 200, 10).rstrip() == sparkline(points(*range(100)), 200, 10)[:5]


def test_what_was_not_measured_has_a_dash_and_every_name_fits() -> None:
    snapshot = Snapshot(Path("run"), State.RUNNING, curves={"lr": points(1e-3, 5e-4)}, train={"lr": 5e-4})
    for width in (60, 80, 120, 160):
        for lines in (1, 2):
            rows = strip_text(snapshot, 2, width, lines).plain.splitlines()
            assert len(rows) == lines
            assert all(len(row) <= width for row in rows)
    assert "GPU % –" in " ".join(strip_text(snapshot, 2, 160, 1).plain.split())
