"""Several processes, started as a user starts them: one run, one writer, and an end together."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from torch import nn

from clip_core.config import TrainConfig, parse_config
from clip_core.errors import RunError, UsageError
from clip_core.model.checkpoint import valid_checkpoints
from clip_core.run.reader import RunReader
from clip_core.run.records import State
from clip_core.training.initial_model import refuse_other_dropout
from clip_core.training.processes import Processes, lost, refuse_one_gpu
from clip_core.training.ranks import Rank
from clip_core.training.recipe import resolve_recipe
from clip_tui.starter import to_flags
from tests.conftest import SHORT_RUN, clip_train, command_environment
from tests.running import Child, answer, lines, start, wait_for_step, wait_until
from tests.training.conftest import Build, small_config
from tests.training.tiny import tiny_config

SMALL = [*SHORT_RUN, "--word-dropout", "0.3", "--patch-dropout", "0.5"]
ENDLESS = ["--epochs", "5000", *SHORT_RUN[2:], "--checkpoint-every", "1", "--eval-every", "100000"]
_SECONDS = 90  # for the others to end


def workers(launcher: Child) -> list[psutil.Process]:
    """The processes of a run, rank 0 first."""
    children = psutil.Process(launcher.pid).children()
    return sorted(
        (child for child in children if "clip_core.cli.train" in child.cmdline()),
        key=lambda child: int(child.environ()["RANK"]),
    )


def test_two_processes_train_what_one_trains_and_either_number_resumes_it(shapes: Path, tmp_path: Path) -> None:
    flags = ["--data-file", str(shapes), *SMALL]
    child = start(*flags, "--run-dir", str(tmp_path / "two"), "--devices", "2", cwd=tmp_path, out=subprocess.PIPE)
    out, errors = child.communicate(timeout=600)
    assert child.returncode == 0, errors
    assert out.count("finished at step 10") == 1  # rank 0 alone speaks
    assert "2 processes, each with 16 pairs of a batch" in out
    one = clip_train(*flags, "--run-dir", str(tmp_path / "one"), cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    two, alone = (lines(tmp_path / name, "train") for name in ("two", "one"))
    assert [line["step"] for line in two] == [line["step"] for line in alone] == list(range(1, 11))
    for key in ("loss", "grad_norm", "chance", "repeated_captions", "lr"):
        assert [line[key] for line in two] == pytest.approx([line[key] for line in alone], rel=2e-3), key
    both = [RunReader(tmp_path / name).latest() for name in ("two", "one")]
    assert both[0] is not None
    assert both[0] == both[1]
    assert RunReader(tmp_path / "two").record().resolved.processes == 2
    resumed = clip_train("--resume", "--run-dir", str(tmp_path / "two"), "--devices", "1", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.fault("SIGKILL of one of several processes")
def test_a_killed_process_ends_the_others_which_start_again_and_a_signal_stops_all_with_a_checkpoint(
    shapes: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = [*ENDLESS, "--devices", "2", "--restarts", "1"]
    child = start("--data-file", str(shapes), "--run-dir", str(run), *flags, cwd=tmp_path)
    wait_for_step(run, 2, child)
    workers(child)[0].kill()  # the one that writes
    wait_until(lambda: any(line["message"] == "resumed" for line in lines(run, "event")), child)
    assert answer(run, "evaluate", child)["outcome"] == "done"
    assert answer(run, "pause", child)["outcome"] == "done"
    assert answer(run, "resume", child)["outcome"] == "done"
    status = RunReader(run).status()
    assert status is not None
    assert status.pid == child.pid  # whose end is the end of all
    wait_for_step(run, status.step + 2, child)
    workers(child)[1].kill()
    killed = time.time()
    assert child.wait(_SECONDS) != 0
    assert time.time() - killed < _SECONDS
    assert child.stderr is not None
    said = child.stderr.read()
    assert "process 1 was ended by SIGKILL" in said
    assert said.count("all processes are started again (1 of 1)") == 1
    assert "Traceback" not in said
    failed = RunReader(run).status()
    assert failed is not None
    assert failed.state is State.FAILED
    assert "resume the run from its last checkpoint with --resume" in str(failed.error)
    saved = valid_checkpoints(run)[0]

    again = start("--resume", "--run-dir", str(run), cwd=tmp_path)  # with as many as before
    wait_for_step(run, int(saved.name.removeprefix("step_")) + 2, again)
    assert len(workers(again)) == 2
    again.send_signal(signal.SIGINT)
    assert again.wait(_SECONDS) == 128 + signal.SIGINT
    stopped = RunReader(run).status()
    assert stopped is not None
    assert stopped.state is State.STOPPED
    assert valid_checkpoints(run)[0].name == f"step_{stopped.step:07d}"
    assert again.stderr is not None
    assert again.stderr.read() == ""


def test_torchrun_starts_a_run_again_from_its_last_checkpoint(shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--data-file", str(shapes), "--run-dir", str(run), *ENDLESS[2:], "--epochs", "6", "--shard"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    child = subprocess.Popen(
        [*torchrun, "--max-restarts", "1", "-m", "clip_core.cli.train", *flags],
        cwd=tmp_path, env=command_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_step(run, 3, child)
    workers(child)[0].kill()  # the one that writes
    assert child.wait(600) == 0, child.stderr.read() if child.stderr else ""
    resumed = [line for line in lines(run, "event") if line["message"] == "resumed"]
    assert len(resumed) == 1
    assert resumed[0]["step"] >= 2
    steps = [line["step"] for line in lines(run, "train")]
    assert steps == sorted(set(steps))
    assert RunReader(run).state() is State.FINISHED


def test_a_mistake_is_one_sentence_however_many_processes_and_restarts_there_are(tmp_path: Path) -> None:
    flags = ["--data", "nowhere.json", "--run-dir", "run", "--devices", "2", "--restarts", "3"]
    child = start(*flags, cwd=tmp_path)
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 1
    assert errors.count("nowhere.json") == 1
    assert len(errors.splitlines()) == 1


def test_batches_that_the_processes_cannot_divide_are_refused_or_made_smaller() -> None:
    def batch_size(given: int | None, processes: int) -> int:
        config = parse_config({"optim": {"batch_size": given}, "run": {"device": "cpu"}})
        return resolve_recipe(config, 1000, tiny_config(), epoch_pairs=1000, processes=processes)[0].batch_size

    assert batch_size(30, 3) == 30
    assert batch_size(None, 3) == batch_size(None, 1) // 3 * 3
    with pytest.raises(UsageError, match="--batch-size 32 cannot be divided among 3 processes"):
        batch_size(32, 3)


def test_another_number_of_processes_is_refused_where_they_draw_dropout(
    build: Build, shapes: Path, tmp_path: Path
) -> None:
    trainer = build(small_config(shapes, tmp_path / "run"))
    model, record = trainer.train_step.model, RunReader(tmp_path / "run").record()
    refuse_other_dropout(record, model, Rank(0, 2), tmp_path)
    model.image.blocks[0].get_submodule("mlp").append(nn.Dropout(0.5))
    refuse_other_dropout(record, model, Rank(), tmp_path)
    with pytest.raises(RunError, match="resume it with --devices 1"):
        refuse_other_dropout(record, model, Rank(0, 2), tmp_path)


def test_alone_every_exchange_is_its_own_answer() -> None:
    alone = Processes()
    assert alone.exchange(3) == [3]
    assert alone.of_first("a") == "a"
    assert alone.most(1, 2) == [1, 2]
    assert alone.mean({"loss": 0.5}) == {"loss": 0.5}
    assert alone.device("cuda") == "cuda"
    assert Processes(Rank(1, 2), local=1).device("cuda") == "cuda:1"
    assert not alone.orphaned
    assert not lost(ValueError("gloo"))
    refuse_one_gpu("cpu", 64)


def test_the_interface_passes_the_number_of_processes_on() -> None:
    assert to_flags(TrainConfig.model_validate({"run": {"devices": 2}})) == ["--devices", "2"]
