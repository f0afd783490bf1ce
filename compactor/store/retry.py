"""Trying again: bounded in time, with jitter, and only what may be repeated."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from ourdb.errors import DamageError, TemporaryError

PAUSE_SECONDS_MAX = 5.0
Result = TypeVar("Result")


class Unreached(TemporaryError):
    """No connection came about, so nothing was sent."""


class Altered(DamageError):
    """Bytes were altered on the way: the store said so, or its checksum is not ours. Worth another try."""

    default_kind = "store_damaged"


class StoredAltered(Altered):
    """The reply's checksum is not ours: the request had an effect, but which?"""


REPEATABLE = (TemporaryError, Altered)  # for a request that may be carried out twice
WITHOUT_EFFECT = (Unreached, Altered)  # for one that may not


class Retry:
    """seconds: how long to go on after the first failure; the last attempt may end later. Pauses grow
    from pause_seconds to 5 s, and each is cut by a random factor, so that many clients of a store that
    comes back do not come all at once.

    For several threads. sleep, clock (seconds, goes on steadily) and jitter (0 to 1) are parameters for
    tests.
    """

    def __init__(
        self,
        seconds: float,
        *,
        pause_seconds: float = 0.1,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._seconds = seconds
        self._pause_seconds = pause_seconds
        self._sleep = sleep
        self._clock = clock
        self._jitter = jitter

    def call(
        self,
        action: Callable[[], Result],
        repeat_on: tuple[type[Exception], ...] = REPEATABLE,
    ) -> Result:
        """What the action returns, or its last error."""
        give_up: float | None = None
        pause = self._pause_seconds
        while True:
            try:
                return action()
            except repeat_on:
                now = self._clock()
                give_up = now + self._seconds if give_up is None else give_up
                pause_now = pause * (0.5 + self._jitter() / 2)
                if now + pause_now > give_up:
                    raise
            self._sleep(pause_now)
            pause = min(2 * pause, PAUSE_SECONDS_MAX)
