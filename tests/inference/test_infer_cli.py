"""clip-infer as a user runs it: a real process, with and without torch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clip_core.cli.infer import main
from clip_core.inference.clip import CLIPInference
from clip_core.model.checkpoint import load_model
from tests.models import environment, images_of, make_run, python, save

INFER = ("-m", "clip_core.cli.infer")


@pytest.fixture(scope="module")
def image(tiny_run: Path) -> Path:
    return images_of(tiny_run)[0]


def test_a_bundle_is_used_where_torch_cannot_be_imported(tiny_bundle: Path, image: Path, tmp_path: Path) -> None:
    asked = ("--model", tiny_bundle, "--image", image, "--json")
    done = python(*INFER, "classification", *asked, "--classes", "red circle", "blue square", torch_free=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    expected = CLIPInference(tiny_bundle).zero_shot_classification(image, ["red circle", "blue square"])
    assert answer["classes"] == [name for name, _ in expected]
    assert answer["probabilities"] == pytest.approx([value for _, value in expected], abs=1e-5)
    assert answer["templates"] == ["a photo of a {}"]


def test_a_run_answers_from_its_bundle_where_torch_cannot_be_imported(
    tiny_run: Path, image: Path, tmp_path: Path
) -> None:
    asked = ("similarity", "--model", tiny_run, "--image", image, "--texts", "a", "b", "--json")
    assert json.loads(python(*INFER, *asked, torch_free=tmp_path).stdout)["backend"] == "onnx"
    fresh = make_run(tmp_path / "fresh")
    failed = python(*INFER, "similarity", "--model", fresh, "--image", image, "--texts", "a", torch_free=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert "PyTorch" in failed.stderr


def test_a_stale_bundle_is_noted_on_stderr_and_in_the_json(tiny_run: Path, image: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    save(run, load_model(run).model, step=9)
    note = "bundle of step 7, best checkpoint is step 9"
    asked = ("similarity", "--image", image, "--texts", "a", "--model")
    done = python(*INFER, *asked, run, torch_free=tmp_path)
    assert (done.returncode, done.stderr) == (0, f"note: {note}\n")
    assert done.stdout.splitlines()[0].endswith("step 7, onnx on cpu")
    done = python(*INFER, *asked, run / "bundle", "--json")
    assert done.stderr == f"note: {note}\n"
    answer = json.loads(done.stdout)
    assert (answer["note"], answer["checkpoint"], answer["step"]) == (note, "step_0000007", 7)


def test_a_character_that_the_terminal_lacks_is_replaced(tiny_bundle: Path, image: Path) -> None:
    asked = (*INFER, "similarity", "--model", tiny_bundle, "--image", image, "--texts", "漢字")
    done = subprocess.run(
        [sys.executable, *map(str, asked)], env=environment() | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines()[1].endswith(b"??")


def test_a_bundle_imports_neither_torch_nor_onnx_though_they_are_there(tiny_bundle: Path, image: Path) -> None:
    code = (
        "import sys; from clip_core import CLIPInference; "
        f"CLIPInference({str(tiny_bundle)!r}).image_text_similarity({str(image)!r}, ['a']); "
        "print(sorted({'torch', 'onnx', 'matplotlib', 'cyclopts', 'textual'} & sys.modules.keys()))"
    )
    assert python("-c", code).stdout.strip() == "[]"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from clip_core.cli.infer import main; main(['classification', '--help']); "
        "print(sorted({'torch', 'onnxruntime', 'numpy', 'PIL', 'tokenizers'} & sys.modules.keys()))"
    )
    assert python("-c", code).stdout.strip().endswith("[]")


@pytest.mark.parametrize(
    "spelling",
    [
        ("classification", "--model", "BUNDLE"),
        ("--mode", "classification", "--model", "BUNDLE"),
        ("--model_path", "BUNDLE", "--mode=classification"),
        ("classification", "--model-path", "BUNDLE"),
    ],
)
def test_every_accepted_spelling_is_the_same_command(tiny_bundle: Path, image: Path, spelling) -> None:
    words = [str(tiny_bundle) if word == "BUNDLE" else word for word in spelling]
    done = python(*INFER, *words, "--image", image, "--classes", "red circle", "blue square")
    assert done.returncode == 0, done.stderr
    assert "red circle" in done.stdout
    assert "blue square" in done.stdout


def test_text_retrieval_may_be_spelt_with_an_underscore(tiny_bundle: Path, image: Path) -> None:
    done = python(*INFER, "--mode", "text_retrieval", "--model", tiny_bundle, "--image", image, "--texts", "a", "b")
    assert done.returncode == 0, done.stderr


def test_captions_that_the_model_knows_need_no_template_and_no_list(tiny_bundle: Path, image: Path) -> None:
    done = python(*INFER, "classification", "--model", tiny_bundle, "--image", image, "--json", "--top-k", "3")
    answer = json.loads(done.stdout)
    assert answer["templates"] == ["{}"]
    assert len(answer["classes"]) == 3


def test_retrieval_prints_paths_and_draws_a_grid(tiny_bundle: Path, image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(image.parent, folder)
    (folder / "\x1b[31m hostile\n.png").write_bytes(image.read_bytes())
    (folder / "broken.png").write_bytes(b"no image")
    asked = ("retrieval", "--model", tiny_bundle, "--text", "a red circle", "--image-dir", folder)
    done = python(*INFER, *asked, "--top-k", "100", "--plot", tmp_path / "grid.png")
    assert done.returncode == 0, done.stderr
    assert "1 of 38 images skipped" in done.stderr
    assert len(done.stdout.splitlines()) == 1 + 37
    assert "\x1b" not in done.stdout + done.stderr
    assert (tmp_path / "grid.png").stat().st_size > 1000
    answer = json.loads(python(*INFER, *asked, "--json", "--index", tmp_path / "index").stdout)
    assert len(answer["images"]) == 5
    assert (tmp_path / "index" / "gallery.sqlite").is_file()
    assert list(answer["skipped"]) == [str(folder / "broken.png")]


def test_gallery_says_what_is_skipped_and_what_is_not_stored(
    tiny_bundle: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(image.parent, folder := tmp_path / "images")
    broken = folder / "broken.png"
    broken.write_bytes(b"no image")
    asked = ["gallery", "--model", str(tiny_bundle), "--image-dir", str(folder), "--index", str(broken)]
    assert main([*asked, "--save", str(tmp_path / "nowhere" / "x.npz")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main(asked) == 0
    said = capsys.readouterr()
    assert said.err.count(str(broken)) == 1
    assert "cannot be stored" in said.err
    assert said.out == "36 images in the gallery; 37 were new or changed\n"


@pytest.mark.parametrize("mode", ["similarity", "text-retrieval"])
def test_bars_are_drawn(tiny_bundle: Path, image: Path, tmp_path: Path, mode: str) -> None:
    asked = (mode, "--model", tiny_bundle, "--image", image, "--texts", "a $x", "b", "--plot", tmp_path / "bars.png")
    done = python(*INFER, *asked)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "bars.png").stat().st_size > 1000


def test_a_truncated_text_is_reported(tiny_bundle: Path, image: Path) -> None:
    done = python(*INFER, "similarity", "--model", tiny_bundle, "--image", image, "--texts", "long " * 30, "short")
    assert "1 of 2 texts are longer than 24 tokens" in done.stderr


def test_without_arguments_the_latest_run_is_shown(tiny_run: Path, tmp_path: Path) -> None:
    empty = python(*INFER, cwd=tmp_path)
    assert empty.returncode == 2
    assert "no trained run below ./runs" in empty.stderr
    (tmp_path / "runs").mkdir()
    shutil.copytree(tiny_run, tmp_path / "runs" / "latest")
    older = tmp_path / "runs" / "older"
    shutil.copytree(tiny_run, older)
    os.utime(older / "config.json", (1, 1))
    done = python(*INFER, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "runs/latest" in done.stdout
    assert "by similarity" in done.stdout
    assert "clip-infer retrieval" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mode", "magic"), "magic"),
        (("similarity", "--model", "nowhere", "--image", "x.png", "--texts", "a"), "nowhere"),
        (("similarity", "--model", "BUNDLE", "--image", "x.png", "--texts", "a"), "x.png"),
        (("similarity", "--model", "BUNDLE", "--image", "x.png"), "--texts"),
        (("similarity", "--model", "BUNDLE", "--image", "x", "--texts", "a", "--plot", "x.y"), "--plot"),
        (("retrieval", "--model", "BUNDLE", "--text", "a", "--image-dir", "nowhere"), "nowhere"),
        (("retrieval", "--model", "BUNDLE", "--text", "a", "--image-dir", ".", "--top-k", "0"), "--top-k"),
        (("retrieval", "--model", "BUNDLE", "--text", "a", "--image-dir", "."), "no readable image"),
        (("classification", "--model", "BUNDLE", "--image", "x", "--classes", "a", "--template", "b"), "'b'"),
        (("classification", "--model", "BUNDLE", "--image", "x\x1b[31m", "--classes", "a"), "x[31m"),
    ],
)
def test_a_mistake_is_one_sentence_without_a_traceback(tiny_bundle: Path, tmp_path: Path, words, message: str) -> None:
    done = python(*INFER, *(tiny_bundle if word == "BUNDLE" else word for word in words), cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert done.stderr.startswith("clip-infer: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("classes", "note"),
    [
        (
            ["red, green, dark blue"],
            "this is one class, 'red, green, dark blue'; separate classes by spaces: --classes",
        ),
        (["red,", "green"], "the commas belong to the names, 'red,', 'green'; separate classes by spaces: --classes"),
    ],
)
def test_classes_in_one_word_with_commas_get_a_note(
    classes: list[str], note: str, tiny_bundle: Path, image: Path
) -> None:
    asked = (*INFER, "classification", "--model", tiny_bundle, "--image", image, "--classes")
    done = python(*asked, *classes)
    assert done.returncode == 0
    assert done.stderr.startswith(f"note: {note} red green")
    assert "note" not in python(*asked, "red", "dark blue").stderr


@pytest.mark.parametrize(
    ("command", "flag"), [("similarity", "--texts"), ("text-retrieval", "--texts"), ("classification", "--classes")]
)
def test_a_flag_without_a_value_is_refused(tiny_bundle: Path, image: Path, command: str, flag: str, capsys) -> None:
    assert main([command, "--model", str(tiny_bundle), "--image", str(image), flag]) == 2
    assert capsys.readouterr().err.startswith(f"clip-infer: {flag} is given without a value")
