"""The server process: JSON lines in, JSON lines out, nothing else on stdout."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clip_core.inference.clip import CLIPInference
from clip_core.model.checkpoint import load_model
from tests.models import environment, images_of, make_run, save


class Server:
    """A real child process, asked over its pipes."""

    def __init__(self, *arguments: str, cwd: Path, torch_free: Path | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "clip_core.inference.server", *arguments],
            cwd=cwd, env=environment(torch_free),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self.hello = self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, line: str | dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write((line if isinstance(line, str) else json.dumps(line)) + "\n")
        return self.read()

    def close(self) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=60)
        return self.process.returncode, out


@pytest.fixture(scope="module", params=["torch", "onnx"])
def server(
    request: pytest.FixtureRequest, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    running = Server(str(tiny_run), "--backend", request.param, cwd=tmp_path_factory.mktemp("server"))
    yield running
    assert running.close() == (0, "")


def test_the_first_line_says_what_was_loaded(server: Server) -> None:
    assert server.hello["id"] == 0
    assert server.hello["ok"] is True
    result = server.hello["result"]
    assert (result["embed_dim"], result["image_size"], result["device"]) == (16, 32, "cpu")
    assert (result["step"], result["checkpoint"], result["metric"], result["note"]) == (7, "step_0000007", None, None)
    assert result["source"].endswith("bundle" if result["backend"] == "onnx" else "tiny")


def test_every_question_gets_the_answer_that_the_library_gives(server: Server, tiny_run: Path) -> None:
    clip = CLIPInference(tiny_run, server.hello["result"]["backend"])
    images = images_of(tiny_run)[:6]
    image, texts = str(images[0]), ["a red circle", "a blue square"]
    asked = server.ask({"id": 1, "op": "similarity", "image": image, "texts": texts})
    assert asked["ok"] is True
    assert asked["result"]["similarities"] == pytest.approx(clip.image_text_similarity(image, texts).tolist(), abs=1e-5)

    asked = server.ask({"id": 2, "op": "classification", "image": image, "classes": texts, "templates": ["{}", "a {}"]})
    ranked = clip.zero_shot_classification(image, texts, ["{}", "a {}"])
    assert asked["result"]["classes"] == [name for name, _ in ranked]
    assert asked["result"]["probabilities"] == pytest.approx([value for _, value in ranked], abs=1e-5)

    asked = server.ask({"id": 3, "op": "text_retrieval", "image": image, "texts": texts, "top_k": 1})
    assert asked["result"]["texts"] == clip.image_text_retrieval(image, texts, 1)[0]

    for source in ({"images": [str(path) for path in images]}, {"image_dir": str(images[0].parent)}):
        asked = server.ask({"id": 4, "op": "retrieval", "text": texts[0], "top_k": 3, **source})
        assert asked["id"] == 4
        assert len(asked["result"]["images"]) == len(asked["result"]["similarities"]) == 3
        assert asked["result"]["similarities"] == sorted(asked["result"]["similarities"], reverse=True)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("not json", "question"),
        ("[1, 2]", "question"),
        ("[" * 50_000, "question"),
        ('{"id": 9}', "op"),
        ('{"id": 9, "op": "format_disk"}', "op"),
        ('{"id": 9, "op": "similarity", "image": "x.png"}', "texts"),
        ('{"id": 9, "op": "similarity", "image": 5, "texts": []}', "image"),
        ('{"id": 9, "op": "similarity", "image": "x.png", "texts": ["a"], "more": 1}', "more"),
        ('{"id": 9, "op": "similarity", "image": "nowhere.png", "texts": ["a"]}', "nowhere.png"),
        ('{"id": 9, "op": "similarity", "image": "a\\u0000b.png", "texts": ["a"]}', ""),
        ('{"id": 9, "op": "retrieval", "text": "a"}', "image_dir"),
        ('{"id": 9, "op": "retrieval", "text": "a", "image_dir": "nowhere"}', "nowhere"),
        ('{"id": 9, "op": "retrieval", "text": "a", "images": ["x"], "top_k": 0}', "top_k"),
        ('{"id": 9, "op": "classification", "image": "x", "classes": ["a"], "templates": ["b"]}', "b"),
    ],
)
def test_a_bad_question_is_answered_in_one_sentence_and_the_server_lives(
    server: Server, question: str, message: str
) -> None:
    answer = server.ask(question)
    assert answer["ok"] is False
    assert message in answer["error"]
    assert "\n" not in answer["error"]
    assert answer["id"] == (9 if '"id"' in question else None)
    assert server.process.poll() is None


def test_the_first_line_notes_a_stale_bundle(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    save(run, load_model(run).model, step=9, scores={"mean_recall": 0.5})
    stale = Server(str(run), "--backend", "onnx", cwd=tmp_path)
    assert stale.hello["result"]["note"] == "bundle of step 7, best checkpoint is step 9"
    assert stale.close() == (0, "")


def test_a_model_that_cannot_be_loaded_is_the_first_and_last_line(tmp_path: Path) -> None:
    failed = Server("nowhere", cwd=tmp_path)
    assert failed.hello["ok"] is False
    assert "nowhere" in failed.hello["error"]
    assert failed.close() == (1, "")


def test_the_onnx_server_runs_without_torch_and_the_torch_one_says_what_is_missing(
    tiny_run: Path, tmp_path: Path
) -> None:
    running = Server(str(tiny_run), "--backend", "onnx", cwd=tmp_path, torch_free=tmp_path)
    assert running.hello["result"]["backend"] == "onnx"
    assert running.close()[0] == 0
    fresh = make_run(tmp_path / "fresh")
    failed = Server(str(fresh), "--backend", "torch", cwd=tmp_path, torch_free=tmp_path)
    assert "PyTorch" in failed.hello["error"]
    assert failed.close()[0] == 1
