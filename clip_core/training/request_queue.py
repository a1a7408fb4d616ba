"""The trainer's side of the request queue: what may be done in which state, in order, each with an acknowledgement."""

from collections import deque
from contextlib import suppress

from clip_core.run.requests import Malformed, Request
from clip_core.run.writer import RunWriter

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
