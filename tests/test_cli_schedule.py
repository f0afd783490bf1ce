"""backup --every ends with SIGTERM, cleanly and soon."""

from __future__ import annotations

import os
import signal
import time

import pytest

from backup.cli import schedule
from backup.cli.failure import Terminated
from backup.cli.schedule import Stop, until_sigterm


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_run_under_way_is_finished_before_the_end() -> None:
    done = []

    def work(stop: Stop) -> None:
        while not stop.is_set():
            if len(done) == 2:
                terminate()
            done.append(len(done))
            assert stop.wait(0.001) == (len(done) == 3)

    before = signal.getsignal(signal.SIGTERM)
    until_sigterm(work)
    assert done == [0, 1, 2]
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_wait_is_ended_at_once() -> None:
    waited = []

    def work(stop: Stop) -> None:
        signal.signal(signal.SIGALRM, lambda *_: terminate())
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        waited.append(stop.wait(60))
        assert stop.is_set()

    until_sigterm(work)
    assert waited == [True]


def test_run_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "GRACE_SECONDS", 0.01)

    def work(stop: Stop) -> None:
        terminate()
        time.sleep(60)
        pytest.fail("went on")

    until_sigterm(work)


def test_second_sigterm_ends_a_run_where_it_is() -> None:
    def work(stop: Stop) -> None:
        terminate()
        assert stop.is_set()
        terminate()
        pytest.fail("went on")

    until_sigterm(work)


def test_error_of_the_work_is_raised_and_the_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work(stop: Stop) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        until_sigterm(work)
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_is_no_exception_that_may_be_caught() -> None:
    assert not issubclass(Terminated, Exception)
