"""The client of the inference servers."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from clip_core.errors import BackendError
from clip_core.run.paths import RunPaths
from clip_tui.encoder import KEPT, EncoderClient, Encoders, Model, _identity, _source, model_of, other


async def test_a_missing_model_is_one_sentence_and_leaves_no_process(tmp_path: Path) -> None:
    client = EncoderClient(model_of(tmp_path / "nothing", "onnx"))
    with pytest.raises(BackendError, match="nothing"):
        await client.ask("similarity", image="a", texts=["b"])
    assert client._process is None


async def test_a_server_that_ends_at_once_is_an_error_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip_tui.encoder.SERVER", "this_module_is_not_there")
    client = EncoderClient(model_of(tmp_path / "run", "torch"))
    with pytest.raises(BackendError, match="this_module_is_not_there"):
        await client.ask("similarity", image="a", texts=["b"])
    await client.close()


ECHO = """
import json, os, sys
print(json.dumps({"id": 0, "ok": True, "result": {"source": "echo"}}), flush=True)
for line in sys.stdin:
    query = json.loads(line)
    if query["op"] == "crash" and not os.path.exists(query["text"]):
        open(query["text"], "w").close()
        print("out of memory", file=sys.stderr, flush=True)
        os._exit(9)
    elif query["op"] == "slow":
        print(json.dumps({"id": query["id"], "progress": [3, 5000]}), flush=True)
    if query["op"] == "fail":
        print(json.dumps({"id": query["id"], "ok": False, "error": "it failed"}), flush=True)
    else:
        print(json.dumps({"id": query["id"], "ok": True, "result": {"said": query["text"]}}), flush=True)
"""


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EncoderClient:
    (tmp_path / "echo_server.py").write_text(ECHO)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr("clip_tui.encoder.SERVER", "echo_server")
    return EncoderClient(model_of(tmp_path / "run", "torch"))


async def test_each_query_gets_its_own_answer(echo: EncoderClient) -> None:
    answers = await asyncio.gather(*(echo.ask("echo", text=f"text {n}") for n in range(5)))
    assert [answer.result["said"] for answer in answers] == [f"text {n}" for n in range(5)]
    assert {answer.source for answer in answers} == {"echo"}
    await echo.close()


async def test_an_error_leaves_the_server_ready_for_the_next_query(echo: EncoderClient) -> None:
    with pytest.raises(BackendError, match="it failed"):
        await echo.ask("fail")
    assert (await echo.ask("echo", text="again")).result == {"said": "again"}
    await echo.close()


async def test_a_server_that_was_killed_is_started_again(echo: EncoderClient) -> None:
    await echo.ask("echo", text="one")
    assert echo._process is not None
    echo._process.kill()
    await echo._process.wait()
    answer = await echo.ask("echo", text="two")
    assert answer.result == {"said": "two"}
    assert answer.note == "the torch encoder had ended; it was restarted"
    assert (await echo.ask("echo", text="three")).note is None
    await echo.close()
    assert echo._process is None


async def test_a_restart_is_mentioned_although_the_query_that_began_it_was_dropped(echo: EncoderClient) -> None:
    await echo.ask("echo", text="one")
    assert echo._process is not None
    echo._process.kill()
    await echo._process.wait()
    said: list[str] = []
    dropped = asyncio.create_task(echo.ask("echo", said.append, text="two"))
    while not said:
        await asyncio.sleep(0)
    dropped.cancel()
    answer = await echo.ask("echo", said.append, text="three")
    assert said == ["its process had ended, starting again"] * 2 + ["asking"]
    assert answer.note == "the torch encoder had ended; it was restarted"
    await echo.close()


async def test_another_query_during_the_start_waits_for_the_process_that_starts(echo: EncoderClient) -> None:
    dropped = asyncio.create_task(echo.ask("echo", text="one"))
    while echo._process is None:
        await asyncio.sleep(0.001)
    starting = echo._process
    dropped.cancel()
    assert (await echo.ask("echo", text="two")).result == {"said": "two"}
    assert echo._process is starting
    await echo.close()


async def test_closing_during_the_start_ends_the_process_and_the_query_with_a_sentence(echo: EncoderClient) -> None:
    asked = asyncio.create_task(echo.ask("echo", text="one"))
    while echo._process is None:
        await asyncio.sleep(0.001)
    starting = echo._process
    await echo.close()
    with pytest.raises(BackendError, match="closed while it started"):
        await asked
    assert starting.returncode is not None


def test_the_source_names_the_step_of_a_checkpoint_alone() -> None:
    hello = {"source": "runs/birds", "step": 1374, "checkpoint": "step_0001374"}
    assert _source(hello, Path("x")) == "step 1,374 of runs/birds"
    assert _source({"source": "weights", "step": 0, "checkpoint": ""}, Path("x")) == "weights"


async def test_a_server_that_crashes_on_a_query_is_started_again_and_says_why_it_ended(
    echo: EncoderClient, tmp_path: Path
) -> None:
    answer = await echo.ask("crash", text=str(tmp_path / "crashed"))
    assert answer.result == {"said": str(tmp_path / "crashed")}
    assert answer.note == "the torch encoder had ended (out of memory); it was restarted"
    await echo.close()


async def test_the_progress_of_a_query_is_told_while_it_runs(echo: EncoderClient) -> None:
    said: list[str] = []
    await echo.ask("slow", said.append, text="x")
    assert said == ["starting", "asking", "embedding 3 of 5,000 images"]
    await echo.close()


async def test_no_more_processes_than_are_kept_and_no_named_files(echo: EncoderClient, tmp_path: Path) -> None:
    encoders = Encoders()
    for number in range(KEPT + 2):
        await encoders.ask(Model(tmp_path, "torch", f"model {number}"), "echo", text="x")
    assert len(encoders._clients) == KEPT
    await encoders.close()


def test_a_new_checkpoint_or_bundle_needs_a_new_server(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    paths.bundle.mkdir()
    for backend, file in (("torch", paths.best), ("onnx", paths.bundle_manifest)):
        before = _identity(model_of(tmp_path, backend))
        file.write_text(json.dumps({}))
        os.utime(file, (1, 1))
        first = _identity(model_of(tmp_path, backend))
        os.utime(file, (2, 2))
        assert len({before, first, _identity(model_of(tmp_path, backend))}) == 3
        assert _identity(model_of(tmp_path, other(backend))) != first
