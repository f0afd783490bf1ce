"""A thread that makes a database durable once in a while."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

from ourdb.errors import Error

if TYPE_CHECKING:
    from ourdb.logwriter import LogWriter

SYNC_INTERVAL_S = 1.0


class Syncer:
    """Syncs every `interval_s` seconds if anything was written; ends with the database, closed or
    forgotten."""

    def __init__(self, db: LogWriter, interval_s: float) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_run, args=(weakref.ref(db), self._stop, interval_s), name="ourdb-sync", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()


def _run(reference: weakref.ref[LogWriter], stop: threading.Event, interval_s: float) -> None:
    while not stop.wait(interval_s):
        db = reference()
        if db is None:
            return
        try:
            db.sync()
        except Error:
            return  # the database is poisoned, or closed: the next write says so
        del db
