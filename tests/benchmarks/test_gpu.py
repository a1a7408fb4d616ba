"""The GPU table in its smallest size on a CPU: every part runs, and one that fails stops no other."""

import time

import pytest
import torch

from benchmarks import gpu


def test_the_whole_table_runs_in_its_smallest_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--smallest", "--device", "cpu"]) == 0
    table = capsys.readouterr().out
    assert "failed:" not in table
    assert "left out: " not in table
    for row in ("| tiny |", "| tiny, chunks of 4 | 8 |", "| tiny, activation checkpointing |", "| drawn shapes |"):
        assert row in table
    assert "| image encoder of that run | CPUExecutionProvider | 4 |" in table


def test_a_part_that_fails_is_printed_and_the_next_runs(capsys: pytest.CaptureFixture[str]) -> None:
    bench = gpu.Bench(torch.device("cpu"), time.monotonic() + 60, smallest=True)
    bench.attempt("first", lambda: gpu.open_clip_step(bench, "no such model", 2))
    bench.attempt("second", lambda: print("it ran"))
    assert bench.failed == 1
    out = capsys.readouterr().out.splitlines()
    assert out[-2].startswith("failed: first: ")
    assert out[-1] == "it ran"
    bench.deadline = 0
    bench.attempt("third", lambda: print("not this"))
    assert capsys.readouterr().out == "left out: third: the time is over\n"
