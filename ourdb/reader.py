"""Reading beside a writer in another process, without a lock.

Before each read it looks, with pread, whether there is more behind the last record that it knows. It
touches its mapping up to there only: what lies behind may be cut off when the file is sealed, and
touching a page that is gone ends a process. When the bytes there are no record the file may have been
sealed: the list of files says.
"""

# ruff: noqa: A002  (an id is called id)

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ourdb.config import Config
from ourdb.database import OurDB
from ourdb.directory import Directory, FileList, file_missing
from ourdb.errors import DamageError, InvalidError, UnusableError
from ourdb.files import File
from ourdb.history import alive_of
from ourdb.logtail import cached_places
from ourdb.lookup import Lookup
from ourdb.reading import Order
from ourdb.recovery import Point, check_header, follow_file, skim_file, usable_places
from ourdb.sealed import SealedFile
from ourdb.segment.columns import Columns
from ourdb.segment.header import HEADER_BYTES
from ourdb.tableopening import copy_lookup
from ourdb.tablepages import TableDamage
from ourdb.units import When
from ourdb.views import Items

_TRIES = 16
_NO_PLACES = np.empty(0, np.int64)


class ReadonlyDB(OurDB):
    """A database that another process may be writing: each read sees what was acknowledged before it.

    Every write raises InvalidError. Threads may share it.
    """

    __slots__ = ("_end", "_new_places", "_open_file", "_places_seen")

    def __init__(self, directory: Directory, uuid: bytes, config: Config) -> None:
        super().__init__(directory, None, uuid, config, config.sync)
        self._open_file: File | None = None
        self._end = Point(offset=HEADER_BYTES, seq=0, time_ms=0)
        self._places_seen = np.empty(0, np.uint32)
        self._new_places: list[NDArray[np.uint32]] = []

    @classmethod
    def open(cls, directory: Directory, uuid: bytes, config: Config) -> ReadonlyDB:
        """Use `ourdb.open(path, readonly=True)`."""
        db = cls(directory, uuid, config)
        try:
            db._load()
        except BaseException:
            db.close()
            raise
        return db

    # -- following the writer ---------------------------------------------------------------------

    def _load(self) -> None:
        """Everything, from the list of files on."""

        directory = self._directory
        for attempt in range(_TRIES):
            files = directory.load_list()
            try:
                lookup, covered = self._load_lookup(files)
                self._use_lookup(lookup)
                self._use_files(files, files.active.first_seq - 1)
                break
            except FileNotFoundError as error:
                if attempt == _TRIES - 1:
                    raise file_missing(error) from error
        entry = self._list.active
        cached = cached_places(directory, entry)
        self._follow(covered, usable_places(cached, entry.first_seq, directory.load_trust()))
        self._refuse_damage()

    def _load_lookup(self, files: FileList) -> tuple[Lookup, int]:
        """The table of the sealed files, in memory, from whatever cache there is; and what that covers."""
        from ourdb.opening import load_table, put_sealed

        directory, notes = self._directory, self.notes
        if directory.load_lookup_kind() == "disk":
            try:
                copy = copy_lookup(directory, files, self.uuid, self.config.record_nr_max)
                if copy is not None:
                    put_sealed(directory, files, self.uuid, *copy)
                    return copy
            except TableDamage as damage:
                if directory.load_list() != files:  # it was about another list
                    raise FileNotFoundError(errno.ENOENT, str(damage), str(directory.cache)) from damage
                notes.append(f"the lookup table on disk is not usable ({damage})")
        return load_table(directory, files, self.uuid, self.config, notes)

    def _use_files(self, files: FileList, known: int) -> None:
        """Take a list of files, and into the table what its sealed ones have beyond `known`: before any of it
        is shown, as other threads read beside. FileNotFoundError, and nothing is changed, if one is gone."""
        from ourdb.opening import before_time

        active = self._directory.fs.open(self._directory.data_path(files.active))
        check_header(active, files, self.uuid)
        for entry in files.sealed:
            if entry.last_seq > known:
                for columns in SealedFile(self._directory, entry, self.uuid).columns(first_seq=known + 1):
                    new = columns[int(np.searchsorted(columns.seq, np.uint64(known), "right")) :]
                    self._lookup.put_many(new.id, new.seq, alive_of(new))
        self._use_lookup(self._lookup)
        self.replace_files(files)
        first = files.active.first_seq
        self._open_file = active  # the one before is closed when no thread reads it any more
        self._end = Point(offset=HEADER_BYTES, seq=first - 1, time_ms=before_time(files))
        self._places_seen, self._new_places = np.empty(0, np.uint32), []
        self._seq, self._time = first - 1, self._end.time_ms
        self._show()

    def _show(self) -> None:
        """Publish what was read: the mapping reaches to the end of the file, and is touched up to `_end`."""
        file = self._open_file
        if file is None:
            raise UnusableError(f"the database is closed: {self._directory.path}")
        places = self._places_seen.data
        self._active = (self._list.active.first_seq, file.map(self._end.offset), places)

    def _follow(self, applied_seq: int = 0, cached: NDArray[np.int64] = _NO_PLACES) -> bool:
        """Take in what was appended to the active file; whether there was anything. Under the lock.

        applied_seq: up to there the lookup table has it already. cached: places that need no second look.
        """
        file = self._open_file
        if file is None:
            raise UnusableError(f"the database is closed: {self._directory.path}")
        for columns, places, end in skim_file(file, cached, self._end, self.config):
            self._take(columns, places, end, applied_seq)
        for columns, places, end in follow_file(file, self._end, self.config):
            self._take(columns, places, end, applied_seq)
        if not self._new_places:
            return False
        self._places_seen = np.concatenate([self._places_seen, *self._new_places])
        self._new_places = []
        self._show()
        self._use_lookup(self._lookup)
        self._seq, self._time = self._end.seq, self._end.time_ms
        return True

    def _take(self, columns: Columns, places: NDArray[np.int64], end: Point, applied_seq: int) -> None:
        new = columns[int(np.searchsorted(columns.seq, np.uint64(applied_seq), "right")) :]
        self._lookup.put_many(new.id, new.seq, alive_of(new))
        self._new_places.append(places.astype(np.uint32))
        self._end = end

    def refresh(self) -> None:
        """Take in what the writer has written since. Each read does it by itself."""
        file = self._open_file
        if file is None:
            raise UnusableError(f"the database is closed: {self._directory.path}")
        if not any(file.pread(36, self._end.offset)):
            return
        with self._lock:
            for _ in range(_TRIES):
                if self._follow():
                    continue
                if not self._follow_rotation():
                    return

    def _follow_rotation(self) -> bool:
        """Whether the active file was sealed, and the next one taken up. Records that were written to it
        between our last look and its sealing are in its index."""
        files = self._directory.load_list()
        if files.active == self._list.active:
            return False
        with contextlib.suppress(FileNotFoundError):  # condensed meanwhile: the next round sees
            self._use_files(files, self._seq)
        return True

    def _refuse_damage(self) -> None:
        """Where the log ends before what is known to be durable it is damaged. A writer may be at work, so
        that what lies behind the end is not judged."""
        durable_seq = self._directory.load_trust().durable_seq
        if self._end.seq < durable_seq:
            self.refresh()
        if self._end.seq < durable_seq:
            raise DamageError(
                f"no valid record {self._end.seq + 1} in {self._active_name()} at offset {self._end.offset}, "
                f"but the log was durable up to {durable_seq}",
                file=self._active_name(),
                offset=self._end.offset,
                seq=self._end.seq + 1,
            )

    def _load_record(self, seq: int) -> Any:
        """As the writer's; a file that is gone was condensed away: the new list is taken, a bounded number of
        times."""
        for _ in range(_TRIES):
            try:
                return super()._load_record(seq)
            except DamageError as error:
                if not isinstance(error.__cause__, FileNotFoundError) or not self._reload():
                    raise
        return super()._load_record(seq)

    def _reload(self) -> bool:
        """Whether there is another list of files than the one that is used. Under the lock."""
        files = self._directory.load_list()
        if files == self._list:
            return False
        if files.active == self._list.active:
            self.replace_files(files)
        else:
            with contextlib.suppress(FileNotFoundError):
                self._use_files(files, self._seq)
        return True

    def _look_again(self) -> None:
        with self._lock:
            self._reload()

    # -- reads ------------------------------------------------------------------------------------

    def get(self, id: int, default: Any = None, *, at: When | None = None, seq: int | None = None) -> Any:
        self.refresh()
        return super().get(id, default, at=at, seq=seq)

    def get_many(self, ids: Iterable[int], default: Any = None) -> list[Any]:
        self.refresh()
        return super().get_many(ids, default)

    def get_history(self, id: int, depth: int | None = None) -> list[Any]:
        self.refresh()
        return super().get_history(id, depth)

    def items(self, order: Order = "id", *, at: When | None = None, seq: int | None = None) -> Items:
        self.refresh()
        return super().items(order, at=at, seq=seq)

    def resolve(self, *, at: When | None = None, seq: int | None = None) -> int:
        self.refresh()
        return super().resolve(at=at, seq=seq)

    def __contains__(self, id: object) -> bool:
        self.refresh()
        return super().__contains__(id)

    def __len__(self) -> int:
        self.refresh()
        return super().__len__()

    def __iter__(self) -> Iterator[int]:
        self.refresh()
        return super().__iter__()

    @property
    def last_seq(self) -> int:
        self.refresh()
        return self._seq

    @property
    def last_time(self) -> int:
        self.refresh()
        return self._time

    @property
    def active_bytes(self) -> int:
        return self._end.offset

    # -- what a reader has not --------------------------------------------------------------------

    def _require_open(self) -> None:
        if self._open_file is None:
            raise UnusableError(f"the database is closed: {self._directory.path}")

    def _require_writable(self) -> None:
        self._require_open()
        raise InvalidError(f"opened readonly: {self._directory.path}")

    def forget(self, store: str) -> None:
        self._require_writable()

    def destroy(self) -> None:
        self._require_writable()

    def get_next_id(self) -> int:
        self.refresh()
        if not self._incremental:
            return super().get_next_id()
        return (self._lookup.highest or 0) + 1

    def close(self) -> None:
        """Let the files go. Closing twice is no error."""
        with self._lock:
            if self._open_file is not None:
                self._open_file.close()
            self._open_file = None
            self._closed()
