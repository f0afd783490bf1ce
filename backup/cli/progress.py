"""Progress bars on standard error, where that is a terminal; elsewhere the summary line says it all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def byte_bar(title: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Gives a function that takes how many bytes more are done."""
    if not sys.stderr.isatty():
        yield lambda more_bytes: None
        return
    with _bars() as bars:
        task = bars.add_task(title, total=total_bytes)
        yield lambda more_bytes: bars.advance(task, more_bytes)


@contextmanager
def work_bar(title: str) -> Iterator[Callable[[int, int, str], None] | None]:
    """Gives a function that takes bytes done, bytes in all and what is being done; None off a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with _bars() as bars:
        task = bars.add_task(title, total=None)

        def show(done_bytes: int, all_bytes: int, what: str) -> None:
            bars.update(task, completed=done_bytes, total=all_bytes or None, description=what)

        yield show


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        "{task.description}",
        BarColumn(),
        DownloadColumn(True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
