"""The list of runs without a screen: trend, filter, order, deletion."""

import json
import os
from pathlib import Path

from rich.cells import cell_len

from clip_core.run.paths import RunPaths
from clip_core.run.records import Label, State
from clip_tui.differences import comparison
from clip_tui.run_list import (
    RunList,
    arranged,
    bring_back,
    contents,
    left_aside,
    set_aside,
    shortened,
    sparkline,
    trend_of,
)
from tests.tui.conftest import make_run


def test_a_trend_has_the_loss_of_the_whole_run_however_long_the_file(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    for lines in (5, 40, 20_000):
        file.write_text("".join(json.dumps({"kind": "train", "loss": 10 - 9 * n / lines}) + "\n" for n in range(lines)))
        values = trend_of(file)
        assert len(values) == min(lines, 12) or len(values) >= 10
        assert list(values) == sorted(values, reverse=True)
        assert values[0] > 7
        assert values[-1] < 3
    file.write_text('{"kind": "train", "loss": "hostile"}\n[]\nnot json\n')
    assert trend_of(file) == ()
    assert trend_of(tmp_path / "nothing") == ()
    assert sparkline([3, 2, 1]) == "█▅▁"


def test_filter_and_order_keep_pinned_runs_first(tmp_path: Path) -> None:
    for name in ("birds-small", "birds-large", "cats"):
        make_run(tmp_path / "runs" / name, state=State.FINISHED)
    Label(pinned=True).write(RunPaths(tmp_path / "runs" / "cats").label)
    Label(name="Aardvark", note="[red]the best one[/]").write(RunPaths(tmp_path / "runs" / "birds-large").label)
    listed = RunList(tmp_path / "runs")
    assert listed.is_due()
    items = listed.read({})
    assert all(item.trend == () for item in items), "a list at once, its trends after it"
    assert listed.is_due()
    items = listed.read({})
    assert all(item.trend for item in items)
    assert [item.name for item in arranged(items, "", "name")] == ["cats", "Aardvark", "birds-small"]
    assert [item.name for item in arranged(items, "brdsm", "name")] == ["birds-small"]
    assert [item.name for item in arranged(items, "best one", "name")] == ["Aardvark"]
    assert not listed.is_due(), "nothing changed"
    make_run(tmp_path / "runs" / "new", state=State.FINISHED)
    assert listed.is_due()


def test_a_deletion_says_what_goes_and_can_be_taken_back(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "x", state=State.FINISHED)
    assert "4 checkpoints" in contents(run)
    aside = set_aside(run)
    assert not run.exists()
    assert RunList(tmp_path / "runs").read({}) == []
    assert left_aside(tmp_path / "runs") == [], "the app that deleted it still runs"
    bring_back(aside, run)
    assert RunPaths(run).config.is_file()
    gone = set_aside(run)
    orphan = gone.with_name(gone.name.replace(str(os.getpid()), str(2**22 + 1)))
    gone.rename(orphan)
    assert left_aside(tmp_path / "runs") == [orphan]


def test_a_comparison_names_only_the_settings_that_differ(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "runs" / name, state=State.FINISHED) for name in ("a", "b")]
    config = json.loads(RunPaths(runs[1]).config.read_text())
    config["config"]["optim"]["lr"] = 0.0005
    config["config"]["run"]["run_dir"] = str(runs[1])  # always another, so that it says nothing
    config["resolved"]["lr"] = 0.0005
    RunPaths(runs[1]).config.write_text(json.dumps(config))
    groups = dict(comparison(runs))
    assert groups["Different settings"] == [("--lr", "automatic", "0.0005")]
    assert groups["Different values in use"] == [("lr", "0.001", "0.0005")]
    assert ("mean recall ●", "30.0%", "30.0%") in groups["Best checkpoint"]
    groups = dict(comparison([runs[0], tmp_path / "vanished"]))
    assert ("settings", "read", "cannot be read") in groups["Runs"]
    assert not any(title.startswith("Different") for title in groups), "those of one run alone are no differences"
    groups = dict(comparison([*runs, tmp_path / "vanished"]))
    assert groups["Different settings"] == [("--lr", "automatic", "0.0005", "–")]


def test_a_long_name_is_cut_in_its_middle_by_the_columns_that_it_takes() -> None:
    assert shortened("run", 10) == "run"
    assert shortened("sweep/learning-rate/run-0042", 16) == "sweep…e/run-0042"
    for width in (8, 9, 21):
        assert cell_len(shortened("日本語の名前がとても長い実行", width)) <= width
