"""The progress of a run: what its checkpoints hold besides the tensors of weights and optimiser."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """How far a run has come. The parts of a trainer share one."""

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

    @property
    def batch(self) -> int:
        """The number of the next step's batch."""
        return self.step + self.skipped_batches

    def restore(self, state: dict[str, Any]) -> None:
        """Take all values from the state of a checkpoint."""
        restored = Progress(**state | {"best_score": tuple(state["best_score"])})
        vars(self).update(vars(restored))
