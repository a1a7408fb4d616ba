"""The trainer's side of the request queue: what may be done in which state, in order, each with an acknowledgement."""

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from clip_core.errors import CheckpointError
from clip_core.run.paths import checkpoint_name
from clip_core.run.records import State
from clip_core.run.requests import Malformed, Request
from clip_core.run.writer import RunWriter

if TYPE_CHECKING:
    from clip_core.training.trainer import Trainer

_AT_ONCE = {"pause": "pausing", "resume": "resuming", "stop": "stopping"}  # acknowledged before they are served


class RequestQueue:
    """Requests in the order in which they were made.

    `take` reads what is new. Pause, resume and stop are acknowledged there, so that a person sees at once that they
    were accepted; checkpoint and evaluate when they are served. Whether one is refused depends on the state that the
    run will have after those before it.
    """

    def __init__(self, writer: RunWriter) -> None:
        self.writer = writer
        self.stopping = False
        self._paused = False  # once everything in the queue is served
        self._waiting: deque[Request] = deque()
        self._known: set[str] = set()
        self._expired = {request.id for request in writer.pending_requests()}

    def take(self, step: int, *, when: str = "") -> None:
        """Read new requests.

        Args:
            step: for the acknowledgements.
            when: what happens first, as " after this evaluation".
        """
        for request in self.writer.pending_requests():
            if request.id in self._known:
                continue
            self._known.add(request.id)
            if isinstance(request, Malformed):
                with suppress(OSError):  # such as a folder, which cannot be removed
                    self.writer.acknowledge(request, step, "invalid", f"invalid request {request.id}: {request.why}")
            elif request.id in self._expired:
                self.writer.acknowledge(request, step, "expired", "requested before this trainer started")
            elif refusal := self._refusal(request):
                self.writer.acknowledge(request, step, "refused", refusal)
            else:
                self._accept(request, step, when)

    @property
    def waiting(self) -> bool:
        """Whether there is a request to serve."""
        return bool(self._waiting)

    def next(self) -> Request | None:
        """The next request to serve."""
        return self._waiting.popleft() if self._waiting else None

    def done(self, request: Request, step: int, message: str) -> None:
        self.writer.acknowledge(request, step, "done", message)

    def refuse(self, request: Request, step: int, message: str) -> None:
        self.writer.acknowledge(request, step, "refused", message)

    def close(self, step: int) -> None:
        """Refuse what can no longer be served."""
        self.stopping = True
        self.take(step)
        while request := self.next():
            if request.kind not in _AT_ONCE:
                self.refuse(request, step, "the run has ended")

    def _accept(self, request: Request, step: int, when: str) -> None:
        self._waiting.append(request)
        if request.kind in _AT_ONCE:
            self._paused = request.kind == "pause"
            self.stopping = request.kind == "stop"
            self.done(request, step, _AT_ONCE[request.kind] + when)

    def _refusal(self, request: Request) -> str | None:
        if self.stopping:
            return "the run is stopping"
        if request.kind == "pause" and self._paused:
            return "the run is paused already"
        if request.kind == "resume" and not self._paused:
            return "the run is not paused"
        return None


def perform(request: Request, trainer: "Trainer") -> None:
    """Do what is requested at this step, and acknowledge it; a request to stop is the loop's own."""
    step, requests = trainer.progress.step, trainer.requests
    if request.kind == "evaluate":
        trainer.evaluate()
        requests.done(request, step, f"evaluated at step {step}")
    elif request.kind == "checkpoint":
        _save(request, trainer)
    elif request.kind == "learning_rate" and request.value is not None:
        _change_learning_rate(request, request.value, trainer)
    elif request.kind == "pause":
        trainer.save()
        trainer.paused = True
        trainer.reporter.status(State.PAUSED)
        trainer.log.say(f"paused at step {step}")
    elif request.kind == "resume":
        trainer.paused = False
        trainer.reporter.status(State.RUNNING)
        trainer.log.say("resumed after a pause")
        trainer.writer.event(step, "resumed after a pause", pace="restart")


def _save(request: Request, trainer: "Trainer") -> None:
    """Save a checkpoint that is never deleted."""
    step = trainer.progress.step
    try:
        trainer.save(kept=True)
    except CheckpointError as error:
        trainer.requests.refuse(request, step, str(error))
        return
    message = f"checkpoint {checkpoint_name(step)} saved and kept"
    trainer.log.say(message)
    trainer.requests.done(request, step, message)


def _change_learning_rate(request: Request, value: float, trainer: "Trainer") -> None:
    """Scale the schedule from the next step on, so that its learning rate is `value`."""
    step, before = trainer.progress.step, trainer.schedule.learning_rate(trainer.progress.step)
    if not trainer.schedule.scale_to(value):
        trainer.requests.refuse(request, step, "the learning rate is 0 until the end of the schedule")
        return
    trainer.checkpointer.change("lr_factor")  # of this step, as while paused
    message = f"learning rate {before:.3g} -> {value:.3g}; the schedule goes on from there"
    trainer.log.say(f"{message} (step {step})")
    trainer.requests.done(request, step, message)
