"""Warnings about a run from its metrics; each is given once, with what to do about it."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from clip_core.run.metrics import (
    CHANCE,
    DATA_WAIT,
    IMAGE_MEAN_COSINE,
    LOGIT_SCALE,
    LOSS,
    REPEATED_CAPTIONS,
    SECOND,
    TEXT_MEAN_COSINE,
    Metric,
    best_by,
    quality,
)
from clip_core.run.records import Recipe

_STUCK = 0.02  # relative distance from the loss of chance within which a loss counts as chance
_SETTLED = 0.2  # fraction of the run before which the loss is not checked
_FIRST_STEPS = 50  # in which the embeddings of a new network are all alike
_COLLAPSED = 0.98  # mean cosine of different images (or captions)
_WAITING = 0.3  # fraction of the time
_REPEATED = 0.5  # fraction of a batch whose caption occurs more than once in it
_OVERFIT_EVALUATIONS, _OVERFIT_DROP = 3, 0.1
_FORGOTTEN = 1 / 3  # of the recall of the initial weights on the second validation set
_ROUNDING = 1e-3  # of a loss of chance in fp32
_NEAR_CHANCE = 2  # times chance, below which the initial weights have nothing on it to forget
_WINDOW = 5  # reports that are averaged


@dataclass
class Health:
    """`report` and `evaluation` return the warnings that were not given before."""

    recipe: Recipe
    classes: bool  # the captions are few classes, so that repeated captions are normal
    max_logit_scale: float
    guard_chance: float = 0.0  # recall@1 of random embeddings on the second validation set
    _given: set[str] = field(default_factory=set)
    _first_losses: list[float] = field(default_factory=list)  # divided by the loss of chance
    _losses: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    _waits: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    _best: tuple[tuple[float, float], int, float] | None = None  # quality, step, value of `best_by`
    _since_best: deque[float] = field(default_factory=lambda: deque(maxlen=_OVERFIT_EVALUATIONS))

    def report(self, step: int, measured: Mapping[str, float]) -> list[str]:
        """After a train line: loss, temperature, data."""
        recipe, scale, wait = self.recipe, measured[LOGIT_SCALE.key], measured[DATA_WAIT.key]
        repeated = measured[REPEATED_CAPTIONS.key]
        settled = step >= max(_SETTLED * recipe.steps, recipe.warmup_steps)
        found = self._loss_warnings(measured, settled)
        self._waits.append(wait)
        if scale >= self.max_logit_scale * 0.999:
            found["cold"] = (
                f"the temperature is at its limit ({LOGIT_SCALE.label} {self.max_logit_scale:g}): the training pairs "
                "are memorised; more pairs or fewer --epochs help"
            )
        elif settled and len(self._losses) == _WINDOW and scale <= 1.001:
            found["hot"] = f"the {LOGIT_SCALE.label} is at its lower limit, 1: the model cannot separate the captions"
        if len(self._waits) == _WINDOW and _mean(self._waits) > _WAITING:
            found["waiting"] = (
                f"{DATA_WAIT.label} {DATA_WAIT.text(_mean(self._waits))} of the time: raise --cache-gb, so that images "
                "are decoded once, or --workers"
            )
        if not self.classes and repeated > _REPEATED:
            found["repeated"] = (
                f"{REPEATED_CAPTIONS.text(repeated)} of a batch share their caption with another pair: they count as "
                "positives, so a batch has few negatives; more specific captions help"
            )
        return self._new(found)

    def useless_guard(self, scores: Mapping[str, float]) -> str | None:
        """What to do where the initial weights are near chance on the second validation set; None elsewhere."""
        start = guard_recall(scores)
        if start is None or start >= _NEAR_CHANCE * self.guard_chance:
            return None
        return (
            f"the initial weights are near chance on the second validation set (recall@1 {start:.0%}, chance "
            f"{self.guard_chance:.0%}), so it shows no forgetting: give pairs that they know with --guard-data FILE"
        )

    def evaluation(
        self, step: int, scores: Mapping[str, float], before: Mapping[str, float] | None = None
    ) -> list[str]:
        """After an evaluation: collapse, forgetting, and overfitting by the metric that chooses the best checkpoint.

        Args:
            before: the scores of the pretrained weights that are fine-tuned.
        """
        found = self._forgetting(scores, before or {})
        settled = step >= max(_SETTLED * self.recipe.steps, _FIRST_STEPS)
        for what, metric in (("images", IMAGE_MEAN_COSINE), ("captions", TEXT_MEAN_COSINE)):
            if settled and scores[metric.key] > _COLLAPSED:
                found[f"collapsed {what}"] = (
                    f"all {what} have nearly the same embedding ({metric.label} {metric.text(scores[metric.key])}): "
                    f"the model has collapsed; start again with --lr {self.recipe.lr / 5:.1g} or a larger --warmup"
                )
        metric, value = best_by(scores), scores[best_by(scores).key]
        if self._best is None or quality(scores) > self._best[0]:
            self._best = (quality(scores), step, value)
            self._since_best.clear()
        else:
            self._since_best.append(value)
            found |= self._overfitting(metric, self._best[1], self._best[2])
        return self._new(found)

    def _loss_warnings(self, measured: Mapping[str, float], settled: bool) -> dict[str, str]:
        """Divergence, or a loss that stays at chance; none where chance is 0, as with one caption for all pairs."""
        recipe, chance, loss = self.recipe, measured[CHANCE.key], measured[LOSS.key]
        if chance <= 0:
            return {}
        self._losses.append(loss / chance)
        if len(self._first_losses) < _WINDOW:
            self._first_losses.append(loss / chance)
        first, last = _mean(self._first_losses), _mean(self._losses)
        if not settled or len(self._losses) < _WINDOW:
            return {}
        if last > max(1, first) * (1 + _STUCK):
            return {
                "diverged": f"the loss has risen to {LOSS.text(loss)}, above chance ({self._chance(chance)}): learning "
                f"rate {recipe.lr:g} is too high; start again with --lr {recipe.lr / 5:.1g}"
            }
        if max(abs(last - 1), abs(first - 1)) < _STUCK:
            return {
                "stuck": f"the loss stays at chance ({self._chance(chance)}): the model has not learned anything yet; "
                f"check that captions belong to their images (clip-data check), then try --lr {recipe.lr * 3:.1g} or "
                f"{recipe.lr / 3:.1g}"
            }
        return {}

    def _overfitting(self, metric: Metric, best_step: int, best: float) -> dict[str, str]:
        if len(self._since_best) < _OVERFIT_EVALUATIONS or max(self._since_best) >= best * (1 - _OVERFIT_DROP):
            return {}
        return {
            "overfitting": f"overfitting: best {metric.label} {metric.text(best)} at step {best_step}, now "
            f"{metric.text(self._since_best[-1])}; the best checkpoint is kept; train for fewer --epochs"
        }

    def _forgetting(self, scores: Mapping[str, float], before: Mapping[str, float]) -> dict[str, str]:
        """A fall by more than a third on the second validation set."""
        start, now = guard_recall(before), guard_recall(scores)
        if start is None or now is None or start < _NEAR_CHANCE * self.guard_chance or start == 0:
            return {}
        if now >= start * (1 - _FORGOTTEN):
            return {}
        return {
            "forgetting": f"forgetting: recall@1 on the second validation set fell from {start:.0%} (initial weights) "
            f"to {now:.0%}; --lr {self.recipe.lr / 3:.1g}, --lock, --lora or --blend 0.5 change less"
        }

    def _chance(self, loss: float) -> str:
        if self.recipe.loss == "sigmoid":
            return f"{LOSS.text(loss)}, the loss of one constant answer"
        if abs(loss - math.log(self.recipe.batch_size)) > _ROUNDING:
            return f"{LOSS.text(loss)}, the loss of equal similarities"  # with hard negatives
        return f"ln {self.recipe.batch_size} = {LOSS.text(loss)}"

    def _new(self, found: Mapping[str, str]) -> list[str]:
        new = [sentence for warning, sentence in found.items() if warning not in self._given]
        self._given |= found.keys()
        return new


def guard_recall(scores: Mapping[str, float]) -> float | None:
    """Recall@1 on the second validation set, mean of both ways; None where there is none."""
    found = [value for key, value in scores.items() if key.startswith(SECOND) and key.endswith("recall@1")]
    return sum(found) / len(found) if found else None


def _mean(values: deque[float] | list[float]) -> float:
    return sum(values) / len(values)
