"""backup --every ends with SIGTERM: cleanly, and soon."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from backup.cli.failure import Terminated

GRACE_SECONDS = 20  # for a run under way; what it committed stays, the next run takes up the rest


class Stop(threading.Event):
    """Is set by SIGTERM. A wait for it then ends at once; a run that goes on for `GRACE_SECONDS`, or until
    a second SIGTERM, is ended where it is, by Terminated in the main thread.

    threading's own Event takes a lock in `set`, and a signal may arrive while the main thread holds it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._requested = self._idle = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        self._handlers[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._on_sigterm)
        self._handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_alarm)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def is_set(self) -> bool:
        return self._requested

    def wait(self, timeout: float | None = None) -> bool:
        """In the main thread. True if SIGTERM arrived before the time (seconds) was over."""
        try:
            self._idle = True  # before the look: a signal between look and sleep raises
            if not self._requested:
                time.sleep(timeout or 0)
            self._idle = False
        except Terminated:
            self._requested = True
        return self._requested

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        if self._idle or self._requested:
            raise Terminated
        self._requested = True
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)

    def _on_alarm(self, signum: int, frame: FrameType | None) -> None:
        raise Terminated


def until_sigterm(work: Callable[[Stop], None]) -> None:
    """Runs `work`, which returns when the event that it is given is set; returns as well if it is ended."""
    try:
        with Stop() as stop:
            work(stop)
    except Terminated:
        return
