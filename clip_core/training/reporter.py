"""What a run says while it trains: metrics, heartbeat and status, health warnings, and the lines of the log."""

import time
from collections import Counter
from typing import Any

import torch

from clip_core.run.metrics import log_line
from clip_core.run.records import Probe, State
from clip_core.run.writer import RunWriter
from clip_core.training.device import memory_mb, system_figures
from clip_core.training.health import Health
from clip_core.training.log import Log, Pace
from clip_core.training.processes import Processes
from clip_core.training.progress import Progress
from clip_core.training.schedule import Schedule
from clip_core.training.stream_batches import StreamBatches

_SYSTEM_SECONDS = 10.0  # between two lines about the machine


class Reporter:
    """Reports of one run; `writer` and `log` of other ranks than 0 are silent.

    Args:
        progress, schedule: shared with the trainer.
        fine_tunes: the run began with pretrained weights, whose scores are those to beat.
    """

    def __init__(
        self,
        writer: RunWriter,
        log: Log,
        progress: Progress,
        schedule: Schedule,
        health: Health,
        processes: Processes,
        device: torch.device,
        *,
        fine_tunes: bool,
    ) -> None:
        self.writer, self.log, self.health, self.processes = writer, log, health, processes
        self.progress, self.schedule, self.device, self.fine_tunes = progress, schedule, device, fine_tunes
        self.pace = Pace()
        self._system_at = time.monotonic()
        self._figures: dict[str, str] = {}  # beside the progress bar

    # ------------------------------------------------------------ status

    def status(self, state: State, **values: Any) -> None:
        self.writer.status(state=state, **self._position(), **values)

    def beat(self) -> None:
        self.writer.heartbeat(**self._position())

    def follow_schedule(self) -> None:
        """Say that the schedule has another number of steps."""
        recipe = self.health.recipe = self.schedule.recipe
        self.log.set_steps(recipe.steps)
        self.writer.status(steps=recipe.steps, epochs=recipe.epochs)

    def _position(self) -> dict[str, Any]:
        progress = self.progress
        seconds = round(progress.train_seconds, 2)
        return {"step": progress.step, "epoch": self.schedule.epoch, "train_seconds": seconds}

    # ------------------------------------------------------------ steps

    def step(self, measured: dict[str, float], waited: float) -> None:
        """Write the training metrics of the last step, with the pace since the last time.

        Args:
            measured: as the step returns it, of all ranks.
            waited: the data wait so far, in seconds.
        """
        scale, pace = measured["logit_scale"], self.pace.read(waited)
        self.writer.metric(
            "train",
            self.progress.step,
            epoch=self.schedule.epoch,
            **{name: round(value, 6) for name, value in measured.items()},
            temperature=round(1 / scale, 6),
            lr=self.schedule.learning_rate(self.progress.step - 1),
            memory_mb=round(memory_mb(self.device), 1),
            **pace,
        )
        self.warn(self.health.report(self.progress.step, measured | pace))
        recall = self.progress.scores.get("mean_recall", 0.0)
        images = f"{pace['images_per_second']:.0f}"
        self._figures = {"loss": f"{measured['loss']:.3f}", "recall": f"{recall:.1%}", "images/s": images}

    def advance(self) -> None:
        """Advance the progress bar by a step."""
        self.log.advance(self._figures)

    def system(self) -> None:
        """Write the metrics of the machine."""
        self._system_at = time.monotonic()
        self.writer.metric("system", self.progress.step, **system_figures(self.device, self.writer.path))

    def system_if_due(self) -> None:
        if time.monotonic() - self._system_at >= _SYSTEM_SECONDS:
            self.system()

    # ------------------------------------------------------------ evaluations

    def evaluation(self, probe: Probe | None, seconds: float, stream: StreamBatches | None) -> None:
        """Write the scores of the progress, the probe, the line of the log, and what the scores warn of.

        Args:
            probe: None on other ranks than 0.
            seconds: that the evaluation took.
            stream: the batches, where they are streamed.
        """
        progress, scores = self.progress, self.progress.scores
        self.writer.metric(
            "eval",
            progress.step,
            epoch=self.schedule.epoch,
            **{name: round(value, 6) for name, value in scores.items()},
            train_seconds=round(progress.train_seconds, 2),
            seconds=round(seconds, 3),
        )
        if probe is not None:
            self.system()
            self.writer.probe(probe)
        self.log.say(self._line(scores))
        if stream is not None:
            self._read_so_far(stream)
        if progress.step == 0 and self.fine_tunes and (useless := self.health.useless_guard(scores)):
            self.log.say(useless)
        self.warn(self.health.evaluation(progress.step, scores, progress.before if self.fine_tunes else {}))

    def warn(self, warnings: list[str]) -> None:
        """Health warnings, in the log and as events."""
        for warning in warnings:
            self.log.say(f"health: {warning}")
            self.writer.event(self.progress.step, warning, health=True)

    def _line(self, scores: dict[str, float]) -> str:
        """An evaluation in one line; the time left counts training alone, without evaluations and pauses."""
        step, steps = self.progress.step, self.schedule.recipe.steps
        parts = [f"step {step}/{steps}", *log_line(scores)]
        if step:
            left = (steps - step) * self.progress.train_seconds / step
            parts += [f"{self.pace.last:.0f} images/s", f"{left:.0f} s left"]
        return "  ".join(parts)

    def _read_so_far(self, stream: StreamBatches) -> None:
        """How many pairs all processes have read, where some of them are bad or left out."""
        counts = sum(self.processes.exchange(stream.counts()), Counter())
        if counts["bad"]:
            share = counts["bad"] / counts["seen"]
            self.log.say(f"stream: {counts['bad']:,} of {counts['seen']:,} pairs read so far are bad ({share:.2%})")
        if counts["left_out"]:
            read = counts["seen"] + counts["left_out"]
            self.log.say(f"stream: {counts['left_out']:,} of {read:,} pairs read so far are left out by --leave-out")
