"""The lookup table on disk: entries in checked pages, under their own write-ahead log."""

# ruff: noqa: A002  (an id is called id)

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ourdb import tablepages
from ourdb.directory import Directory, random_u64
from ourdb.errors import InvalidError
from ourdb.idpages import IdPages, Live
from ourdb.lookup import Ids, LookupTable, Seqs
from ourdb.pagetable import PageTable, SyncPlan, adopt_table, remove_files, write_files
from ourdb.tableformat import Layout, TableState
from ourdb.tablepages import NewTable, TableDamage, TablePages

Entries = Iterable[tuple[Ids, Seqs, NDArray[np.bool_]]]


class PagedLookup(LookupTable):
    """id -> seq in pages: of a table that is being built, or (DiskLookup) of one that counts."""

    __slots__ = ("ids",)

    def __init__(self, pages: TablePages) -> None:
        super().__init__(pages.layout.id_max, pages.layout.width)
        self._use(pages)

    def _use(self, pages: TablePages) -> None:
        self.ids = IdPages(pages, self._mend)
        self.width = pages.layout.width
        self.live: Any = Live(self.ids)
        self.wide, self.storing = self.ids.wide, self.ids.storing()

    def _mend(self, damage: TableDamage) -> IdPages:
        raise damage

    def seq(self, id: int) -> int:
        load, *_, shift = self.ids.wide
        low, high = load(None, id)
        return int(low | high << shift)

    def seqs(self, ids: Ids) -> Seqs:
        self._require_range(ids)
        return self.ids.seqs(ids)

    def living(self, ids: Ids) -> NDArray[np.bool_]:
        self._require_range(ids)
        return self.ids.living(ids)

    def _require_range(self, ids: Ids) -> None:
        """Beyond the last id other pages, or nothing, would be found."""
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) > self.id_max):
            raise IndexError(f"an id is out of range, 0 to {self.id_max}")

    def prepare(self, ids: Ids) -> Seqs:
        return self.ids.reach(ids).seqs(ids)

    def put_many(self, ids: Ids, seqs: Seqs, alive: NDArray[np.bool_], *, distinct: bool = False) -> None:
        if not len(ids):
            return
        if int(seqs[-1]) > self.seq_max:
            raise InvalidError(f"seq {seqs[-1]} does not fit into {self.width} bytes: widen the table first")
        touched = ids if distinct else np.unique(ids)
        now = self.ids.reach(ids)
        before = int(now.living(touched).sum())
        now.put(ids, seqs, alive)
        self.count += int(now.living(touched).sum()) - before
        top = int(ids.max())
        self.highest = top if self.highest is None else max(top, self.highest)

    def alive(self) -> Iterator[NDArray[np.int64]]:
        return self.ids.alive()


class DiskLookup(PagedLookup):
    """A table that counts. `mender`, if there is one, rebuilds it where a page turns out to be damaged, by
    `rebuild`; else that is a TableDamage."""

    __slots__ = ("_directory", "mender", "table")

    def __init__(self, directory: Directory, table: PageTable) -> None:
        self._directory, self.table = directory, table
        self.mender: Callable[[TableDamage], None] | None = None
        super().__init__(table)
        self.count, self.highest = table.state.count, table.state.highest

    def _mend(self, damage: TableDamage) -> IdPages:
        if self.mender is None:
            raise damage
        self.mender(damage)
        return self.ids

    @property
    def crowded(self) -> bool:
        """Whether so many pages changed that a sync is due."""
        return self.table.changed > tablepages.CHANGED_PAGES_MAX

    def full_sync(self, *, seq: int, file_id: int, durable_seq: int, background: bool = False) -> SyncPlan:
        """See PageTable.full_sync. seq: the last that was put here."""
        return self.table.full_sync(
            seq=seq,
            file_id=file_id,
            count=self.count,
            highest=self.highest,
            durable_seq=durable_seq,
            background=background,
        )

    def widen(self, width: int, *, seq: int, file_id: int) -> None:
        """Go on with a file of wider entries. seq: the last that was put here, durable in the log."""
        old = self.table
        old.wait()
        state = old.state
        new = NewTable(self._directory, Layout(width, self.id_max), state.number + 1)
        try:
            wider = PagedLookup(new)
            for ids, seqs in self.ids.entries():
                wider.put_many(ids, seqs, self.living(ids), distinct=True)
            state = replace(
                state,
                table=random_u64(),
                number=state.number + 1,
                layout=new.layout,
                sync=state.sync + 1,
                seq=seq,
                file_id=file_id,
                count=self.count,
                highest=self.highest,
            )
            new.finish(state)
        except BaseException:
            new.discard()
            raise
        self._adopt(adopt_table(self._directory, old, state))

    def rebuild(self, width: int, entries: Entries, *, uuid: bytes, seq: int, file_id: int) -> None:
        """Go on with a new file that holds these entries, in place of one that is damaged."""
        self.table.close()
        other = build_table(
            self._directory, Layout(width, self.id_max), entries, uuid=uuid, seq=seq, file_id=file_id
        )
        self.count, self.highest = other.state.count, other.state.highest
        self._adopt(other)

    def _adopt(self, table: PageTable) -> None:
        before, table.crowded = self.ids, self.table.crowded
        self.table = table
        self._use(table)
        before.replace(self.ids)

    def close(self) -> None:
        self.table.close()


def build_table(
    directory: Directory, layout: Layout, entries: Entries, *, uuid: bytes, seq: int, file_id: int
) -> PageTable:
    """A new table of these entries, which are in the order of the log up to `seq`, durable there. What is
    left of another is removed first. A crash before the end leaves none."""
    remove_files(directory)
    new = NewTable(directory, layout, 0)
    try:
        lookup = PagedLookup(new)
        for ids, seqs, alive in entries:
            lookup.put_many(ids, seqs, alive)
        state = TableState(
            uuid=uuid,
            table=random_u64(),
            number=0,
            layout=layout,
            sync=1,
            seq=seq,
            file_id=file_id,
            count=lookup.count,
            highest=lookup.highest,
        )
        new.finish(state)
    except BaseException:
        new.discard()
        raise
    return write_files(directory, state)
