"""Trying again: how long, how often, and what is not repeated."""

from __future__ import annotations

import pytest

from compactor.store.base import NoAnswer
from compactor.store.retry import WITHOUT_EFFECT, Altered, Retry, Unreached
from ourdb.errors import RefusedError, TemporaryError


class Action:
    """Fails with each of these, then gives 7."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return 7


class FakeTime:
    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def retry_for(seconds: float, time: FakeTime, jitter: float = 1.0) -> Retry:
    return Retry(seconds, sleep=time.sleep, clock=lambda: time.now, jitter=lambda: jitter)


def test_success_is_given_at_once() -> None:
    time = FakeTime()
    assert retry_for(30, time).call(Action()) == 7
    assert time.pauses == []


def test_pauses_grow_to_a_limit() -> None:
    time = FakeTime()
    action = Action(*[TemporaryError("busy")] * 8)
    assert retry_for(100, time).call(action) == 7
    assert time.pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])


def test_jitter_shortens_a_pause_by_half_at_most() -> None:
    time = FakeTime()
    retry_for(30, time, jitter=0.0).call(Action(*[TemporaryError("busy")] * 3))
    assert time.pauses == pytest.approx([0.05, 0.1, 0.2])


def test_last_error_is_raised_when_the_time_is_up() -> None:
    time = FakeTime()
    action = Action(*[TemporaryError(f"busy {number}") for number in range(100)])
    with pytest.raises(TemporaryError) as caught:
        retry_for(10, time).call(action)
    assert caught.value.message == f"busy {action.calls - 1}"
    assert 3 < sum(time.pauses) <= 10


def test_no_time_means_one_attempt() -> None:
    action = Action(TemporaryError("busy"))
    with pytest.raises(TemporaryError):
        retry_for(0, FakeTime()).call(action)
    assert action.calls == 1


def test_slow_first_failure_still_gets_its_time() -> None:
    time = FakeTime()

    def slow() -> int:
        time.now += 60  # a read that timed out
        raise NoAnswer("no answer")

    with pytest.raises(NoAnswer):
        retry_for(30, time).call(slow)
    assert len(time.pauses) == 1


def test_other_errors_are_not_repeated() -> None:
    action = Action(RefusedError("no"))
    with pytest.raises(RefusedError):
        retry_for(30, FakeTime()).call(action)
    assert action.calls == 1


def test_what_may_have_had_an_effect_is_repeated_only_where_allowed() -> None:
    action = Action(Unreached("no connection"), Altered("bad digest"), NoAnswer("dropped"))
    with pytest.raises(NoAnswer):
        retry_for(30, FakeTime()).call(action, WITHOUT_EFFECT)
    assert action.calls == 3
