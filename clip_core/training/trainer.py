"""The training loop: one step at a time, everything that happened written to the run directory."""

import time
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from clip_core.config import TrainConfig
from clip_core.model.checkpoint import (
    delete_damaged,
    delete_superseded,
    read_meta,
    read_state,
    save_checkpoint,
    valid_checkpoints,
)
from clip_core.model.clip import CLIP
from clip_core.run.metrics import quality
from clip_core.run.paths import checkpoint_name
from clip_core.run.records import Probe, Recipe, State
from clip_core.run.requests import Malformed
from clip_core.run.writer import RunWriter
from clip_core.training.batches import BatchMaker, BatchStream
from clip_core.training.control import Signals
from clip_core.training.device import give_back_memory, memory_mb, system_figures
from clip_core.training.evaluate import ValidationSet, evaluate
from clip_core.training.guard import guard_scores
from clip_core.training.health import Health
from clip_core.training.log import Log, Pace
from clip_core.training.loss import make_loss
from clip_core.training.optimiser import learning_rate
from clip_core.training.recipe import planned
from clip_core.training.report import plain_line
from clip_core.training.train_step import TrainStep

_PAUSE_POLL = 0.2  # seconds
_FIRST_PLAN = 10  # steps after which the pace is known well enough
_LOOK = 10  # steps for which a GPU is let run ahead before anything is read back; the clock is right at these
_WITHOUT_END = 2**62


@dataclass
class Progress:
    """Where a run stands: everything that resuming needs and that is no tensor."""

    step: int = 0  # steps done
    best_score: tuple[float, float] = (-1.0, 0.0)  # as `quality` gives it
    best_checkpoint: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    scored_at: int = -1
    train_seconds: float = 0.0
    planned_steps: int = 0  # of a run that trains for a time
    before: dict[str, float] = field(default_factory=dict)  # the scores at step 0


class Trainer:
    """Trains a model from wherever `progress` stands to the end, or to a request or signal to stop."""

    def __init__(
        self,
        model: CLIP,
        batches: BatchMaker,
        validation: ValidationSet,
        writer: RunWriter,
        log: Log,
        *,
        recipe: Recipe,
        config: TrainConfig,
        guard: ValidationSet | None = None,
    ) -> None:
        self.learner = TrainStep(model, recipe, config)
        self.device = self.learner.device
        self.batches, self.validation, self.guard, self.writer, self.log = batches, validation, guard, writer, log
        self.recipe = recipe
        self.log_every, self.keep_checkpoints = config.run.log_every, config.run.keep_checkpoints
        self.config, self.tuning = config, config.tune.init is not None
        self.progress = Progress()
        self.pace = Pace()
        self.health = Health(recipe, classes=validation.classes is not None, max_logit_scale=model.max_logit_scale)
        self._saved_at = -1
        self._figures: dict[str, str] = {}

    # ------------------------------------------------------------ the loop

    def train(self, signals: Signals) -> State:
        """Train to the end. Returns FINISHED, or STOPPED when a signal or a request came first.

        Raises:
            TrainingError: at a non-finite loss or gradient; no such step reaches a checkpoint.
        """
        self.learner.model.train()
        goes_on = self.recipe.seconds is not None and self.progress.step < self.recipe.steps
        last = _WITHOUT_END if goes_on else self.recipe.steps
        stream = BatchStream(self.batches, self.progress.step, last, self.device)
        self.log.start_bar(self.recipe.steps, self.progress.step)
        self.status(State.RUNNING)
        try:
            if self.progress.step == 0 and self.progress.scored_at < 0:
                self.evaluate()
            self.pace.read(stream.waited)
            started = time.perf_counter()
            for batch in stream:
                step = self.progress.step
                measured = self.learner(batch.to(self.device), step, self.learning_rate(step))
                self.progress.step += 1
                if self.device.type == "cpu" or self.progress.step % _LOOK == 0:
                    self.learner.refuse_non_finite()
                self.progress.train_seconds += time.perf_counter() - started
                self.after_step(measured, stream)
                if self.wants_to_stop(signals):
                    self.save()
                    return State.STOPPED
                if self.progress.step >= self.recipe.steps:
                    break
                started = time.perf_counter()  # a pause is not time of training
            if self.progress.scored_at != self.progress.step:
                self.evaluate()
            self.save()
            return State.FINISHED
        finally:
            stream.close()

    def learning_rate(self, step: int) -> float:
        recipe = self.recipe
        return learning_rate(
            step, peak=recipe.lr, steps=recipe.steps, warmup_steps=recipe.warmup_steps, floor=recipe.min_lr
        )

    # ------------------------------------------------------------ between steps

    def after_step(self, measured: dict[str, Tensor], stream: BatchStream) -> None:
        """Report, evaluate and save as often as the recipe says, and serve what a reader asked for."""
        step = self.progress.step
        self.pace.count(self.recipe.batch_size)
        if self.recipe.seconds is not None:
            self.plan(self.recipe.seconds)
        if step % self.log_every == 0 or step == 1 or step == self.recipe.steps:
            self.report({name: float(value) for name, value in measured.items()}, stream)
        self.log.advance(self._figures)
        started = time.perf_counter()
        if step % self.recipe.eval_every == 0 or step == self.recipe.steps:
            self.evaluate()
        if step % self.recipe.checkpoint_every == 0:
            self.save()
        self.writer.heartbeat(step=step, epoch=self.epoch)
        self.pace.skip(time.perf_counter() - started)

    def plan(self, seconds: float) -> None:
        """Foresee, from the pace so far, how many steps the time allows, so that the schedule ends when it does."""
        progress = self.progress
        ended = progress.train_seconds >= seconds or progress.step >= self.recipe.steps
        if progress.step % _FIRST_PLAN and not ended:
            return
        rate = progress.step / max(progress.train_seconds, 1e-9)
        steps = progress.step + max(round((seconds - progress.train_seconds) * rate), 0)
        self.follow(planned(self.recipe, self.config, steps))

    def follow(self, recipe: Recipe) -> None:
        """Go on by another plan."""
        evaluations = ("eval_every", "checkpoint_every") if self.progress.step > _FIRST_PLAN else ()
        kept = {name: getattr(self.recipe, name) for name in evaluations}  # so that they come at regular steps
        self.recipe = self.health.recipe = recipe.model_copy(update=kept)
        self.progress.planned_steps = recipe.steps
        self.log.foresee(recipe.steps)
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

    @property
    def epoch(self) -> int:
        return min(self.progress.step // self.recipe.steps_per_epoch, self.recipe.steps // self.recipe.steps_per_epoch)

    def judge(self, model: CLIP) -> tuple[dict[str, float], Probe]:
        """Scores of a network on the validation pairs and on the guard, and the probe."""
        loss, precision, beat = make_loss(self.recipe.loss), self.recipe.precision, self.beat
        scores, probe = evaluate(model, self.validation, loss, precision, beat, step=self.progress.step)
        if self.guard is not None:
            scores |= guard_scores(evaluate(model, self.guard, loss, precision, beat)[0])
        if self.device.type == "cpu":
            give_back_memory()
        return scores, probe

    def beat(self) -> None:
        self.writer.heartbeat(step=self.progress.step, epoch=self.epoch)

    def evaluate(self) -> None:
        """Score the validation pairs, remember whether they are the best so far, write metrics and a probe."""
        self.learner.refuse_non_finite()
        started = time.perf_counter()
        step = self.progress.step
        scores, probe = self.judge(self.learner.eval_weights.ready())
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
        self.writer.metric("system", step, **system_figures(self.device, self.writer.path))
        self.writer.probe(probe)
        self.log.say(self.line(scores))
        self.warn(self.health.evaluation(step, scores))
        if step == 0:
            self.progress.before = scores
        score = quality(scores)
        # Weights that already know something may be the best there are; random ones are not worth a checkpoint.
        if (step > 0 or self.tuning) and score > self.progress.best_score:
            self.progress.best_score, self.progress.best_checkpoint = score, checkpoint_name(step)
            self.save()

    def warn(self, troubles: list[str]) -> None:
        """Say what is wrong with the run, in the log and as an event."""
        for trouble in troubles:
            self.log.say(f"health: {trouble}")
            self.writer.event(self.progress.step, trouble, health=True)

    def best_scores(self) -> dict[str, float]:
        """What the best checkpoint scored; nothing where it was damaged and is gone."""
        folder = self.writer.path / "checkpoints" / self.progress.best_checkpoint
        return dict(read_meta(folder, verify=False)["scores"]) if folder.is_dir() else {}

    def line(self, scores: dict[str, float]) -> str:
        """An evaluation in one plain line."""
        step, steps = self.progress.step, self.recipe.steps
        rate = step / max(self.progress.train_seconds, 1e-9)
        pace = f"{self.pace.last:.0f} images/s  {(steps - step) / rate:.0f} s left" if step else ""
        return plain_line(scores, f"step {step}/{steps}", pace)

    def wants_to_stop(self, signals: Signals) -> bool:
        """Serve signals and requests; a pause waits here."""
        if signals.received is not None:
            self.writer.event(self.progress.step, f"stopping: signal {signals.received}")
            return True
        request = next(self.writer.pending_requests(), None)
        if request is None:
            return False
        asked = "" if isinstance(request, Malformed) else request.kind
        self.writer.acknowledge(request, self.progress.step, "done", f"asked to {asked}")
        if asked == "checkpoint":
            self.save()
        elif asked == "evaluate":
            self.evaluate()
        elif asked == "pause":
            return self.pause(signals)
        return asked == "stop"

    def pause(self, signals: Signals) -> bool:
        """Wait, with a checkpoint on disk, until asked to go on or to stop; returns whether to stop."""
        self.save()
        self.status(State.PAUSED)
        self.log.say(f"paused at step {self.progress.step}")
        started, asked = time.perf_counter(), ""
        while signals.received is None:
            request = next(self.writer.pending_requests(), None)
            if request is not None:
                asked = "" if isinstance(request, Malformed) else request.kind
                self.writer.acknowledge(request, self.progress.step, "done", f"asked to {asked}")
            if asked in ("resume", "stop"):
                break
            self.writer.heartbeat()
            time.sleep(_PAUSE_POLL)
        self.pace.skip(time.perf_counter() - started)
        if signals.received is not None or asked == "stop":
            return True
        self.log.say("going on")
        self.status(State.RUNNING)
        return False

    def status(self, state: State, **values: Any) -> None:
        self.writer.status(state=state, step=self.progress.step, epoch=self.epoch, **values)

    # ------------------------------------------------------------ checkpoints

    def save(self) -> None:
        """Write a checkpoint, let latest.json (and best.json) name it, then delete what they superseded."""
        self.learner.refuse_non_finite()
        progress = self.progress
        name = checkpoint_name(progress.step)
        folder = self.writer.path / "checkpoints" / name
        if self._saved_at != progress.step:
            state = dict(vars(progress)) | {"best_score": list(progress.best_score)}
            save_checkpoint(
                folder,
                model=self.learner.eval_weights.ready(),
                tensors=self.learner.tensors(),
                state=state,
                step=progress.step,
                epoch=self.epoch,
                scores=progress.scores if progress.scored_at == progress.step else {},
            )
            self._saved_at = progress.step
        self.writer.point_latest(name, progress.step)
        if progress.best_checkpoint == name:
            self.writer.point_best(name, progress.step, progress.scores)
        delete_superseded(self.writer.path, keep=self.keep_checkpoints, best=progress.best_checkpoint)

    def resume(self) -> bool:
        """Go back to the last whole checkpoint, if there is one; returns whether there was."""
        delete_damaged(self.writer.path)
        for folder in valid_checkpoints(self.writer.path):
            state = read_state(folder)
            self.learner.restore(folder)
            self.progress = Progress(**state | {"best_score": tuple(state["best_score"])})
            if self.recipe.seconds is not None and self.progress.planned_steps:
                self.recipe = self.health.recipe = planned(self.recipe, self.config, self.progress.planned_steps)
            self.writer.forget_after(self.progress.step)
            self._saved_at = self.progress.step
            return True
        self.writer.forget_after(-1)
        return False
