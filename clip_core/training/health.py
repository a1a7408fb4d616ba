"""What is going wrong in a run, in words: each trouble is told once, with what to do about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from clip_core.run.records import Recipe

_STUCK = 0.02  # share of the loss of chance within which a loss is chance
_SETTLED = 0.2  # share of the run before which nothing is said about the loss
_FIRST_STEPS = 50  # in which any new network says much the same of everything
_COLLAPSED = 0.98  # mean cosine of different images (or captions)
_WAITING = 0.3  # share of the time
_REPEATED = 0.5  # share of a batch whose caption stands there more than once
_OVERFIT_EVALUATIONS, _OVERFIT_DROP = 3, 0.1
_LAST = 5  # reports that are judged together


@dataclass
class Health:
    """Looks at what is measured anyway; `report` and `evaluation` return what has not been said yet."""

    recipe: Recipe
    classes: bool  # the captions are few classes, so that they repeat by nature
    max_logit_scale: float
    _told: set[str] = field(default_factory=set)
    _losses: list[float] = field(default_factory=list)  # as shares of the loss of chance
    _waits: list[float] = field(default_factory=list)
    _recalls: list[tuple[int, float]] = field(default_factory=list)

    def report(self, step: int, measured: Mapping[str, float]) -> list[str]:
        """After a train line: the loss, the temperature, the data."""
        recipe, chance = self.recipe, self._chance(measured["chance"])
        self._losses.append(measured["loss"] / measured["chance"])
        self._waits.append(measured["data_wait"])
        loss = sum(self._losses[-_LAST:]) / len(self._losses[-_LAST:])
        waited = sum(self._waits[-_LAST:]) / len(self._waits[-_LAST:])
        first = sum(self._losses[:_LAST]) / len(self._losses[:_LAST])
        settled = step >= max(_SETTLED * recipe.steps, recipe.warmup_steps) and len(self._losses) >= _LAST
        found = {}
        if settled and loss > max(1, first) * (1 + _STUCK):
            found["diverged"] = (
                f"the loss has risen to {measured['loss']:.2f}, worse than chance ({chance}): the "
                f"learning rate of {recipe.lr:g} is too high; start again with --lr {recipe.lr / 5:.1g}"
            )
        elif settled and max(abs(loss - 1), abs(first - 1)) < _STUCK:
            found["stuck"] = (
                f"the loss stays at chance ({chance}): nothing is learnt yet; check that "
                f"captions belong to their images (clip-data check), then try --lr {recipe.lr * 3:.1g} or "
                f"{recipe.lr / 3:.1g}"
            )
        if measured["logit_scale"] >= self.max_logit_scale * 0.999:
            found["cold"] = (
                f"the temperature is at its limit (logit scale {self.max_logit_scale:g}): the model is as sure as it "
                "can be of the training pairs; more pairs or fewer --epochs help, more training does not"
            )
        elif settled and measured["logit_scale"] <= 1.001:
            found["hot"] = "the logit scale is at its lower limit, 1: the captions do not tell the images apart"
        if len(self._waits) >= _LAST and waited > _WAITING:
            found["waiting"] = (
                f"{waited:.0%} of the time goes into waiting for images: raise --cache-gb so that they stay decoded, "
                "or --workers"
            )
        if not self.classes and measured["repeated_captions"] > _REPEATED:
            found["repeated"] = (
                f"{measured['repeated_captions']:.0%} of a batch share their caption with another pair of it: they "
                "count as right answers of each other, so a batch teaches little; captions that say more would help"
            )
        return self._new(found)

    def evaluation(self, step: int, scores: Mapping[str, float]) -> list[str]:
        """After an evaluation: collapse, and overfitting as recall shows it."""
        self._recalls.append((step, scores["mean_recall"]))
        best_step, best = max(self._recalls, key=lambda row: row[1])
        later = [recall for at, recall in self._recalls if at > best_step]
        found = {}
        for tower, name in (("images", "image_mean_cosine"), ("captions", "text_mean_cosine")):
            if step >= max(_SETTLED * self.recipe.steps, _FIRST_STEPS) and scores[name] > _COLLAPSED:
                found[f"collapsed {tower}"] = (
                    f"all {tower} look alike to the model (mean cosine {scores[name]:.3f}): it has collapsed; start "
                    f"again with --lr {self.recipe.lr / 5:.1g} or a larger --warmup"
                )
        if len(later) >= _OVERFIT_EVALUATIONS and max(later[-_OVERFIT_EVALUATIONS:]) < best * (1 - _OVERFIT_DROP):
            found["overfitting"] = (
                f"recall on validation pairs was best at step {best_step} ({best:.1%} in the mean) and has fallen to "
                f"{later[-1]:.1%}: overfitting; best.json keeps the best, and fewer --epochs would end there"
            )
        return self._new(found)

    def _chance(self, loss: float) -> str:
        if self.recipe.loss == "sigmoid":
            return f"{loss:.2f}, that of one same answer for every pair"
        return f"ln {self.recipe.batch_size} = {loss:.2f}"

    def _new(self, found: Mapping[str, str]) -> list[str]:
        new = [sentence for trouble, sentence in found.items() if trouble not in self._told]
        self._told |= found.keys()
        return new
