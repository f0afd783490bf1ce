"""What a writer does for its lookup table on disk: syncs it when that is due, widens it, mends it.

The table is a cache of the log: where a sync of it fails the database goes on, and the next opening replays
more of the log, or does the last sync again.
"""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

from ourdb.disklookup import DiskLookup
from ourdb.errors import Error
from ourdb.history import alive_of, log_columns
from ourdb.lookup import width_for
from ourdb.tablepages import TableDamage

if TYPE_CHECKING:
    from ourdb.logwriter import LogWriter

BACKGROUND = True  # whether a writer goes on while the pages of a sync are written


class TableKeeper:
    """Under the writer's lock, but for `mend`, which takes it."""

    __slots__ = ("_lookup", "_writer")

    def __init__(self, writer: LogWriter, lookup: DiskLookup) -> None:
        self._writer = weakref.ref(writer)  # a handle that is forgotten gives its lock back at once
        self._lookup = lookup
        lookup.mender = self.mend
        lookup.table.crowded = self._call

    def _call(self) -> None:
        """Too many pages changed: the next write comes through `_make_room`."""
        writer = self._writer()
        if writer is not None and self._lookup.table.failure is None:
            writer._limit = -1

    def sync(self, *, background: bool) -> None:
        """Make what was written so far durable, in the log and then in the table."""
        writer, lookup = self._get_writer(), self._lookup
        if lookup.table.failure is not None:
            return
        writer._sync_to(writer._seq)
        try:
            lookup.full_sync(
                seq=writer._seq,
                file_id=writer._list.active.file_id,
                durable_seq=writer._durable,
                background=background and BACKGROUND,
            )
            writer._logged = -writer._pos
        except (Error, FileNotFoundError) as error:
            writer.notes.append(
                f"the lookup table on disk is not synced until the database is opened again: {error}"
            )

    def bind(self) -> None:
        """All files but the active one may be condensed away: the table has to name that one."""
        if self._lookup.table.state.file_id != self._get_writer()._list.active.file_id:
            self.sync(background=False)

    def widen(self, seq: int) -> None:
        """Make room for entries as large as `seq`. StorageError, or UnusableError after a failed sync."""
        writer = self._get_writer()
        writer._sync_to(writer._seq)
        self._lookup.widen(width_for(seq), seq=writer._seq, file_id=writer._list.active.file_id)

    def mend(self, damage: TableDamage) -> None:
        """Build the table anew, from the log. Any thread."""
        writer, lookup = self._get_writer(), self._lookup
        with writer._lock:
            if lookup.table is not damage.table:  # another thread met it first
                return
            writer._sync_to(writer._seq)
            lookup.rebuild(
                max(lookup.width, width_for(writer._seq)),
                ((new.id, new.seq, alive_of(new)) for new in log_columns(writer, writer._seq)),
                uuid=writer.uuid,
                seq=writer._seq,
                file_id=writer._list.active.file_id,
            )
            writer._use_lookup(lookup)
            with suppress(Error):  # a note that cannot be written is still one of this handle's
                writer._note(
                    f"the lookup table on disk was damaged ({damage}): it was rebuilt from the data files"
                )

    def _get_writer(self) -> LogWriter:
        writer = self._writer()
        assert writer is not None  # it is the one that asks
        return writer
