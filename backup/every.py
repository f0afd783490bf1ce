"""Backup again and again, through times when the store is away."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from backup.options import BackupOptions, Progress
from backup.report import BackupReport
from backup.run import backup
from ourdb.errors import Error, InvalidError, TemporaryError


def backup_every(
    path: str | os.PathLike[str],
    url: str,
    every_ms: int,
    stop: threading.Event,
    *,
    on_report: Callable[[BackupReport], None] = lambda report: None,
    on_error: Callable[[Error], None] = lambda error: None,
    single_writer: bool = False,
    meta: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    options: BackupOptions | None = None,
) -> None:
    """Backs up at once and then each `every_ms` (1 at least, the time of the run included) until `stop` is
    set; a run that is under way is finished.

    on_report: is called after each run. on_error: with each TemporaryError (the store is away, or others
    were faster), after which the next run tries again. Any other error of `backup` ends it, and is raised:
    waiting does not mend it. What the operator chose once (options.how) counts until a run has succeeded,
    and answers no later refusal.
    """
    if every_ms < 1:
        raise InvalidError(f"every_ms must be at least 1: {every_ms}")
    chosen = options or BackupOptions()
    while not stop.is_set():
        began = time.monotonic()
        try:
            on_report(
                backup(
                    path,
                    url,
                    fork=chosen.how == "fork",
                    take_over=chosen.how == "take-over",
                    new=chosen.how == "new",
                    single_writer=single_writer,
                    meta=meta,
                    progress=progress,
                    options=chosen,
                )
            )
            chosen = replace(chosen, how=None)
        except TemporaryError as error:
            on_error(error)
        stop.wait(max(0.0, began + every_ms / 1000 - time.monotonic()))
