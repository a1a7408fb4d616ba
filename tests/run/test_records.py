import json
import os
from pathlib import Path

import pytest

from clip_core.errors import RunError
from clip_core.files import write_json
from clip_core.run.reader import RunReader
from clip_core.run.records import (
    SCHEMA_VERSION,
    Blend,
    Blends,
    InitialWeights,
    Pointer,
    Probe,
    Record,
    RunRecord,
    State,
    Status,
    ValidationPair,
    ValidationPairs,
)
from tests.run.conftest import run_record

PROBE = Probe(step=10, images=["a.png"], captions=["a"], similarity=[[0.5]], image_to_text=[[0]], text_to_image=[[0]])
RECORDS: list[Record] = [
    Status(state=State.FAILED, pid=3, host="h", step=1, steps=9, error="no such image\nline two \u202e"),
    run_record(),
    run_record().model_copy(update={"init": InitialWeights(source="a file", given="x.pt", model="ViT-B-32")}),
    ValidationPairs(pairs=[ValidationPair(image="/a/b\udcff.png", caption="emoji 🦊\x1b[2J")]),
    PROBE,
    Pointer(checkpoint="step_0000010", step=10, metric="mean_recall", scores={"mean_recall": 0.5}),
    Blends(chosen=0.5, step=10, blends=[Blend(share=0.5, scores={"mean_recall": 0.5})]),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_is_read_as_it_was_written(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    record.write(path)
    assert type(record).read(path) == record


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_fields_of_a_later_version_are_ignored(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    record.write(path)
    write_json(path, json.loads(path.read_text()) | {"later": {"x": 1}})
    assert type(record).read(path) == record


@pytest.mark.parametrize(
    "content",
    [b"", b"{half", b"[]", b"null", b"\xff\xfe", b"[" * 200_000, b'{"state": ' + b'{"a":' * 50_000, b'{"state": 7}',
     b'{"state": "dancing"}', b'{"step": null}', b'{"step": 1e999}', b'{"pid": ' + b"9" * 9000 + b"}"],
    ids=lambda content: repr(content[:20]),
)  # fmt: skip
def test_a_damaged_status_is_none_and_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.write_bytes(content)
    assert Status.find(path) is None
    with pytest.raises(RunError) as error:
        Status.read(path)
    assert str(error.value).count("\n") == 0
    assert str(error.value).startswith(str(path))


def test_a_missing_file_and_a_fifo_are_one_sentence_each(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"best\.json does not exist"):
        Pointer.read(tmp_path / "best.json")
    os.mkfifo(tmp_path / "best.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "device.json").symlink_to("/dev/zero")
    (tmp_path / "link.json").symlink_to("nowhere")
    for name, kind in {"best": "a FIFO", "folder": "a folder", "device": "a device", "link": "a broken link"}.items():
        with pytest.raises(RunError, match=rf"{name}\.json is {kind}, and only a regular file is read"):
            Pointer.read(tmp_path / f"{name}.json")


def test_a_newer_and_an_older_schema_are_one_sentence_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    run_record().write(path)
    values = json.loads(path.read_text())
    assert values["schema"] == SCHEMA_VERSION
    for schema, age in ((SCHEMA_VERSION + 1, "newer"), (SCHEMA_VERSION - 1, "older")):
        write_json(path, {"schema": schema})  # whatever else has changed
        with pytest.raises(RunError, match=f"written by an? {age} version .*schema {schema}.*use that version"):
            RunRecord.read(path)


def test_a_flag_of_a_later_version_is_one_sentence_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    run_record().write(path)
    values = json.loads(path.read_text())
    values["config"]["optim"]["sharpness\x1b[2J"] = 0.5
    write_json(path, values)
    with pytest.raises(RunError) as error:
        RunRecord.read(path)
    expected = f"{path} has the unknown setting config.optim.sharpness[2J; use the version of clip-tui that wrote it."
    assert str(error.value) == expected


def test_only_live_states_are_alive() -> None:
    assert {state for state in State if state.alive} == {State.STARTING, State.RUNNING, State.PAUSED, State.STALLED}


def test_a_flag_is_taken_away_by_flagging_the_pair_again(tmp_path: Path) -> None:
    reader = RunReader(tmp_path)
    assert reader.flags().pairs == []
    reader.toggle_flag("/a.png", "a red square")
    flags = reader.toggle_flag("/b.png", "a red square")
    assert [pair.image for pair in flags.pairs] == ["/a.png", "/b.png"]
    reader.toggle_flag("/a.png", "a red square")
    assert [pair.image for pair in reader.flags().pairs] == ["/b.png"]
    (tmp_path / "flags.json").write_text("[")
    with pytest.raises(RunError, match=r"flags\.json is not a JSON file"):
        reader.toggle_flag("/a.png", "a red square")
