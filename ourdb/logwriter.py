"""The log as its one writer has it: the active file and its limits, durability, rotation, the end."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ourdb import rotation
from ourdb.active import RECORD_BYTES_MIN, ActiveFile, area_end
from ourdb.checkpoint import NAME as CHECKPOINT
from ourdb.checkpoint import Covered, write_checkpoint
from ourdb.config import Config, Sync
from ourdb.directory import Directory, FileEntry, FileList, SyncMark
from ourdb.disklookup import DiskLookup
from ourdb.errors import Error, UnusableError
from ourdb.files import File
from ourdb.lookup import Lookup, LookupTable
from ourdb.reading import Reading
from ourdb.sealed import SealedFile
from ourdb.segment.header import HEADER_BYTES
from ourdb.syncing import Syncer
from ourdb.tablekeeper import TableKeeper
from ourdb.units import MIB

if TYPE_CHECKING:
    from ourdb.opening import Recovered

T = TypeVar("T", bound="LogWriter")

_CHECKPOINT_BYTES_MIN, _CHECKPOINT_FACTOR = 64 * MIB, 4


class _Closed:
    """In the place of what a closed handle had: whatever is asked of it, it says so."""

    def _refuse(self, *_: object) -> Any:
        raise UnusableError("the database is closed: open it again", kind="closed")

    __getitem__ = __getattr__ = _refuse


class LogWriter(Reading):
    """What a writing handle has beside what it reads: where the next record goes, and what is durable.

    `_limit` is the one number that a write compares with. Whoever reaches it calls `_make_room`, which knows
    all limits; a closed or poisoned handle has a limit that everything reaches.
    """

    __slots__ = (
        "_always",
        "_before",
        "_checkpoint",
        "_durable",
        "_failure",
        "_file",
        "_first",
        "_keeper",
        "_limit",
        "_list",
        "_lock_file",
        "_logged",
        "_map",
        "_mark",
        "_places",
        "_pos",
        "_sync",
        "_sync_lock",
        "_syncer",
        "_time_held",
    )

    def __init__(
        self, directory: Directory, lock_file: File | None, uuid: bytes, config: Config, sync: Sync
    ) -> None:
        super().__init__(directory, uuid, config)
        self._lock_file = lock_file
        self._sync: Sync = sync
        self._always = sync == "always"
        self._sync_lock = threading.Lock()
        self._failure: Error | None = None
        self._time_held = False
        self._limit = self._pos = self._first = self._durable = 0
        self._logged = 0  # bytes of the log since the last checkpoint
        self._checkpoint = 0  # its size
        self._syncer: Syncer | None = None
        self._mark: SyncMark | None = None
        self._keeper: TableKeeper | None = None  # of a lookup table on disk
        self._before: rotation.Before

    def _adopt(self, found: Recovered) -> None:
        """Begin with what recovery has found."""
        self._list, self._before = found.files, found.before
        if isinstance(found.lookup, DiskLookup):
            self._lock = threading.RLock()  # whoever meets a damaged page mends it, wherever it stands
            self._acquire, self._release = self._lock.acquire, self._lock.release
            self._keeper = TableKeeper(self, found.lookup)
        self._use_lookup(found.lookup)
        self._use_file(found.active)
        self._pos, self._seq, self._time = found.end.offset, found.end.seq, found.end.time_ms
        self._durable = found.durable_seq
        self._mark = SyncMark(self._directory, self._durable)
        self._use_sealed(found.files, {})
        self._logged = sum(e.bytes for e in found.files.sealed if e.last_seq > found.checkpoint_seq)
        if found.checkpoint_seq >= self._first:  # the active file counts from there
            self._logged = -self._places[found.checkpoint_seq - self._first]
        self._set_limit(self._pos)

    # -- where records go ------------------------------------------------------------------------

    def _writing(self) -> _Writing:
        return _Writing(self)

    def _make_room(self, size: int, records: int) -> int:
        """Room for these bytes and records; returns where they go. Slow path of every limit: a closed or
        poisoned handle, a wider lookup table, more space in the file, the next file."""
        self._require_writable()
        if self._keeper and self._table_due():
            self._keeper.sync(background=True)
        if self._seq + records > self._lookup.seq_max:
            self._widen(self._seq + records)
        count = self._seq - self._first + 1
        if self._pos + size > area_end(self.config.file_size, count + records):
            self._rotate()
        if self._pos + size > self._file.size:
            self._file.grow(self._pos + size)
            self._use_file(self._file)
        self._set_limit(self._pos + size)
        return self._pos

    def _widen(self, seq: int) -> None:
        if self._keeper:
            self._keeper.widen(seq)
        elif isinstance(self._lookup, Lookup):
            self._lookup.widen(seq)
        self._use_lookup(self._lookup)

    def _table_due(self) -> bool:
        """Whether the table on disk has to be synced: memory has no room for more of its changes, or opening
        would have to read too much of the log again."""
        crowded = isinstance(self._lookup, DiskLookup) and self._lookup.crowded
        return crowded or self._logged + self._pos >= _CHECKPOINT_BYTES_MIN

    def _set_limit(self, needed: int) -> None:
        """The one number that `set` compares with: whichever limit comes first, if records were as small as
        they can be. It is set anew each time that it is reached."""
        count = self._seq - self._first + 1
        rest = max(0, area_end(self.config.file_size, count) - self._pos)
        in_file = self._pos + rest * RECORD_BYTES_MIN // (RECORD_BYTES_MIN + 16)
        in_table = self._pos + RECORD_BYTES_MIN * (self._lookup.seq_max - self._seq)
        limit = max(needed, min(self._file.size, in_file, in_table))
        self._limit = -1 if self._failure else limit

    def _use_file(self, file: ActiveFile) -> None:
        self._file, self._first = file, file.entry.first_seq
        self._map, self._places = file.map, file.places
        self._active = (self._first, file.map, file.places)

    def _hold_time(self, now: int) -> int:
        """Times never go back: a clock that does is held at the last record's, and that is noted once."""
        if not self._time_held:
            self._time_held = True
            self._note(
                f"the clock is {self._time - now} ms before the last record: its time is used until then"
            )
        return self._time

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self._directory.note(text)

    def _settle(self, error: BaseException) -> None:
        """After an exception inside a write: nothing was written if it is one of ours; else (an interrupt)
        nobody knows how far it came, and only recovery can tell."""
        if not isinstance(error, Error):
            self._poison(UnusableError(f"a write was interrupted ({type(error).__name__})", kind="poisoned"))

    def _poison(self, error: Error) -> None:
        self._failure = self._failure or error
        self._limit = -1
        if self._mark:
            self._mark.distrust()

    def _require_open(self) -> None:
        if self._lock_file is None:
            raise UnusableError(f"the database is closed: {self._directory.path}", kind="closed")

    def _require_writable(self) -> None:
        self._require_open()
        if self._failure is not None:
            raise UnusableError(
                f"an earlier write or sync failed: {self._failure} (close the database and open it again)",
                kind="poisoned",
            ) from self._failure

    # -- durability, rotation ----------------------------------------------------------------------

    def sync(self) -> None:
        """Make durable what was written so far: it survives a power cut. After an error the database refuses
        writes until it is opened again."""
        self._require_writable()
        self._sync_to(self._seq)

    def _sync_to(self, seq: int) -> None:
        with self._sync_lock:  # one sync for all who wait here
            if self._durable >= seq:
                return
            self._require_writable()
            target, file = self._seq, self._file  # in this order: what another file holds is durable
            try:
                file.file.fdatasync()
                self._set_durable(target)
            except Error as error:
                self._poison(error)
                raise

    def _set_durable(self, seq: int) -> None:
        self._durable = max(self._durable, seq)
        if self._mark:
            self._mark.write(self._durable)

    def rotate(self) -> None:
        """Seal the active file, durably, and begin the next one. Nothing happens if it has no record."""
        with self._writing():
            if self._seq >= self._first:
                self._rotate()

    def _rotate(self) -> None:
        """Under the lock."""
        with self._sync_lock:
            try:
                sealed = rotation.rotate(
                    self._directory,
                    self._list,
                    self._file,
                    self._before,
                    uuid=self.uuid,
                    config=self.config,
                    last_seq=self._seq,
                    end=self._pos,
                )
            except rotation.NothingChanged as refused:
                raise refused.error from refused
            except BaseException as error:
                self._poison(error if isinstance(error, Error) else UnusableError("rotation was interrupted"))
                raise
            self._logged += self._pos
            self._list, self._before = sealed.files, sealed.before
            self._add_sealed(sealed.entry)
            self._pos = HEADER_BYTES
            self._use_file(sealed.active)
            self._set_durable(self._seq)
        if self._logged >= max(_CHECKPOINT_BYTES_MIN, _CHECKPOINT_FACTOR * self._checkpoint):
            if self._keeper:
                self._keeper.sync(background=True)
            self._write_checkpoint(sealed.entry.file_id)
        self._set_limit(self._pos)

    def _write_checkpoint(self, file_id: int) -> None:
        """The records that it covers are durable. A cache: where there is no room, there is none."""
        if not isinstance(self._lookup, Lookup):
            return
        try:
            covered = Covered(seq=self._seq, file_id=file_id)
            self._checkpoint = write_checkpoint(self._directory, self._lookup, self.uuid, covered)
            self._logged = 0
        except (Error, FileNotFoundError) as error:
            self.notes.append(f"no checkpoint was written: {error}")

    def commit_files(self, files: FileList) -> None:
        """Condensing has made new files, which are durable: they count when this returns. Under the lock."""
        try:
            self._directory.replace_list(files)
        except BaseException as error:
            self._poison(error if isinstance(error, Error) else UnusableError("condensing was interrupted"))
            raise

    def drop_checkpoint(self) -> None:
        """The file that it ends in is about to be condensed away: another is written when one is due. A table
        on disk is to name a file that stays."""
        if self._keeper:
            self._keeper.bind()
            return
        self._directory.fs.unlink(self._directory.cache / CHECKPOINT)
        self._checkpoint = 0
        self._logged = sum(entry.bytes for entry in self._list.sealed)

    def replace_files(self, files: FileList) -> None:
        """Use the files of another list. Under the lock."""
        kept = {file.entry: file for file in self._files[1]}
        self._list = files
        self._use_sealed(files, kept)
        self._mapped = [file for file in self._files[1] if file.opened]

    def _use_sealed(self, files: FileList, kept: Mapping[FileEntry, SealedFile]) -> None:
        """Publish the sealed files of a list, all at once: other threads read beside."""
        found = [kept.get(entry) or SealedFile(self._directory, entry, self.uuid) for entry in files.sealed]
        self._files = ([entry.first_seq for entry in files.sealed], found)

    def _add_sealed(self, entry: FileEntry) -> None:
        firsts, files = self._files
        file = SealedFile(self._directory, entry, self.uuid)
        self._files = ([*firsts, entry.first_seq], [*files, file])

    def _active_name(self) -> str:
        return self._list.active.name

    @property
    def active_bytes(self) -> int:
        """Bytes of header and records in the active file."""
        return self._pos

    # -- the end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the lock back. Durable when it returns, unless sync is "never". Closing twice is no error."""
        if self._syncer:
            self._syncer.stop()
        with self._lock:
            if self._lock_file is None:
                return
            try:
                self._finish()
            finally:
                self._let_go()

    def _finish(self) -> None:
        """Sync what is left, and a checkpoint if reading the log again would take long."""
        if self._failure is not None:
            return
        logged = self._logged + self._pos
        wanted = logged >= max(_CHECKPOINT_BYTES_MIN, _CHECKPOINT_FACTOR * self._checkpoint)
        if self._sync != "never" or wanted:
            self._sync_to(self._seq)
        if wanted and self._seq and self._keeper:
            self._keeper.sync(background=False)
        elif wanted and self._seq:
            active = self._seq >= self._first
            self._write_checkpoint((self._list.files[-1] if active else self._list.files[-2]).file_id)

    def _let_go(self) -> None:
        self._limit = -1
        if self._mark:
            self._mark.close()
        self._file.close()
        if isinstance(self._lookup, LookupTable):
            self._lookup.close()
        self._closed()
        if self._lock_file:
            self._lock_file.close()
        self._lock_file = None

    def _closed(self) -> None:
        """Let go of tables and mappings."""
        closed: Any = _Closed()
        self._live = self._lookup = self._map = self._places = closed
        self._files, self._mapped = ([], []), []
        self._active = (0, closed, closed)

    @property
    def path(self) -> str:
        """The directory."""
        return str(self._directory.path)

    def __enter__(self: T) -> T:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()


class _Writing:
    """The writer's lock for all but `set`: what goes wrong inside, and is not ours, poisons the handle."""

    __slots__ = ("_writer",)

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer

    def __enter__(self) -> None:
        self._writer._lock.acquire()
        try:
            self._writer._require_writable()
        except BaseException:
            self._writer._lock.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self._writer._settle(error)
        finally:
            self._writer._lock.release()
