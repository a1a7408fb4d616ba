"""What is refused before anything is written, and what --resume may change."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from clip_core.config import TrainConfig, parse_config
from clip_core.data.synthetic import DEFAULT_SYNTHETIC
from clip_core.errors import ClipError, DataError, RunError, UsageError
from clip_core.run.records import State
from clip_core.run.writer import RunWriter
from clip_core.training.preflight import (
    _free_name,
    check_new_run,
    choose_run_dir,
    resumed_config,
    with_absolute_paths,
)
from tests.training.conftest import Build, small_config


def config(**sections: dict[str, Any]) -> TrainConfig:
    return parse_config(sections)


# ---------------------------------------------------------------- the run directory


def test_a_run_is_named_by_date_and_time_and_never_like_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = choose_run_dir(TrainConfig(), resume=False)
    assert re.fullmatch(r"runs/\d{8}-\d{6}", str(chosen))
    assert not chosen.exists()
    names = []
    for _ in range(3):
        names.append(_free_name(tmp_path / "run"))
        names[-1].mkdir()
    assert [name.name for name in names] == ["run", "run-2", "run-3"]


def test_only_a_run_can_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--run-dir"):
        choose_run_dir(TrainConfig(), resume=True)
    with pytest.raises(RunError, match="leave out --resume"):
        choose_run_dir(config(run={"run_dir": tmp_path}), resume=True)


def test_a_run_is_not_overwritten_once_it_has_a_configuration(build: Build, shapes: Path, tmp_path: Path) -> None:
    given = small_config(shapes, tmp_path / "run")
    build(given)
    with pytest.raises(RunError, match="already holds a run: add --resume"):
        choose_run_dir(given, resume=False)
    assert choose_run_dir(given, resume=True) == tmp_path / "run"


def test_an_attempt_that_ended_before_its_first_step_may_be_started_again_but_not_resumed(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    writer.status(state=State.FAILED, error="0.png: no such file.")
    writer.close()
    given = config(run={"run_dir": tmp_path / "run"})
    assert choose_run_dir(given, resume=False) == tmp_path / "run"
    with pytest.raises(RunError, match=r"before its first step \(0.png: no such file\); start it again"):
        choose_run_dir(given, resume=True)


# ---------------------------------------------------------------- a new run


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({}, "no training pairs: give --data PATH, or --create-synthetic."),
        ({"data": {"data_file": "nowhere.json"}}, "--data nowhere.json: no such file, folder or shard."),
        ({"data": {"data_file": "pairs.json", "val_file": "val.json"}}, "--val-file val.json: no such file"),
        ({"data": {"data_file": "pairs.json", "tokenizer": "words.json"}}, "--tokenizer words.json: no such file."),
        ({"data": {"data_file": "pairs.json"}, "model": {"image_size": 50, "patch_size": 16}}, "--image-size 50"),
        ({"data": {"data_file": "pairs.json"}, "run": {"device": "tpu"}}, "--device is 'tpu'"),
        ({"data": {"data_file": "pairs.json"}, "tune": {"guard_data": "second.json"}}, "second.json"),
    ],
)
def test_a_new_run_is_refused_and_nothing_is_written(
    sections: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = tmp_path / "pairs.json"
    pairs.write_text('[{"image": "0.png", "caption": "a photo"}]')
    with pytest.raises(ClipError, match=re.escape(said)):
        check_new_run(config(**sections))
    assert list(tmp_path.iterdir()) == [pairs]


def test_what_can_be_trained_passes_without_a_trace(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_new_run(small_config(shapes, tmp_path / "run"))
    check_new_run(config(data={"create_synthetic": True}))
    check_new_run(config(data={"create_synthetic": True, "data_file": "not-yet.json"}))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- a resumed run


@pytest.fixture
def stored(build: Build, shapes: Path, tmp_path: Path) -> TrainConfig:
    """The configuration of the run `run`, as config.json has it; its data are in `data`."""
    data = Path(shutil.copytree(shapes.parent, tmp_path / "data")) / shapes.name
    given = small_config(data, tmp_path / "run", optim={"lr": 0.002})
    build(given)
    return given


def test_resuming_takes_every_setting_from_the_run(stored: TrainConfig, tmp_path: Path) -> None:
    assert resumed_config(config(run={"run_dir": tmp_path / "run"}), tmp_path / "run") == stored


def test_resuming_refuses_every_other_flag_by_its_name(stored: TrainConfig, tmp_path: Path) -> None:
    given = config(optim={"lr": 0.1, "min_lr": 0.5}, run={"run_dir": tmp_path / "run", "seed": 5})
    with pytest.raises(UsageError, match=r"leave out --lr, --min-lr, --seed\.$"):
        resumed_config(given, tmp_path / "run")


def test_resuming_with_moved_data_asks_for_their_place_and_takes_it(stored: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"dataset.json: no such file.*with --data\.$"):
        resumed_config(config(run={"run_dir": tmp_path / "run"}), tmp_path / "run")
    place = tmp_path / "moved" / "dataset.json"
    resumed = resumed_config(config(data={"data_file": place}), tmp_path / "run")
    assert resumed.data == stored.data.model_copy(update={"data_file": place})
    assert resumed.optim == stored.optim


def test_paths_are_stored_so_that_the_run_can_be_resumed_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    local = with_absolute_paths(config(data={"data_file": "a.json"}, tune={"init": "weights"}))
    assert (local.data.data_file, local.data.image_root) == (tmp_path / "a.json", None)
    assert local.tune.init == str(tmp_path / "weights")
    hub = with_absolute_paths(config(data={"create_synthetic": True}, tune={"init": "owner/model"}))
    assert hub.tune.init == "owner/model"
    assert hub.data.data_file == DEFAULT_SYNTHETIC.absolute()


def test_pairs_to_leave_out_are_looked_for_before_anything_is_written(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    for name, words in (("gone.json", "no such file"), ("list.json", r"is not the flags\.json of a run")):
        given = small_config(shapes, tmp_path / "run", data={"data_file": shapes, "leave_out": tmp_path / name})
        with pytest.raises(DataError, match=rf"--leave-out .*{words}"):
            check_new_run(given)
    assert not (tmp_path / "run").exists()
