"""A trainer before its first step, built as `clip-train` builds it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clip_core.config import TrainConfig, parse_config
from clip_core.run.writer import RunWriter
from clip_core.training.initial_weights import find_start
from clip_core.training.log import Log
from clip_core.training.request_queue import RequestQueue
from clip_core.training.setup import build_trainer
from clip_core.training.trainer import Trainer

Build = Callable[..., Trainer]


def small_config(data_file: Path | None, run_dir: Path, **sections: dict[str, Any]) -> TrainConfig:
    """A small network on the CPU; `sections` are added to the defaults of each section."""
    small: dict[str, dict[str, Any]] = {
        "data": {"data_file": data_file},
        "model": {"model_size": "nano", "image_size": 32, "layers": 1, "width": 64},
        "run": {"run_dir": run_dir, "device": "cpu", "precision": "fp32"},
        "optim": {"batch_size": 32, "epochs": 2},
    }
    return parse_config({name: small.get(name, {}) | sections.get(name, {}) for name in small.keys() | sections.keys()})


@pytest.fixture
def build() -> Iterator[Build]:
    """Builds trainers; their runs are unlocked and their logs closed before the next one is built, and at the end."""
    opened: list[Log | RunWriter] = []

    def close() -> None:
        while opened:
            opened.pop().close()

    def built(config: TrainConfig, *, resume: bool = False) -> Trainer:
        close()
        assert config.run.run_dir is not None
        writer, log = RunWriter(config.run.run_dir), Log()
        log.to_file(writer.paths.log)
        opened.extend((writer, log))
        start = find_start(config, writer.path, resume=resume)
        return build_trainer(config, start, writer, log, RequestQueue(writer), resume=resume)

    yield built
    close()
