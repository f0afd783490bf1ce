"""How commands open a database: one that is there, telling what recovery had to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from backup.cli.output import note

if TYPE_CHECKING:
    from ourdb import OurDB


@contextmanager
def opened(directory: Path, *, readonly: bool = False) -> Iterator[OurDB]:
    """The database in the directory, for writing unless `readonly`. Its notes go to standard error."""
    import ourdb

    with ourdb.open(directory, create=False, readonly=readonly) as db:
        for text in db.notes:
            note(text)
        yield db
