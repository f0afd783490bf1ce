"""Progress bars on standard error, where that is a terminal; elsewhere the summary line says it all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def byte_bar(title: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Gives a function that takes how many bytes more are done."""
    if not sys.stderr.isatty():
        yield lambda more_bytes: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        "{task.description}",
        BarColumn(),
        DownloadColumn(True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total_bytes)
        yield lambda more_bytes: progress.advance(task, more_bytes)
