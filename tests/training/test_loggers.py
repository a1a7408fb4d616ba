"""Loggers of other programs: what TensorBoard itself reads, and a run that goes on without a logger."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clip_core.cli.train_command import from_flags
from clip_core.config import parse_config
from clip_core.errors import MissingExtraError
from clip_core.flags import spell
from clip_core.run.paths import RunPaths
from clip_core.training import loggers
from clip_core.training.loggers import Loggers, check_loggers
from clip_tui.form import form_fields
from tests.conftest import SHORT_RUN, clip_train
from tests.running import lines


def test_tensorboard_reads_the_metrics_of_a_run_under_the_names_of_the_table(shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--data-file", str(shapes), "--run-dir", str(run), *SHORT_RUN]
    done = clip_train(*flags, "--log-to", "tensorboard", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(RunPaths(run).tensorboard))
    events.Reload()
    loss = events.Scalars("Loss/training loss")
    written = lines(run, "train")
    assert [event.step for event in loss] == [line["step"] for line in written]
    assert [event.value for event in loss] == pytest.approx([line["loss"] for line in written])
    assert [event.step for event in events.Scalars("Loss/val loss")] == [line["step"] for line in lines(run, "eval")]
    assert "Throughput/throughput" in events.Tags()["scalars"]


def test_a_logger_that_fails_is_left_out_and_said_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, *_: Any) -> None:
            self.calls = 0

        def log(self, values: Any, step: int) -> None:
            raise OSError("no server \x1b[31m")

        def close(self) -> None: ...

    monkeypatch.setitem(loggers._MAKERS, "wandb", Broken)
    said: list[str] = []
    mirror = Loggers(["wandb"], tmp_path, config={}, step=0, say=said.append)
    mirror("train", 1, {"loss": 1.0, "message": "no number"})
    mirror("train", 2, {"loss": 1.0})
    mirror.close()
    assert len(said) == 1
    assert said[0].startswith("--log-to wandb failed and is left out from here on: no server")
    assert "\x1b" not in said[0]


def test_a_missing_package_is_one_sentence() -> None:
    check_loggers(["tensorboard"])
    with pytest.raises(
        MissingExtraError, match=r"--log-to trackio needs trackio; install it with: pip install trackio"
    ):
        check_loggers(["tensorboard", "trackio"])


def test_several_loggers_are_typed_as_a_list_in_flags_and_as_a_text_in_a_form() -> None:
    several = ("tensorboard", "wandb")
    assert parse_config({"run": {"log_to": "tensorboard, wandb"}}).run.log_to == several
    assert from_flags({"log_to": several}).run.log_to == several
    assert spell("log_to", several) == ["--log-to", "tensorboard", "wandb"]
    assert next(field for field in form_fields() if field.name == "log_to").kind == "text"
