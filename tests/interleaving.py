"""Runs of which each request waits: it goes on when the test says so, and ends as the test says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from compactor.store.base import NoAnswer, PreconditionFailed, Store
from ourdb.errors import Error
from tests.faulty import WRITES, FaultyStore, begin

End = Literal[
    "ok", "die before", "die middle", "die after", "no answer before", "no answer after", "late", "twice"
]
ENDS: tuple[End, ...] = ("die before", "die after", "no answer before", "no answer after", "late", "twice")
# "die middle" leaves an upload unfinished; with any other request it is "die before", so ENDS does without it
PATIENCE_SECONDS = 60.0  # of a run between two requests: reached only by one that hangs


class Killed(BaseException):
    """The process of the run ends here."""


@dataclass(eq=False)
class _Request:
    end: End | None = None
    answered: bool = False


class Waiting(FaultyStore):
    """A store for one run: every request waits in `Run.step`."""

    def __init__(self, inner: Store, run: Run) -> None:
        super().__init__(inner)
        self._run = run

    def _send(self, method: str, key: str, send: Callable[[], Any]) -> Any:
        return self._run.ask(method, send)


class Run:
    """body: is called in a thread, with the store that waits. report, error: how it ended. landing: is given
    what takes effect later."""

    def __init__(
        self, inner: Store, body: Callable[[Waiting], Any], landing: list[Callable[[], Any]]
    ) -> None:
        self.report: Any = None
        self.error: BaseException | None = None
        self._landing = landing
        self._waiting: list[_Request] = []
        self._changed = threading.Condition()
        self._dead = self._done = False
        self._thread = threading.Thread(target=self._live, args=(body, Waiting(inner, self)))
        self._thread.start()

    def step(self, end: End = "ok") -> bool:
        """Lets one request go on, to this end, and waits until it is over. False: the run has ended."""
        with self._changed:
            ready = self._changed.wait_for(lambda: self._done or self._waiting, PATIENCE_SECONDS)
            assert ready, "the run hangs"
            if not self._waiting:
                self._thread.join()
                return False
            request = self._waiting.pop(0)
            request.end = end
            self._changed.notify_all()
            self._changed.wait_for(lambda: request.answered)
        return True

    def finish(self) -> Run:
        while self.step():
            pass
        return self

    def kill(self) -> None:
        """No request of it has an effect any more."""
        while self.step("die before"):
            pass

    def ask(self, method: str, send: Callable[[], Any]) -> Any:
        request = _Request()
        with self._changed:
            self._waiting.append(request)
            self._changed.notify_all()
            self._changed.wait_for(lambda: request.end is not None)
        try:
            return self._answer(request.end or "ok", method, send)
        finally:
            with self._changed:
                request.answered = True
                self._changed.notify_all()

    def _answer(self, end: End, method: str, send: Callable[[], Any]) -> Any:
        if end == "die middle" and not self._dead:
            begin(send)
        if self._dead or end in ("die before", "die middle"):
            self._dead = True
            raise Killed
        if end == "ok":
            return send()
        if end in ("late", "twice") and method in WRITES:
            self._landing.append(send)
        if end in ("die after", "no answer after", "twice"):
            send()
        if end == "die after":
            self._dead = True
            raise Killed
        raise NoAnswer(f"no answer to {method}")

    def _live(self, body: Callable[[Waiting], Any], store: Waiting) -> None:
        try:
            self.report = body(store)
        except BaseException as error:
            self.error = error
        with self._changed:
            self._done = True
            self._changed.notify_all()


def land(send: Callable[[], Any]) -> None:
    """A late request takes effect, or is refused; nobody sees which."""
    try:
        send()
    except (PreconditionFailed, Error):
        return
