"""A mistyped command line, and the command or option that was meant."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clip_core.cli import data, infer, suggest, train_command
from clip_core.cli.app import run_app
from clip_tui import cli as tui
from export import cli as export

MAINS = {
    "clip-train": train_command.run,
    "clip-data": data.main,
    "clip-infer": infer.main,
    "clip-tui": tui.main,
    "clip-export": lambda argv: run_app(export.app, argv),
}


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("clip-train pairs.json", "pairs.json has no option before it; did you mean --data pairs.json?"),
        ("clip-train --learning-rate 3", "unknown option --learning-rate; did you mean --lr?"),
        ("clip-train --learning_rate=3", "unknown option --learning_rate; did you mean --lr?"),
        ("clip-train -lr 3", "unknown option -lr; did you mean --lr?"),
        ("clip-train --ephocs 3", "unknown option --ephocs; did you mean --epochs?"),
        ("clip-train --no-augmnt", "unknown option --no-augmnt; did you mean --no-augment?"),
        ("clip-train --dropout 0.1", "did you mean --head-dropout, --patch-dropout, --word-dropout or --bpe-dropout?"),
        ("clip-train epochs 3", "did you mean --epochs?"),
        ("clip-train --data a.tar b.tar c.tar", "b.tar is not expected; put a pattern of shards in quotes"),
        ("clip-train --xyzzy 3", "unknown option --xyzzy; clip-train --help lists the options."),
        ("clip-infer classify --image x", "classify is not a command; did you mean classification?"),
        ("clip-infer text_retrieval --image x", "did you mean text-retrieval?"),
        ("clip-infer retreival", "did you mean retrieval?"),
        (
            "clip-infer xyzzy",
            "the commands are similarity, classification, retrieval, gallery, text-retrieval, evaluate.",
        ),
        ("clip-infer --texts a", "--texts is an option of clip-infer similarity or text-retrieval, not of clip-infer."),
        ("clip-infer similarity --imag x", "unknown option --imag; did you mean --image?"),
        ("clip-infer similarity a.jpg --texts a", "--image is missing; did you mean --image a.jpg?"),
        ("clip-infer similarity --image a --caption b", "unknown option --caption; did you mean --texts?"),
        ("clip-data chek x", "chek is not a command; did you mean check?"),
        ("clip-data pairs.json", "did you mean check pairs.json?"),
        ("clip-data check x --colum y", "did you mean --image-column or --caption-column?"),
        ("clip-data info x --workers 2", "--workers is an option of clip-data check, not of clip-data info."),
        ("clip-data check", "FILE is missing; see clip-data check --help."),
        ("clip-export run --output x", "unknown option --output; did you mean --out?"),
        ("clip-tui dmeo", "dmeo does not exist; did you mean clip-tui demo?"),
    ],
)
def test_what_was_meant_is_named_in_one_line(typed: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, *argv = typed.split()
    code = MAINS[command](argv)
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith(f"{command}: ")
    assert said in error
    assert error.count("\n") == 1


def test_every_synonym_leads_to_an_option_or_a_command_that_exists() -> None:
    apps = [train_command.app, data.app, infer.app, tui.app, export.app]
    commands = [(app, [name]) for app in apps for name in app if not name.startswith("-")]
    options = {flag for app, chain in [*((app, []) for app in apps), *commands] for flag in suggest._flags(app, chain)}
    meant = {f"--{name}" for names in suggest.FLAG_SYNONYMS.values() for name in names}
    assert meant <= options
    assert set(suggest.COMMAND_SYNONYMS.values()) <= {name for _, (name,) in commands}


@pytest.mark.parametrize("spelling", ["--data", "--data-file", "--data_file"])
def test_the_option_that_a_message_names_is_the_one_that_was_typed(
    spelling: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_command.run([spelling, ""]) == 2
    assert capsys.readouterr().err == f"clip-train: {spelling} is ''; it should not be empty.\n"
    assert train_command.run([spelling, "nowhere.json"]) == 1
    assert capsys.readouterr().err == f"clip-train: {spelling} nowhere.json: no such file, folder or shard.\n"


def test_an_existing_path_with_a_space_is_put_in_quotes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my cats").mkdir()
    monkeypatch.chdir(tmp_path)
    assert data.main(["check", "my", "cats"]) == 2
    assert "put quotes around a path with spaces: 'my cats'." in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize(
    ("module", "argv", "code"),
    [
        ("clip_core.cli.train", ["--data", "猫.json"], 1),
        ("clip_core.cli.train", ["--help"], 0),
        ("clip_core.cli.infer", ["similarity", "--image", "猫.png", "--texts", "a", "--model", "猫"], 1),
        ("clip_core.cli.data", ["check", "猫.json"], 1),
        ("clip_core.cli.data", ["info", "{folder}"], 0),
        ("clip_core.cli.data", ["check", "{folder}"], 0),
        ("clip_tui.cli", ["猫"], 2),
        ("export.cli", ["猫/猫/猫"], 1),
    ],
)
def test_a_character_that_the_terminal_lacks_is_a_question_mark_in_every_command(
    module: str, argv: list[str], code: int, encoding: str, tmp_path: Path
) -> None:
    from PIL import Image

    for number in range(4):
        Image.new("RGB", (20, 20), (number * 60, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"黑猫 {number}", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", module, *(word.replace("{folder}", str(tmp_path)) for word in argv)],
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert b"Traceback" not in said
    assert argv == ["--help"] or b"?" in said
