"""The training loop: one step at a time, and between steps reports, evaluations, checkpoints and requests."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from torch import Tensor

from clip_core.config import TrainConfig
from clip_core.errors import ClipError, DataError, NonFiniteError, TrainingError
from clip_core.model.clip import CLIP
from clip_core.run.metrics import quality
from clip_core.run.paths import checkpoint_name
from clip_core.run.records import Recipe, State
from clip_core.run.writer import RunWriter
from clip_core.text import printable
from clip_core.training.batches import Batch, BatchMaker, BatchStream
from clip_core.training.checkpointer import Checkpointer
from clip_core.training.evaluate import ValidationSet, Validator
from clip_core.training.health import Health
from clip_core.training.log import Log
from clip_core.training.memory import fit_into_memory
from clip_core.training.preflight import Settings
from clip_core.training.processes import Processes
from clip_core.training.progress import Progress
from clip_core.training.reporter import Reporter
from clip_core.training.request_queue import RequestQueue, perform
from clip_core.training.schedule import Schedule
from clip_core.training.second_validation import chance
from clip_core.training.signals import Signals
from clip_core.training.stream_batches import StreamBatches
from clip_core.training.train_step import TrainStep

_PAUSE_POLL = 0.2  # seconds
_SYNC = 10  # steps that a GPU may run ahead before a value is read back; the clock is exact at these
_WITHOUT_END = 2**62
_NAMED = 3  # images in the sentence about a loss that is not finite
_MOST_ROLLBACKS = 5  # of a run; where more are needed, it is not the batches


class Trainer:
    """Trains a model from `progress` to the end, or to a request or signal to stop."""

    def __init__(
        self,
        model: CLIP,
        batches: BatchMaker | StreamBatches,
        validation: ValidationSet,
        writer: RunWriter,
        log: Log,
        requests: RequestQueue,
        *,
        recipe: Recipe,
        config: TrainConfig,
        second_validation: ValidationSet | None = None,
        processes: Processes | None = None,
        settings: Settings | None = None,
    ) -> None:
        """
        Args:
            recipe: with the device of this process.
            settings: what config.json has of the run, which stays the same as long as it is resumed.
            processes: the others, which all do the same. Rank 0 alone evaluates, saves, reads requests and writes.
        """
        self.processes = processes or Processes()
        self.train_step = TrainStep(model, recipe, config, self.processes.rank)
        self.device = self.train_step.device
        self.config, self.fine_tunes = config, config.tune.init is not None
        self.batches, self.writer, self.log, self.requests = batches, writer, log, requests
        self.stream = batches if isinstance(batches, StreamBatches) else None
        self.validator = Validator(
            validation, second_validation, recipe, together=self.train_step.sharded, beat=self.beat_in_evaluation
        )
        self.paused = False
        self.progress = Progress()
        self.schedule = Schedule(recipe, config, self.progress)
        self.checkpointer = Checkpointer(
            self.train_step, self.progress, writer, self.processes, self.stream,
            keep=config.run.keep_checkpoints, settings=settings or {},
        )  # fmt: skip
        health = Health(
            recipe,
            classes=validation.classes is not None,
            max_logit_scale=model.max_logit_scale,
            guard_chance=chance(second_validation.pairs) if second_validation else 0.0,
        )
        self.reporter = Reporter(
            writer, log, self.progress, self.schedule, health, self.processes, self.device, fine_tunes=self.fine_tunes
        )
        self.pace = self.reporter.pace
        self.train_step.say = lambda line: self.reporter.warn([line])
        self.train_step.name_pairs = self.name_pairs

    # ------------------------------------------------------------ the loop

    def train(self, signals: Signals) -> State:
        """Train to the end. Returns FINISHED, or STOPPED when a signal or a request came first.

        Raises:
            TrainingError: at a non-finite loss or gradient that is not rolled back; no such step reaches a checkpoint.
        """
        signals.deferring = self.stream is None  # the first batch of a stream may be long in coming
        self.train_step.model.train()
        self.estimate_memory()
        signals.deferring = True
        recipe = self.schedule.recipe
        self.log.start_bar(recipe.steps, self.progress.step)
        self.reporter.status(State.RUNNING, steps=recipe.steps, epochs=recipe.epochs)
        while True:
            try:
                return self.train_on(signals)
            except NonFiniteError as error:
                self.roll_back(error)

    def train_on(self, signals: Signals) -> State:
        """`train` from here on.

        Raises:
            NonFiniteError: of a step, a few steps later on a GPU.
        """
        with self.batches_ahead(signals) as batches:
            if self.progress.step == 0 and self.progress.scored_at < 0:
                self.evaluate()
                if self.config.run.on_nan == "rollback":
                    self.save()  # to have one to roll back to
            if not self.finished and self.serve(signals):
                return self.stop()
            self.pace.read(batches.waited)
            started = time.perf_counter()
            for batch in batches:
                measured = self.step(batch)
                self.progress.train_seconds += time.perf_counter() - started
                self.after_step(measured, batches.waited)
                if self.serve(signals) or self.finished:
                    break
                started = time.perf_counter()  # a pause is not time of training
            # Not finished: also where a signal or a request came while the next batch was not there.
            return self.finish() if self.finished else self.stop()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Train on a batch; returns its measurements, still on the device."""
        step = self.progress.step
        measured = self.train_step(batch.to(self.device), step, self.schedule.learning_rate(step))
        self.progress.step += 1
        if self.device.type == "cpu" or self.progress.step % _SYNC == 0:
            self.train_step.refuse_non_finite()
        return measured

    def after_step(self, measured: dict[str, Tensor], waited: float) -> None:
        """Report, evaluate and save at the intervals of the recipe."""
        step = self.progress.step
        self.pace.count(self.schedule.recipe.batch_size)
        self.plan()
        recipe = self.schedule.recipe
        if step % self.config.run.log_every == 0 or step == 1 or step == recipe.steps:
            self.reporter.step(self.processes.mean({name: float(value) for name, value in measured.items()}), waited)
        self.reporter.advance()
        started = time.perf_counter()
        if step % recipe.eval_every == 0 or step == recipe.steps:
            self.evaluate()
        if step % recipe.checkpoint_every == 0:
            self.save()
        self.reporter.system_if_due()
        self.reporter.beat()
        self.pace.skip(time.perf_counter() - started)

    def plan(self) -> None:
        """With --minutes, follow the pace: all processes that of the slowest."""
        if self.schedule.recipe.seconds is not None:
            (self.progress.train_seconds,) = self.processes.most(self.progress.train_seconds)
            if self.schedule.plan():
                self.reporter.follow_schedule()

    @property
    def finished(self) -> bool:
        return self.progress.step >= self.schedule.recipe.steps

    def finish(self) -> State:
        if self.progress.scored_at != self.progress.step:
            self.evaluate()
        self.save()
        return State.FINISHED

    def stop(self) -> State:
        self.save()
        return State.STOPPED

    def estimate_memory(self) -> None:
        """Say what the run will need; where the batch does not fit, it is computed in chunks from here on."""
        batch = self.batches(self.progress.batch).to(self.device)
        fit_into_memory(
            self.train_step, batch, self.processes, before=self.progress.chunk_size, say=self.log.say,
            warn=lambda line: self.reporter.warn([line]),
        )  # fmt: skip

    # ------------------------------------------------------------ batches

    @contextmanager
    def batches_ahead(self, signals: Signals) -> Iterator[BatchStream]:
        """The batches of the next steps, made by a thread while the device computes."""
        progress, steps = self.progress, self.schedule.recipe.steps
        last = steps if self.schedule.recipe.seconds is None or self.finished else _WITHOUT_END
        batches = BatchStream(self.batches, progress.batch, last + progress.skipped_batches, self.device)
        if self.stream is not None:
            batches.waiting, batches.agree = partial(self.waiting, signals), partial(self.agree, signals)
        try:
            yield batches
        finally:
            if self.stream is not None:
                self.stream.close()
            batches.close()

    def waiting(self, signals: Signals) -> bool:
        """While the next batch of a stream is not there: whether to stop."""
        self.reporter.beat()
        self.requests.take(self.progress.step)
        return bool(signals.received or self.requests.stopping or self.processes.orphaned)

    def agree(self, signals: Signals, error: BaseException | None, stopping: bool) -> bool:
        """Before each batch of a stream: whether any process has none, so that all end at this step with a checkpoint.

        Raises:
            ClipError: where one cannot read on.
        """
        if not any(self.processes.most(float(error is not None or stopping))):
            return False
        if error is not None and not isinstance(error, ClipError):
            raise error
        answers = self.processes.exchange((str(error) if error else "", signals.received))
        sentence = next((sentence for sentence, _ in answers if sentence), None)
        if sentence is not None:
            self.save()
            self.reporter.beat()
            raise DataError(sentence)
        signals.of_others = next((received for _, received in answers if received), None)
        return True

    def name_pairs(self, step: int) -> str:
        """The pairs of a step's batch by their images: the first for a sentence, all of them in train.log."""
        names = self.batches.image_names(step + self.progress.skipped_batches)
        self.log.record(f"the images of step {step}: {', '.join(names)}")
        more = len(names) - _NAMED
        first = printable(", ".join(names[:_NAMED]), 200)
        return f", of the images {first}" + (f" and {more:,} more (all in train.log)" if more > 0 else "")

    # ------------------------------------------------------------ evaluations

    def evaluate(self) -> None:
        """Evaluate, write metrics and a probe, and save a checkpoint if it is the best so far.

        All ranks embed, rank 0 computes the scores, which all then know.
        """
        self.train_step.refuse_non_finite()
        started = time.perf_counter()
        progress = self.progress
        own, probe = self.validator.scores(self.train_step.eval_weights.ready(), progress.step, self.processes)
        progress.scores, progress.scored_at = self.processes.of_first(own), progress.step
        seconds = time.perf_counter() - started
        if progress.step == 0:
            progress.before = progress.scores
        self.reporter.evaluation(probe, seconds, self.stream)
        score = quality(progress.scores)
        # Pretrained weights may stay the best checkpoint; random ones are not worth one.
        if (progress.step > 0 or self.fine_tunes) and score > progress.best_score:
            progress.best_score, progress.best_checkpoint = score, checkpoint_name(progress.step)
            self.save()

    def beat_in_evaluation(self) -> None:
        self.reporter.beat()
        self.requests.take(self.progress.step, when=" after this evaluation")

    # ------------------------------------------------------------ requests

    def serve(self, signals: Signals) -> bool:
        """Serve signals and requests in their order; a pause waits here. Returns whether to stop.

        Every process does what rank 0 was asked for, and stops for a signal that any of them received.
        """
        began = time.perf_counter()
        try:
            while True:
                self.requests.take(self.progress.step)
                ours = signals.received or (signal.SIGTERM if self.processes.orphaned else 0)
                received, waiting = map(int, self.processes.most(ours, self.requests.waiting))
                if received:
                    signals.of_others = received
                    self.writer.event(self.progress.step, f"stopping: {signal.Signals(received).name}")
                    return True
                if waiting:
                    self.train_step.refuse_non_finite()  # before a request leaves the queue, as saving may not fail
                request = self.processes.of_first(self.requests.next()) if waiting else None
                if request is None and not self.paused:
                    return False
                if request is None:
                    self.reporter.beat()
                    time.sleep(_PAUSE_POLL)
                elif request.kind == "stop":
                    return True
                else:
                    perform(request, self)
        finally:
            self.pace.skip(time.perf_counter() - began)

    # ------------------------------------------------------------ checkpoints

    def save(self, *, kept: bool = False) -> None:
        """Save a checkpoint of this step; one that is `kept` is never deleted."""
        self.checkpointer.save(epoch=self.schedule.epoch, kept=kept)

    def resume(self) -> None:
        """Continue a run from its last valid checkpoint, or from its start if there is none yet."""
        self.restore()
        self.log.say(f"resuming at step {self.progress.step}")
        self.writer.event(self.progress.step, "resumed", pace="restart")

    def restore(self) -> int:
        """Restore the last valid checkpoint; returns its step, -1 for none."""
        step = self.checkpointer.restore()
        self.schedule.restore()
        self.reporter.health.recipe = self.schedule.recipe
        return step

    def roll_back(self, error: NonFiniteError) -> None:
        """Go back to the last valid checkpoint, and skip the batches since then, which led to the error.

        Every process does. What was requested and the time that was used stay.

        Raises:
            TrainingError: if the run is to stop, or has been rolled back too often.
        """
        if self.config.run.on_nan == "stop":
            raise error
        before, now = replace(self.progress), self.progress
        if before.rollbacks == _MOST_ROLLBACKS:
            raise TrainingError(
                f"{error.found}, after {_MOST_ROLLBACKS} rollbacks; no checkpoint holds it. The batches are not the "
                "cause: start again with a lower --lr or with --precision fp32."
            )
        self.log.record(str(error))
        if (step := self.restore()) < 0:
            raise error
        skipped = error.step + 1 - step
        now.rollbacks, now.skipped_batches = before.rollbacks + 1, before.skipped_batches + skipped
        now.train_seconds, now.lr_factor = before.train_seconds, before.lr_factor
        self.checkpointer.change("rollbacks", "skipped_batches", "train_seconds", "lr_factor")
        self.log.set_step(step)
        batches = "batch is" if skipped == 1 else f"{skipped:,} batches are"
        message = (
            f"rolled back to step {step}, and the last {batches} skipped ({now.rollbacks} of at most {_MOST_ROLLBACKS} "
            f"rollbacks): {error.found}"
        )
        self.log.say(message)
        self.writer.event(step, message, health=True, pace="restart")
