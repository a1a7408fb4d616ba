"""The schedule of a run: steps, intervals and the learning rate of each step; with --minutes, planned by the pace."""

import math

from clip_core.config import TrainConfig
from clip_core.run.records import Recipe
from clip_core.training.progress import Progress

_EVALUATIONS = 30
_FIRST_PLAN = 10  # steps after which the pace is stable enough for an estimate


def intervals(config: TrainConfig, steps: int, steps_per_epoch: int) -> dict[str, int]:
    """The fields of a recipe that follow from its number of steps: warm-up and evaluation interval are fractions."""
    epochs_between = max(math.ceil(steps / _EVALUATIONS / steps_per_epoch), 1)
    eval_every = config.run.eval_every or epochs_between * steps_per_epoch
    return {
        "steps": steps,
        "warmup_steps": round(config.optim.warmup * steps),
        "eval_every": eval_every,
        "checkpoint_every": config.run.checkpoint_every or eval_every,
    }


def with_steps(recipe: Recipe, config: TrainConfig, steps: int) -> Recipe:
    """The recipe with another number of steps, in the same proportions."""
    return recipe.model_copy(update=intervals(config, steps, recipe.steps_per_epoch))


def learning_rate(step: int, *, peak: float, steps: int, warmup_steps: int, floor: float) -> float:
    """Linear warm-up over `warmup_steps`, then cosine decay to `floor` x `peak` at the last step; `step` from 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(steps - 1 - warmup_steps, 1)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


class Schedule:
    """The recipe of a run while it trains.

    Args:
        progress: shared with the trainer.
    Attributes:
        recipe: as it is now; a run with --minutes plans its steps again and again.
    """

    def __init__(self, recipe: Recipe, config: TrainConfig, progress: Progress) -> None:
        self.recipe, self.config, self.progress = recipe, config, progress

    @property
    def epoch(self) -> int:
        """Whole epochs that are done."""
        return min(self.progress.step, self.recipe.steps) // self.recipe.steps_per_epoch

    def learning_rate(self, step: int) -> float:
        recipe = self.recipe
        return self.progress.lr_factor * learning_rate(
            step, peak=recipe.lr, steps=recipe.steps, warmup_steps=recipe.warmup_steps, floor=recipe.min_lr
        )

    def scale_to(self, value: float) -> bool:
        """Scale the learning rates from the next step on, so that its own is `value`; False where it is 0."""
        now = self.learning_rate(self.progress.step)
        if now <= 0:  # the end of a decay to 0
            return False
        self.progress.lr_factor *= value / now
        return True

    def plan(self) -> bool:
        """With --minutes: estimate from the pace how many steps the time allows, so that the schedule ends with it.

        Returns whether the recipe has changed.
        """
        progress, seconds = self.progress, self.recipe.seconds
        if seconds is None:
            return False
        ended = progress.train_seconds >= seconds or progress.step >= self.recipe.steps
        if progress.step % _FIRST_PLAN and not ended:
            return False
        rate = progress.step / max(progress.train_seconds, 1e-9)
        steps = progress.step + max(round((seconds - progress.train_seconds) * rate), 0)
        planned = with_steps(self.recipe, self.config, steps)
        if progress.step > _FIRST_PLAN:  # evaluations and checkpoints stay at regular steps
            now = self.recipe
            planned = planned.model_copy(
                update={"eval_every": now.eval_every, "checkpoint_every": now.checkpoint_every}
            )
        self.recipe, progress.planned_steps = planned, steps
        return True

    def restore(self) -> None:
        """With --minutes: the steps that were planned when the checkpoint was written."""
        if self.recipe.seconds is not None and self.progress.planned_steps:
            self.recipe = with_steps(self.recipe, self.config, self.progress.planned_steps)
