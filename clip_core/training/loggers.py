"""The metrics of a run for other programs, on request: TensorBoard event files, Weights & Biases, trackio.

Names and charts are those of the metric table. A library is imported only if it was asked for; whatever happens in it,
training goes on.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from clip_core.config import LoggerName
from clip_core.errors import MissingExtraError
from clip_core.run.metrics import ordered
from clip_core.run.paths import RunPaths
from clip_core.text import printable

_PROJECT = "clip-tui"


def check_loggers(names: Sequence[LoggerName]) -> None:
    """Refuse a logger whose package is not installed.

    Raises:
        MissingExtraError: naming the package.
    """
    for name in names:
        if find_spec(name) is None:
            raise MissingExtraError(f"--log-to {name} needs {name}; install it with: pip install {name}.")


class _Logger(Protocol):
    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class Loggers:
    """Every logger of a run; one that fails is left out from then on, and said so once.

    Args:
        names: of the loggers.
        run: the run directory, whose name is the run's.
        config: what the loggers store of the configuration.
        step: the run is resumed after it; what was logged later is replaced.
        say: called with a sentence when a logger fails.
    """

    def __init__(
        self,
        names: Sequence[LoggerName],
        run: Path,
        *,
        config: Mapping[str, Any],
        step: int,
        say: Callable[[str], None],
    ) -> None:
        self.say = say
        self._loggers: dict[str, _Logger] = {}
        for name in names:
            self._try(name, partial(self._start, name, run, config, step))

    def __call__(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Log a line of metrics: `Loss/training loss`, `Recall@1/recall@1 image to text`, ..."""
        named = {
            f"{metric.chart or kind}/{metric.label}": float(values[metric.key])
            for metric in ordered(values)
            if isinstance(values[metric.key], int | float)
        }
        for name, logger in list(self._loggers.items()):
            self._try(name, partial(logger.log, named, step))

    def close(self) -> None:
        for name, logger in list(self._loggers.items()):
            self._try(name, logger.close)
        self._loggers.clear()

    def _start(self, name: str, run: Path, config: Mapping[str, Any], step: int) -> None:
        self._loggers[name] = _MAKERS[name](run, config, step)

    def _try(self, name: str, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # of a library that contacts a server
            self._loggers.pop(name, None)
            self.say(printable(f"--log-to {name} failed and is left out from here on: {error}", 300))


class _TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, run: Path, config: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(RunPaths(run).tensorboard, purge_step=step + 1 if step else None, flush_secs=10)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Hosted:
    """wandb, or trackio, which has the same functions; resumed under the name of the run."""

    def __init__(self, library: Any, run: Path, config: Mapping[str, Any], **options: Any) -> None:
        self._library = library
        library.init(project=_PROJECT, name=run.name, config=dict(config), resume="allow", **options)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._library.log(dict(values), step=step)

    def close(self) -> None:
        self._library.finish()


def _wandb(run: Path, config: Mapping[str, Any], step: int) -> _Logger:
    import wandb

    return _Hosted(wandb, run, config, id=run.name, dir=str(run))


def _trackio(run: Path, config: Mapping[str, Any], step: int) -> _Logger:
    import trackio

    return _Hosted(trackio, run, config)


_MAKERS: dict[str, Callable[[Path, Mapping[str, Any], int], _Logger]] = {
    "tensorboard": _TensorBoard,
    "wandb": _wandb,
    "trackio": _trackio,
}
