"""A training run from its configuration to its last line."""

import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from clip_core.config import RunConfig, TrainConfig
from clip_core.errors import ClipError, OutOfMemoryError, UsageError
from clip_core.run.paths import RunPaths, checkpoint_name
from clip_core.run.reader import RunReader
from clip_core.run.records import State
from clip_core.run.writer import RunWriter, SilentWriter
from clip_core.training.blend import blend_name, finish_with_blend
from clip_core.training.initial_weights import Start, find_start
from clip_core.training.log import Log, is_stdout
from clip_core.training.loggers import Loggers
from clip_core.training.preflight import check_new_run, choose_run_dir, refuse_ruinous, resumed_config
from clip_core.training.processes import EndedError, Processes, gone, join_processes, lost, restarted
from clip_core.training.request_queue import RequestQueue
from clip_core.training.results_plot import draw_curves
from clip_core.training.score_tables import before_and_after, blend_table
from clip_core.training.setup import build_trainer
from clip_core.training.signals import Signals
from clip_core.training.trainer import Trainer

_POLL = 0.5  # seconds between heartbeats and looks at the requests while there are no steps


def run_training(config: TrainConfig, *, resume: bool, force: bool = False) -> int:
    """Train as configured, or resume a run; returns the exit code.

    Args:
        force: settings for training from scratch are taken for pretrained weights too.
    Raises:
        ClipError: for a user's mistake. Nothing is written if it is found before the run begins; afterwards status.json
            has the state `failed` and the sentence.
    """
    processes = join_processes(config.run.device)
    if config.run.shard and processes.alone:
        raise UsageError(
            "--shard divides the network among processes, and this is one: add --devices N, or leave it out."
        )
    if processes.rank.writes:
        try:
            code = _train(config, processes, resume=resume, force=force)
        except RuntimeError as error:
            if not lost(error):
                raise
            raise gone(0) from None
        processes.wait_for_first()
        return code
    try:
        code = _train(config, processes, resume=resume, force=force)
    except EndedError as ended:
        code = int(ended.args[0])
    except (ClipError, OSError) as error:  # of rank 0, or of another rank that reported it
        code = error.exit_code if isinstance(error, ClipError) else 1
        if isinstance(error, OutOfMemoryError):  # of this process alone
            print(f"clip-train: process {processes.rank.rank}: {error}", file=sys.stderr)
    except RuntimeError as error:
        if not lost(error):
            raise
        code = 1
    processes.wait_for_first()
    return code


def _train(config: TrainConfig, processes: Processes, *, resume: bool, force: bool) -> int:
    try:
        run, config, resume = processes.of_first(
            _preflight(config, resume=resume) if processes.rank.writes else (Path(), config, resume)
        )
        with _failure_for_interface(run, processes):
            start = find_start(config, run, resume=resume)
            if start is not None and not (resume or force):
                refuse_ruinous(config, start)
        writer = RunWriter(run) if processes.rank.writes else SilentWriter(run)
        log = Log(silent=not processes.rank.writes)
        if processes.rank.writes:
            log.to_file(writer.paths.log)
    except (ClipError, OSError) as error:
        processes.announce(error)
        raise
    try:
        with Signals() as signals:
            return _run(config, start, writer, log, signals, processes, resume=resume)
    except EndedError:
        raise
    except (ClipError, OSError) as error:
        _failed(writer, log, str(error))
        raise
    except Exception as error:
        if not processes.alone and lost(error):
            status = RunReader(run).status()
            sentence = gone(status.step if status else 0)
            _failed(writer, log, str(sentence))
            raise sentence from None
        log.say(traceback.format_exc().replace("\n", " | "))
        _failed(writer, log, f"{type(error).__name__}: {error}")
        raise
    finally:
        log.close()
        writer.close()


def _preflight(config: TrainConfig, *, resume: bool) -> tuple[Path, TrainConfig, bool]:
    """Run directory, configuration, and whether the run is resumed: also when torchrun starts it again by itself.

    Raises:
        ClipError: for a user's mistake.
    """
    if restarted() and not resume:
        if config.run.run_dir is None:
            raise UsageError("a run that torchrun is to restart needs --run-dir, by which it finds its checkpoint.")
        if RunPaths(config.run.run_dir).config.is_file():
            config, resume = TrainConfig(run=RunConfig(run_dir=config.run.run_dir)), True
    run = choose_run_dir(config, resume=resume)
    with _failure_for_interface(run):
        if resume:
            config = resumed_config(config, run)
        else:
            check_new_run(config)
    return run, config, resume


def _run(
    config: TrainConfig,
    start: Start | None,
    writer: RunWriter,
    log: Log,
    signals: Signals,
    processes: Processes,
    *,
    resume: bool,
) -> int:
    """Set up, train, finish; an interrupt before the first step or a second one ends the run at once."""
    if not resume:
        writer.forget_after(-1)  # of an attempt that ended before its first step
    requests = RequestQueue(writer)
    writer.status(state=State.STARTING, error=None, **_progress(writer.path))
    try:
        with _alive(writer, requests, signals):
            try:
                trainer = build_trainer(config, start, writer, log, requests, resume=resume, processes=processes)
            except (ClipError, OSError) as error:
                processes.announce(error)
                raise
            if resume:
                trainer.resume()
            if config.run.log_to and processes.rank.writes:
                writer.mirror = Loggers(
                    config.run.log_to, writer.path, config=config.model_dump(mode="json"), step=trainer.progress.step,
                    say=log.say,
                )  # fmt: skip
        state = trainer.train(signals)
        if processes.rank.writes:
            _finish(config, log, trainer, state)
    except KeyboardInterrupt as error:
        processes.leave()
        state = State.STOPPED
        writer.status(state=state)
        how = "interrupted" if signals.received else "stopped by request"
        log.say(f"{how}: {error}" if str(error) else how)
    return signals.exit_code if state is State.STOPPED else 0


@contextmanager
def _alive(writer: RunWriter, requests: RequestQueue, signals: Signals) -> Iterator[None]:
    """Heartbeats and requests from a thread, while there are no steps; a request to stop interrupts the setup."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_POLL):
            writer.heartbeat()
            requests.take(0)
            if requests.stopping:
                signals.interrupt()
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _finish(config: TrainConfig, log: Log, trainer: Trainer, state: State) -> None:
    run, progress = trainer.writer.path, trainer.progress
    best = progress.best_checkpoint or "none yet"
    if state is State.FINISHED and trainer.fine_tunes:
        columns = [("before", progress.before), (f"after {progress.step} steps", progress.scores)]
        best_scores = trainer.checkpointer.best_scores()
        if best_scores and progress.best_checkpoint != checkpoint_name(progress.step):
            columns.append((f"best, {progress.best_checkpoint}", best_scores))
        for line in before_and_after(columns):
            log.say(line)
        if config.tune.blend is not None:
            best = _blend(config.tune.blend, log, trainer)
    draw_curves(run)
    trainer.requests.close(progress.step)
    trainer.reporter.status(state)
    trainer.writer.event(progress.step, str(state))
    log.say(
        f"{state} at step {progress.step} after {progress.train_seconds:.1f} s of training; "
        f"best checkpoint {best}; in {run}"
    )


def _blend(share: float, log: Log, trainer: Trainer) -> str:
    """Evaluate the blends, save the requested one as the best checkpoint, and report; returns its name."""
    blends = finish_with_blend(
        trainer.writer,
        trainer.train_step.eval_weights.ready(),
        share,
        lambda model: trainer.validator.scores(model, trainer.progress.step)[0],
        step=trainer.progress.step,
        epoch=trainer.schedule.epoch,
    )
    for line in blend_table(blends, share):
        log.say(line)
    name = blend_name(share)
    log.say(
        f"the best checkpoint is {name} (--blend: {1 - share:g} x initial + {share:g} x fine-tuned weights), "
        f"in place of {trainer.progress.best_checkpoint}"
    )
    return name


def _failed(writer: RunWriter, log: Log, sentence: str) -> None:
    """The command itself prints the sentence."""
    with suppress(OSError):  # the disk may be what failed
        writer.status(state=State.FAILED, error=sentence)
    with suppress(OSError):
        log.record(f"failed: {sentence}")


@contextmanager
def _failure_for_interface(run: Path, processes: Processes | None = None) -> Iterator[None]:
    """Record a mistake that is found before the run begins where the interface looks for it, if that started us.

    The interface has made the directory, and its train.log is our standard output.
    """
    try:
        yield
    except ClipError as error:
        if (processes is None or processes.rank.writes) and is_stdout(RunPaths(run).log):
            with suppress(ClipError, OSError):
                writer = RunWriter(run)
                writer.status(state=State.FAILED, error=str(error), **_progress(run))
                writer.close()
        raise


def _progress(run: Path) -> dict[str, Any]:
    """The progress of an earlier trainer of the run, for status.json until the next step."""
    status = RunReader(run).status()
    fields = ("step", "steps", "epoch", "epochs", "train_seconds")
    return {name: getattr(status, name) for name in fields} if status else {}
