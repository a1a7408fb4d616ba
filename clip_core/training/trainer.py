"""The training loop: one step at a time, everything that happened written to the run directory."""

import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from clip_core.config import TrainConfig
from clip_core.errors import CheckpointError, ClipError, DataError, NonFiniteError, TrainingError
from clip_core.model.checkpoint import (
    change_state,
    delete_damaged,
    delete_superseded,
    keep_checkpoint,
    read_meta,
    read_state,
    refuse_other_tokenizer,
    save_checkpoint,
    valid_checkpoints,
)
from clip_core.model.clip import CLIP
from clip_core.model.cpu_speed import give_back_memory
from clip_core.run.metrics import log_line, quality, second
from clip_core.run.paths import checkpoint_name
from clip_core.run.records import Probe, Recipe, State
from clip_core.run.requests import Request
from clip_core.run.writer import RunWriter
from clip_core.text import printable
from clip_core.training.batches import BatchMaker, BatchStream
from clip_core.training.device import memory_mb, system_figures
from clip_core.training.evaluate import Divided, ValidationSet, evaluate
from clip_core.training.health import Health
from clip_core.training.log import Log, Pace
from clip_core.training.loss import make_loss
from clip_core.training.memory import choose_chunk, estimate_memory
from clip_core.training.optimiser import learning_rate
from clip_core.training.preflight import Settings, refuse_other_settings
from clip_core.training.processes import Processes
from clip_core.training.recipe import with_steps
from clip_core.training.request_queue import RequestQueue
from clip_core.training.second_validation import chance
from clip_core.training.signals import Signals
from clip_core.training.stream_batches import StreamBatches
from clip_core.training.train_step import TrainStep

_PAUSE_POLL = 0.2  # seconds
_SYSTEM_SECONDS = 10.0  # between two lines about the machine
_FIRST_PLAN = 10  # steps after which the pace is stable enough for an estimate
_SYNC = 10  # steps that a GPU may run ahead before a value is read back; the clock is exact at these
_WITHOUT_END = 2**62
_ALONE = Processes()
_NAMED = 3  # images in the sentence about a loss that is not finite
_MOST_ROLLBACKS = 5  # of a run; where more are needed, it is not the batches


@dataclass
class Progress:
    """What resuming needs besides the tensors of weights and optimiser."""

    step: int = 0  # steps done
    best_score: tuple[float, float] = (-1.0, 0.0)  # as `quality` gives it
    best_checkpoint: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    scored_at: int = -1
    train_seconds: float = 0.0
    planned_steps: int = 0  # of a run with --minutes
    chunk_size: int = 0  # 0: the whole batch in one forward pass
    before: dict[str, float] = field(default_factory=dict)  # the scores at step 0
    lr_factor: float = 1.0  # of the schedule, by requests for another learning rate
    stream: list[dict[str, Any]] = field(default_factory=list)  # of each process, where its lanes continue
    rollbacks: int = 0
    skipped_batches: int = 0  # by rollbacks: a step has the batch of so many steps later


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
        self.writes = self.processes.rank.writes
        self.train_step = TrainStep(model, recipe, config, self.processes.rank)
        self.device = self.train_step.device
        self.batches, self.writer, self.log, self.requests = batches, writer, log, requests
        self.stream = batches if isinstance(batches, StreamBatches) else None
        self.validation, self.second_validation = validation, second_validation
        self.paused = False
        self.recipe = recipe
        self.log_every, self.keep_checkpoints = config.run.log_every, config.run.keep_checkpoints
        self.config, self.tuning = config, config.tune.init is not None
        self.progress, self.settings = Progress(), settings or {}
        self.pace = Pace()
        self.health = Health(
            recipe,
            classes=validation.classes is not None,
            max_logit_scale=model.max_logit_scale,
            guard_chance=chance(second_validation.pairs) if second_validation else 0.0,
        )
        self.train_step.say = lambda line: self.warn([line])
        self.train_step.name_pairs = self.name_pairs
        self._saved_at = -1
        self._system_at = time.monotonic()
        self._figures: dict[str, str] = {}

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
        self.log.start_bar(self.recipe.steps, self.progress.step)
        self.status(State.RUNNING, steps=self.recipe.steps, epochs=self.recipe.epochs)
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
        goes_on = self.recipe.seconds is not None and self.progress.step < self.recipe.steps
        last = _WITHOUT_END if goes_on else self.recipe.steps
        later = self.progress.skipped_batches
        stream = BatchStream(self.batches, self.progress.step + later, last + later, self.device)
        if self.stream is not None:
            stream.waiting, stream.agree = partial(self.waiting, signals), partial(self.agree, signals)
        try:
            if self.progress.step == 0 and self.progress.scored_at < 0:
                self.evaluate()
                if self.config.run.on_nan == "rollback":
                    self.save()  # to have one to roll back to
            if self.progress.step < self.recipe.steps and self.serve(signals):
                self.save()
                return State.STOPPED
            self.pace.read(stream.waited)
            started = time.perf_counter()
            for batch in stream:
                step = self.progress.step
                measured = self.train_step(batch.to(self.device), step, self.learning_rate(step))
                self.progress.step += 1
                if self.device.type == "cpu" or self.progress.step % _SYNC == 0:
                    self.train_step.refuse_non_finite()
                self.progress.train_seconds += time.perf_counter() - started
                self.after_step(measured, stream)
                stops = self.serve(signals)
                if self.progress.step >= self.recipe.steps:
                    break
                if stops:
                    self.save()
                    return State.STOPPED
                started = time.perf_counter()  # a pause is not time of training
            if self.progress.step < self.recipe.steps:  # a signal or a request while the next batch was not there
                self.save()
                return State.STOPPED
            if self.progress.scored_at != self.progress.step:
                self.evaluate()
            self.save()
            return State.FINISHED
        finally:
            if self.stream is not None:
                self.stream.close()
            stream.close()

    def waiting(self, signals: Signals) -> bool:
        """While the next batch of a stream is not there: whether to stop."""
        self.beat()
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
            self.beat()
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

    def estimate_memory(self) -> None:
        """Say what the run will need, choose the chunks where the batch does not fit, and warn if they do not either.

        A resumed run keeps the chunks that it had, so that its sums are rounded as they were.
        """
        number = self.progress.step + self.progress.skipped_batches
        step, batch = self.train_step, self.batches(number).to(self.device)
        estimate = estimate_memory(step, batch)
        self.log.say(estimate.line())
        if not step.chunk_size:
            chosen = self.progress.chunk_size or choose_chunk(step, batch, estimate) or len(batch)
            least = -self.processes.most(-chosen)[0]
            step.chunk_size = int(least) if least < len(batch) else 0
        if 0 < step.chunk_size < len(batch):
            self.log.say(estimate.chunks_line(step.chunk_size))
        if (step.chunk_size or not self.processes.alone) and step.normalises_batches:
            where = "chunk" if step.chunk_size else "process"
            self.warn([f"batch normalisation takes its statistics over each {where}, not over the whole batch"])
        if warning := estimate.warning(step.chunk_size):
            self.warn([warning])

    def learning_rate(self, step: int) -> float:
        recipe = self.recipe
        return self.progress.lr_factor * learning_rate(
            step, peak=recipe.lr, steps=recipe.steps, warmup_steps=recipe.warmup_steps, floor=recipe.min_lr
        )

    # ------------------------------------------------------------ between steps

    def after_step(self, measured: dict[str, Tensor], stream: BatchStream) -> None:
        """Report, evaluate and save at the intervals of the recipe."""
        step = self.progress.step
        self.pace.count(self.recipe.batch_size)
        if self.recipe.seconds is not None:
            self.plan(self.recipe.seconds)
        if step % self.log_every == 0 or step == 1 or step == self.recipe.steps:
            self.report(self.processes.mean({name: float(value) for name, value in measured.items()}), stream)
        self.log.advance(self._figures)
        started = time.perf_counter()
        if step % self.recipe.eval_every == 0 or step == self.recipe.steps:
            self.evaluate()
        if step % self.recipe.checkpoint_every == 0:
            self.save()
        if time.monotonic() - self._system_at >= _SYSTEM_SECONDS:
            self.report_system()
        self.beat()
        self.pace.skip(time.perf_counter() - started)

    def plan(self, seconds: float) -> None:
        """Estimate, from the pace so far, how many steps the time allows, so that the schedule ends with it."""
        progress = self.progress
        (progress.train_seconds,) = self.processes.most(progress.train_seconds)
        ended = progress.train_seconds >= seconds or progress.step >= self.recipe.steps
        if progress.step % _FIRST_PLAN and not ended:
            return
        rate = progress.step / max(progress.train_seconds, 1e-9)
        steps = progress.step + max(round((seconds - progress.train_seconds) * rate), 0)
        self.follow(with_steps(self.recipe, self.config, steps))

    def follow(self, recipe: Recipe) -> None:
        """Continue with another number of steps."""
        evaluations = ("eval_every", "checkpoint_every") if self.progress.step > _FIRST_PLAN else ()
        kept = {name: getattr(self.recipe, name) for name in evaluations}  # at regular steps
        self.recipe = self.health.recipe = recipe.model_copy(update=kept)
        self.progress.planned_steps = recipe.steps
        self.log.set_steps(recipe.steps)
        self.writer.status(steps=recipe.steps, epochs=recipe.epochs)

    def report(self, measured: dict[str, float], stream: BatchStream) -> None:
        scale, pace = measured["logit_scale"], self.pace.read(stream.waited)
        self.writer.metric(
            "train",
            self.progress.step,
            epoch=self.epoch,
            **{name: round(value, 6) for name, value in measured.items()},
            temperature=round(1 / scale, 6),
            lr=self.learning_rate(self.progress.step - 1),
            memory_mb=round(memory_mb(self.device), 1),
            **pace,
        )
        self.warn(self.health.report(self.progress.step, measured | pace))
        recall = self.progress.scores.get("mean_recall", 0.0)
        images = f"{pace['images_per_second']:.0f}"
        self._figures = {"loss": f"{measured['loss']:.3f}", "recall": f"{recall:.1%}", "images/s": images}

    def report_system(self) -> None:
        self._system_at = time.monotonic()
        self.writer.metric("system", self.progress.step, **system_figures(self.device, self.writer.path))

    @property
    def epoch(self) -> int:
        return min(self.progress.step // self.recipe.steps_per_epoch, self.recipe.steps // self.recipe.steps_per_epoch)

    def scores_of(self, model: CLIP, processes: Processes = _ALONE) -> tuple[dict[str, float], Probe | None]:
        """Scores on both validation sets, and the probe; requests are accepted meanwhile.

        Args:
            processes: those that embed the sets together; rank 0 alone gets scores and a probe.
        """
        loss, precision, beat = make_loss(self.recipe.loss), self.recipe.precision, self.beat_in_evaluation
        divided = Divided(processes, together=self.train_step.sharded)
        scores, probe = evaluate(
            model, self.validation, loss, precision, beat, step=self.progress.step, divided=divided
        )
        if self.second_validation is not None:
            scores |= second(evaluate(model, self.second_validation, loss, precision, beat, divided=divided)[0])
        if self.device.type == "cpu":
            give_back_memory()
        return scores, probe

    def beat(self) -> None:
        progress = self.progress
        seconds = round(progress.train_seconds, 2)
        self.writer.heartbeat(step=progress.step, epoch=self.epoch, train_seconds=seconds)

    def beat_in_evaluation(self) -> None:
        self.beat()
        self.requests.take(self.progress.step, when=" after this evaluation")

    def evaluate(self) -> None:
        """Evaluate, write metrics and a probe, and save a checkpoint if it is the best so far.

        All ranks embed, rank 0 computes the scores, which all then know.
        """
        self.train_step.refuse_non_finite()
        started = time.perf_counter()
        step = self.progress.step
        own, probe = self.scores_of(self.train_step.eval_weights.ready(), self.processes)
        scores = self.processes.of_first(own)
        seconds = time.perf_counter() - started
        self.progress.scores, self.progress.scored_at = scores, step
        self.writer.metric(
            "eval",
            step,
            epoch=self.epoch,
            **{k: round(v, 6) for k, v in scores.items()},
            train_seconds=round(self.progress.train_seconds, 2),
            seconds=round(seconds, 3),
        )
        if probe is not None:
            self.report_system()
            self.writer.probe(probe)
        self.log.say(self.line(scores))
        if self.stream is not None:
            self.report_stream(self.stream)
        if step == 0:
            self.progress.before = scores
            if self.tuning and (useless := self.health.useless_guard(scores)):
                self.log.say(useless)
        self.warn(self.health.evaluation(step, scores, self.progress.before if self.tuning else {}))
        score = quality(scores)
        # Pretrained weights may stay the best checkpoint; random ones are not worth one.
        if (step > 0 or self.tuning) and score > self.progress.best_score:
            self.progress.best_score, self.progress.best_checkpoint = score, checkpoint_name(step)
            self.save()

    def report_stream(self, stream: StreamBatches) -> None:
        """How many pairs all processes have read, where some of them are bad or left out."""
        counts = sum(self.processes.exchange(stream.counts()), Counter())
        if counts["bad"]:
            share = counts["bad"] / counts["seen"]
            self.log.say(f"stream: {counts['bad']:,} of {counts['seen']:,} pairs read so far are bad ({share:.2%})")
        if counts["left_out"]:
            read = counts["seen"] + counts["left_out"]
            self.log.say(f"stream: {counts['left_out']:,} of {read:,} pairs read so far are left out by --leave-out")

    def warn(self, warnings: list[str]) -> None:
        """Health warnings, in the log and as events."""
        for warning in warnings:
            self.log.say(f"health: {warning}")
            self.writer.event(self.progress.step, warning, health=True)

    def best_scores(self) -> dict[str, float]:
        """Scores of the best checkpoint; empty where it no longer exists."""
        folder = self.writer.paths.checkpoints / self.progress.best_checkpoint
        return dict(read_meta(folder, verify=False)["scores"]) if folder.is_dir() else {}

    def line(self, scores: dict[str, float]) -> str:
        """An evaluation in one line; the time left counts training alone, without evaluations and pauses."""
        step, steps = self.progress.step, self.recipe.steps
        parts = [f"step {step}/{steps}", *log_line(scores)]
        if step:
            left = (steps - step) * self.progress.train_seconds / step
            parts += [f"{self.pace.last:.0f} images/s", f"{left:.0f} s left"]
        return "  ".join(parts)

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
                    self.beat()
                    time.sleep(_PAUSE_POLL)
                elif request.kind == "stop":
                    return True
                else:
                    self.serve_one(request)
        finally:
            self.pace.skip(time.perf_counter() - began)

    def serve_one(self, request: Request) -> None:
        step = self.progress.step
        if request.kind == "evaluate":
            self.evaluate()
            self.requests.done(request, step, f"evaluated at step {step}")
        elif request.kind == "checkpoint":
            self.save_by_request(request)
        elif request.kind == "learning_rate" and request.value is not None:
            self.change_learning_rate(request, request.value)
        elif request.kind == "pause":
            self.save()
            self.paused = True
            self.status(State.PAUSED)
            self.log.say(f"paused at step {step}")
        elif request.kind == "resume":
            self.paused = False
            self.status(State.RUNNING)
            self.log.say("resumed after a pause")
            self.writer.event(step, "resumed after a pause", pace="restart")

    def change_learning_rate(self, request: Request, value: float) -> None:
        """Scale the schedule from the next step on, so that its learning rate is `value`."""
        step, before = self.progress.step, self.learning_rate(self.progress.step)
        if before <= 0:  # the end of a decay to 0
            self.requests.refuse(request, step, "the learning rate is 0 until the end of the schedule")
            return
        self.progress.lr_factor *= value / before
        if self._saved_at == step and self.writes:  # as while paused
            change_state(self.writer.paths.checkpoint(step), lr_factor=self.progress.lr_factor)
        message = f"learning rate {before:.3g} -> {value:.3g}; the schedule goes on from there"
        self.log.say(f"{message} (step {step})")
        self.requests.done(request, step, message)

    def save_by_request(self, request: Request) -> None:
        step = self.progress.step
        try:
            self.save(kept=True)
        except CheckpointError as error:
            self.requests.refuse(request, step, str(error))
            return
        message = f"checkpoint {checkpoint_name(step)} saved and kept"
        self.log.say(message)
        self.requests.done(request, step, message)

    def status(self, state: State, **values: Any) -> None:
        seconds = round(self.progress.train_seconds, 2)
        self.writer.status(state=state, step=self.progress.step, epoch=self.epoch, train_seconds=seconds, **values)

    # ------------------------------------------------------------ checkpoints

    def save(self, *, kept: bool = False) -> None:
        """Write a checkpoint, let latest.json (and best.json) name it, then delete superseded ones.

        Args:
            kept: it was requested, so that it is never deleted.
        """
        self.train_step.refuse_non_finite()
        progress = self.progress
        if self.stream is not None:
            progress.stream = self.processes.exchange(self.stream.state(progress.step + progress.skipped_batches))
        gathered = None
        if self.train_step.sharded and self.processes.of_first(self._saved_at != progress.step):
            gathered = self.train_step.checkpoint()
        if not self.writes:
            return
        progress.chunk_size = self.train_step.chunk_size
        name = checkpoint_name(progress.step)
        folder = self.writer.paths.checkpoints / name
        if self._saved_at != progress.step:
            state = vars(progress) | {"best_score": list(progress.best_score), "settings": self.settings}
            weights, tensors = gathered or self.train_step.checkpoint()
            save_checkpoint(
                folder,
                model=self.train_step.eval_weights.model,
                weights=weights,
                tensors=tensors,
                state=state,
                step=progress.step,
                epoch=self.epoch,
                scores=progress.scores if progress.scored_at == progress.step else {},
                kept=kept,
            )
            self._saved_at = progress.step
        elif kept:
            keep_checkpoint(folder)
        self.writer.point_latest(name, progress.step)
        if progress.best_checkpoint == name:
            self.writer.point_best(name, progress.step, progress.scores)
        delete_superseded(self.writer.path, keep=self.keep_checkpoints, best=progress.best_checkpoint)

    def resume(self) -> None:
        """Continue a run from its last valid checkpoint, or from its start if there is none yet."""
        self.restore()
        self.log.say(f"resuming at step {self.progress.step}")
        self.writer.event(self.progress.step, "resumed", pace="restart")

    def roll_back(self, error: NonFiniteError) -> None:
        """Go back to the last valid checkpoint, and skip the batches since then, which led to the error.

        Every process does. What was requested and the time that was used stay.

        Raises:
            TrainingError: if the run is to stop, or has been rolled back too often.
        """
        if self.config.run.on_nan == "stop":
            raise error
        before = self.progress
        if before.rollbacks == _MOST_ROLLBACKS:
            raise TrainingError(
                f"{error.found}, after {_MOST_ROLLBACKS} rollbacks; no checkpoint holds it. The batches are not the "
                "cause: start again with a lower --lr or with --precision fp32."
            )
        self.log.record(str(error))
        if (step := self.restore()) < 0:
            raise error
        now = self.progress
        skipped = error.step + 1 - step
        now.rollbacks, now.skipped_batches = before.rollbacks + 1, before.skipped_batches + skipped
        now.train_seconds, now.lr_factor = before.train_seconds, before.lr_factor
        if self.writes:
            kept = {name: getattr(now, name) for name in ("rollbacks", "skipped_batches", "train_seconds", "lr_factor")}
            change_state(self.writer.paths.checkpoint(step), **kept)
        self.log.set_step(step)
        batches = "batch is" if skipped == 1 else f"{skipped:,} batches are"
        message = (
            f"rolled back to step {step}, and the last {batches} skipped ({now.rollbacks} of at most {_MOST_ROLLBACKS} "
            f"rollbacks): {error.found}"
        )
        self.log.say(message)
        self.writer.event(step, message, health=True, pace="restart")

    def restore(self) -> int:
        """Restore the last valid checkpoint and forget what was measured after it; returns its step, -1 for none."""
        if self.writes:
            delete_damaged(self.writer.path)
        step = -1
        for folder in self.processes.of_first(valid_checkpoints(self.writer.path)[:1] if self.writes else []):
            state = read_state(folder)
            refuse_other_settings(self.writer.path, state.pop("settings", {}), self.settings)
            refuse_other_tokenizer(read_meta(folder, verify=False), self.writer.paths.tokenizer)
            self.train_step.restore(folder)
            self.progress = Progress(**state | {"best_score": tuple(state["best_score"])})
            if self.recipe.seconds is not None and self.progress.planned_steps:
                self.recipe = self.health.recipe = with_steps(self.recipe, self.config, self.progress.planned_steps)
            self._saved_at = step = self.progress.step
            if self.stream is not None:
                self.stream.restore(self.progress.stream)
        self.writer.forget_after(step)
        return step
