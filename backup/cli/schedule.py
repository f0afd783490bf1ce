"""backup --every: again and again until SIGTERM, through times when the store is away."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from backup.cli.failure import Terminated

GRACE_SECONDS = 20  # for a run under way; what it committed stays, the next run takes up the rest


class Stop:
    """SIGTERM ends the wait between runs at once, and a run after `GRACE_SECONDS` at most; a second one
    ends it where it is. All of them raise Terminated in the main thread."""

    def __init__(self) -> None:
        self._requested = self._idle = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        self._handlers[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminate)
        self._handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._give_up)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def wait(self, seconds: float) -> None:
        """Returns after so long, or raises Terminated."""
        self._idle = True  # before the look, so that a signal between look and sleep raises
        if self._requested:
            raise Terminated
        time.sleep(seconds)
        self._idle = False

    def _terminate(self, signum: int, frame: FrameType | None) -> None:
        if self._idle or self._requested:
            raise Terminated
        self._requested = True
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)

    def _give_up(self, signum: int, frame: FrameType | None) -> None:
        raise Terminated


def repeat(run: Callable[[], None], every_ms: int, on_failure: Callable[[Exception], None]) -> None:
    """Runs once each `every_ms`, the time of the run included, until SIGTERM, and then returns.

    A TemporaryError (the store is away) goes to `on_failure`, and the next run tries again; any other
    error ends it.
    """
    from ourdb.errors import TemporaryError

    try:
        with Stop() as stop:
            while True:
                began = time.monotonic()
                try:
                    run()
                except TemporaryError as error:
                    on_failure(error)
                stop.wait(max(0.0, began + every_ms / 1000 - time.monotonic()))
    except Terminated:
        return
