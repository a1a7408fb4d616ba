"""docs/run-directory.md says what the code does."""

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import get_args

import pytest

from clip_core.run import records
from clip_core.run.history import History
from clip_core.run.metrics import METRICS, NOT_METRICS, Direction, Format
from clip_core.run.paths import RunPaths
from clip_core.run.reader import RunReader
from clip_core.run.records import SCHEMA_VERSION, STALLED_AFTER, Record, State
from clip_core.run.requests import REQUESTS, Outcome
from clip_core.run.writer import RunWriter

PAGE = (Path(__file__).parents[2] / "docs" / "run-directory.md").read_text("utf-8")
MODELS = [model for model in vars(records).values() if isinstance(model, type) and issubclass(model, Record)]


def table(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its head."""
    section = re.split(rf"^#+ {re.escape(heading)}$", PAGE, flags=re.MULTILINE)[1]
    section = re.split(r"^#+ ", section, flags=re.MULTILINE)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows]


def column(heading: str, number: int = 0) -> list[str]:
    return [row[number] for row in table(heading)]


@pytest.mark.parametrize("model", [model for model in MODELS if model is not Record], ids=lambda model: model.__name__)
def test_every_field_of_a_record_is_on_the_page_and_no_other(model: type[Record]) -> None:
    fields = [field.alias or name for name, field in model.model_fields.items()]
    assert column(model.__name__) == fields


def test_every_file_is_on_the_page_and_no_other() -> None:
    paths = RunPaths(Path("run"))
    files = [getattr(paths, name) for name, value in vars(RunPaths).items() if isinstance(value, property)]
    assert {name.rstrip("/") for name in column("Files")} == {str(path.relative_to("run")) for path in files}
    assert paths.probe(180).name in PAGE
    assert paths.checkpoint(180).name in PAGE


def test_every_metric_is_on_the_page_as_the_table_has_it() -> None:
    expected = [
        [
            metric.key, metric.kind, metric.unit or ("fraction" if metric.format is Format.SHARE else ""),
            "" if metric.direction is Direction.NONE else metric.direction.value, metric.chart or "", metric.label,
        ]
        for metric in METRICS.values()
    ]  # fmt: skip
    assert table("Metrics") == expected


def test_states_requests_outcomes_and_limits_are_on_the_page() -> None:
    assert column("States") == list(State)
    assert column("Requests") == list(REQUESTS)
    assert column("Outcomes") == list(get_args(Outcome))
    assert set(column("Lines")) == NOT_METRICS
    assert f"older than {STALLED_AFTER:.0f} seconds" in PAGE
    assert f"version of the run directory, {SCHEMA_VERSION} " in PAGE


def test_every_field_of_an_event_is_on_the_page(writer: RunWriter) -> None:
    asked = RunReader(writer.path).ask("learning_rate", 1e-3)
    assert json.loads((writer.paths.requests / f"{asked.id}.json").read_text()).keys() == set(column("Request"))
    writer.acknowledge(asked, 1, "done", "evaluated")
    writer.event(1, "resumed", pace="restart", health=True)
    keys = {key for line in RunReader(writer.path).all_lines() for key in line}
    assert keys - NOT_METRICS == set(column("Events"))
    writer.close()


def test_the_example_of_the_page_gets_its_acknowledgement(writer: RunWriter) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[0]
    assert len(code.strip().splitlines()) <= 10
    served = threading.Event()

    def serve() -> None:
        while not served.wait(0.05):
            for request in writer.pending_requests():
                writer.acknowledge(request, 7, "done", "evaluated at step 7")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, writer.path], capture_output=True, text=True, check=True, timeout=60
        )
    finally:
        served.set()
        thread.join()
    assert done.stdout == "done evaluated at step 7\n"
    history = History(RunReader(writer.path))
    history.refresh()
    assert history.events[-1].outcome == "done"
    writer.close()


def test_the_shell_example_of_the_page_is_a_request(writer: RunWriter) -> None:
    code = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)[0]
    subprocess.run(["bash", "-c", code.replace("runs/cats", str(writer.path))], check=True)
    (request,) = writer.pending_requests()
    assert getattr(request, "kind", None) == "evaluate"
    writer.close()
