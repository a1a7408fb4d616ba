"""The checkpoints of a run: saving, and restoring the last one."""

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
from clip_core.run.paths import checkpoint_name
from clip_core.run.writer import RunWriter
from clip_core.training.preflight import Settings, refuse_other_settings
from clip_core.training.processes import Processes
from clip_core.training.progress import Progress
from clip_core.training.stream_batches import StreamBatches
from clip_core.training.train_step import TrainStep


class Checkpointer:
    """Saves a run and restores it. Every process calls it alike; rank 0 alone writes.

    Args:
        progress: shared with the trainer; restoring replaces its values.
        stream: the batches, where they are streamed.
        keep: number of latest checkpoints to keep.
        settings: what config.json has of the run, which stays the same as long as it is resumed.
    Attributes:
        saved_at: step of the last checkpoint that was saved or restored; -1 before.
    """

    def __init__(
        self,
        train_step: TrainStep,
        progress: Progress,
        writer: RunWriter,
        processes: Processes,
        stream: StreamBatches | None,
        *,
        keep: int,
        settings: Settings,
    ) -> None:
        self.train_step, self.progress, self.writer, self.processes = train_step, progress, writer, processes
        self.stream, self.keep, self.settings = stream, keep, settings
        self.writes = processes.rank.writes
        self.saved_at = -1

    def save(self, *, epoch: int, kept: bool = False) -> None:
        """Write a checkpoint, let latest.json (and best.json) name it, then delete superseded ones.

        Args:
            kept: it was requested, so that it is never deleted.
        Raises:
            NonFiniteError: if a loss or gradient since the last check was not finite; nothing is written.
            CheckpointError: if one that is to be kept is damaged.
        """
        self.train_step.refuse_non_finite()
        progress = self.progress
        if self.stream is not None:
            progress.stream = self.processes.exchange(self.stream.state(progress.batch))
        gathered = None
        if self.train_step.sharded and self.processes.of_first(self.saved_at != progress.step):
            gathered = self.train_step.checkpoint()
        if not self.writes:
            return
        progress.chunk_size = self.train_step.chunk_size
        name = checkpoint_name(progress.step)
        folder = self.writer.paths.checkpoints / name
        if self.saved_at != progress.step:
            state = vars(progress) | {"best_score": list(progress.best_score), "settings": self.settings}
            weights, tensors = gathered or self.train_step.checkpoint()
            save_checkpoint(
                folder,
                model=self.train_step.eval_weights.model,
                weights=weights,
                tensors=tensors,
                state=state,
                step=progress.step,
                epoch=epoch,
                scores=progress.scores if progress.scored_at == progress.step else {},
                kept=kept,
            )
            self.saved_at = progress.step
        elif kept:
            keep_checkpoint(folder)
        self.writer.point_latest(name, progress.step)
        if progress.best_checkpoint == name:
            self.writer.point_best(name, progress.step, progress.scores)
        delete_superseded(self.writer.path, keep=self.keep, best=progress.best_checkpoint)

    def change(self, *names: str) -> None:
        """Write these values of the progress into the checkpoint of this step, where there is one."""
        if self.writes and self.saved_at == self.progress.step:
            values = {name: getattr(self.progress, name) for name in names}
            change_state(self.writer.paths.checkpoint(self.progress.step), **values)

    def restore(self) -> int:
        """Restore the last valid checkpoint and forget what was measured after it; returns its step, -1 for none.

        Raises:
            RunError: if config.json or tokenizer.json was changed since.
        """
        if self.writes:
            delete_damaged(self.writer.path)
        step = -1
        for folder in self.processes.of_first(valid_checkpoints(self.writer.path)[:1] if self.writes else []):
            state = read_state(folder)
            refuse_other_settings(self.writer.path, state.pop("settings", {}), self.settings)
            refuse_other_tokenizer(read_meta(folder, verify=False), self.writer.paths.tokenizer)
            self.train_step.restore(folder)
            self.progress.restore(state)
            self.saved_at = step = self.progress.step
            if self.stream is not None:
                self.stream.restore(self.progress.stream)
        self.writer.forget_after(step)
        return step

    def best_scores(self) -> dict[str, float]:
        """Scores of the best checkpoint; empty where it no longer exists."""
        folder = self.writer.paths.checkpoints / self.progress.best_checkpoint
        return dict(read_meta(folder, verify=False)["scores"]) if folder.is_dir() else {}
