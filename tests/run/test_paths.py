import os
from pathlib import Path

from clip_core.files import write_json
from clip_core.run.paths import RunPaths, checkpoint_name, find_runs, is_run
from clip_core.run.reader import RunReader
from clip_core.run.records import State
from clip_core.run.writer import RunWriter
from tests.run.conftest import run_record, touch


def make_run(path: Path, age: float = 0.0) -> Path:
    writer = RunWriter(path)
    run_record().write(writer.paths.config)
    writer.status()
    writer.close()
    touch(writer.paths.status, age)
    return path


def test_names_of_checkpoints_sort_as_their_steps() -> None:
    steps = [0, 9, 10, 180, 99_999, 1_000_000]
    assert sorted(checkpoint_name(step) for step in reversed(steps)) == [checkpoint_name(step) for step in steps]
    assert RunPaths(Path("r")).checkpoint(180) == Path("r/checkpoints/step_0000180")
    assert RunPaths(Path("r")).probe(180) == Path("r/probes/0000180.json")


def test_no_two_files_of_a_run_have_the_same_name() -> None:
    paths = RunPaths(Path("r"))
    names = [getattr(paths, name) for name, value in vars(RunPaths).items() if isinstance(value, property)]
    assert len(names) > 15
    assert len(set(names)) == len(names)


def test_runs_are_found_below_a_folder_latest_first(tmp_path: Path) -> None:
    make_run(tmp_path / "a", age=100)
    make_run(tmp_path / "deep" / "b", age=50)
    make_run(tmp_path / "deep" / "er" / "c", age=150)
    assert [run.name for run in find_runs(tmp_path)] == ["b", "a", "c"]
    assert find_runs(tmp_path / "a") == [tmp_path / "a"]


def test_a_run_that_failed_before_its_first_step_is_found_with_its_whole_error(tmp_path: Path) -> None:
    error = "pairs.csv: " + "; ".join(f"image not found: photos/{n:04}.jpg" for n in range(100)) + "."
    writer = RunWriter(tmp_path / "failed")
    writer.status(state=State.FAILED, error=error)
    writer.close()
    assert not writer.paths.config.exists()
    assert is_run(tmp_path / "failed")
    assert find_runs(tmp_path) == [tmp_path / "failed"]
    status = RunReader(tmp_path / "failed").status()
    assert status is not None
    assert (status.state, status.error) == (State.FAILED, error)


def test_folders_that_only_resemble_a_run_are_not_runs(tmp_path: Path) -> None:
    (tmp_path / "data" / "checkpoints" / "photos").mkdir(parents=True)
    (tmp_path / "model" / "checkpoints").mkdir(parents=True)
    write_json(tmp_path / "model" / "config.json", {"model_type": "clip"})
    (tmp_path / "odd" / "checkpoints").mkdir(parents=True)
    (tmp_path / "odd" / "config.json").write_text("[" * 100_000)
    (tmp_path / "odd" / "status.json").write_text("{half")
    assert find_runs(tmp_path) == []
    make_run(tmp_path / "data" / "runs" / "one")
    assert [run.name for run in find_runs(tmp_path)] == ["one"]


def test_runs_inside_a_run_and_hidden_folders_are_not_searched(tmp_path: Path) -> None:
    make_run(tmp_path / "outer")
    make_run(tmp_path / "outer" / "bundle" / "inner")
    make_run(tmp_path / ".hidden" / "run")
    assert find_runs(tmp_path) == [tmp_path / "outer"]


def test_a_fifo_in_place_of_a_file_does_not_block_the_search(tmp_path: Path) -> None:
    for name in ("config.json", "status.json"):
        run = tmp_path / name.partition(".")[0]
        (run / "checkpoints").mkdir(parents=True)
        os.mkfifo(run / name)
    assert find_runs(tmp_path) == []


def test_a_folder_that_is_missing_or_links_to_itself_has_no_runs(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    assert find_runs(tmp_path) == []
    assert find_runs(tmp_path / "missing") == []
