"""clip-data, as it is typed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from clip_core.cli.data import main


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Thirty good pairs with long and repeated captions, and two bad ones."""
    Image.new("RGB", (30, 20)).save(tmp_path / "wide.png")
    Image.new("RGB", (10, 10)).save(tmp_path / "small.png")
    entries = [{"image": "wide.png", "caption": f"caption {n % 10}"} for n in range(29)]
    entries += [{"image": "small.png", "caption": "long " * 100}, {"image": "small.png", "caption": " "}]
    entries.insert(4, {"image": "\x1b[31mgone.png", "caption": "a ghost"})
    (tmp_path / "pairs.json").write_text(json.dumps(entries))
    return tmp_path / "pairs.json"


def test_check_says_what_training_would_make_of_the_list(mixed: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", str(mixed), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["usable_pairs"], found["pictures"]) == (30, 2)
    assert (found["captions"], found["repeated_captions"]) == (11, 19)
    assert found["picture_sizes"] == {"smallest": [10, 10], "median": [30, 20], "largest": [30, 20]}
    assert [bad["entry"] for bad in found["bad_pairs"]] == [5, 32]
    assert [(fit["kind"], fit["truncated"]) for fit in found["tokenizers"]] == [("char", 1), ("bpe", 1)]


def test_the_text_names_each_bad_pair_and_no_escape_reaches_the_terminal(
    mixed: Path, capsys: pytest.CaptureFixture[str]
):
    main(["check", str(mixed), "--image_root", str(mixed.parent)])
    out = capsys.readouterr().out
    assert "entry 5: no picture at" in out
    assert "entry 32: the caption is empty" in out
    assert "\x1b" not in out


def test_a_list_with_nothing_usable_is_still_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "pairs.json").write_text('[{"image": "gone.png", "caption": "a ghost"}]')
    assert main(["check", str(tmp_path / "pairs.json")]) == 1
    assert "pictures    none" in capsys.readouterr().out


def test_drawn_shapes_pass_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    drawn = [
        "synthetic",
        str(tmp_path / "shapes"),
        "--count",
        "36",
        "--size",
        "32",
        "--holdout-combinations",
        "2",
    ]
    assert main(drawn) == 0
    for name in ("dataset.json", "dataset_unseen.json"):
        assert main(["check", str(tmp_path / "shapes" / name)]) == 0
    assert main(drawn) == 2
    assert "already there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (["check", "gone.json"], 1, "clip-data: no pair list at gone.json"),
        (["synthetic", "x", "--count", "3"], 2, 'Invalid value "3" for --count'),
        (["synthetic", "x", "--holdout-combinations", "13"], 2, "Must be <= 12"),
        (["check"], 2, "file"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_a_mistake_is_one_sentence(flags: list[str], code: int, sentence: str, capsys: pytest.CaptureFixture[str]):
    assert main(flags) == code
    error = capsys.readouterr().err
    assert sentence.casefold() in error.casefold()
    assert error.count("\n") == 1


def test_the_data_package_needs_no_torch():
    modules = ("preprocess", "tokenizer", "pairs", "store", "dataset", "synthetic")
    imports = "; ".join(f"import clip_core.data.{name}" for name in modules)
    code = f"import sys; sys.modules['torch'] = None; {imports}; import clip_core.cli.data"
    subprocess.run([sys.executable, "-c", code], check=True)
