"""The database directory: its files, who it is, and the list that says which data files count.

```
ourdb.json     format version, uuid, configuration: written once, last; it makes a directory a database
files.json     the list of data files, replaced whole: the commit point of rotation and condensing
{nr}.db        data files; all but the last one in the list are sealed
settings.json  what may be changed later: where the lookup table is held; none: in memory
line.json      which line of the store this directory is on (ourdb/line.py)
lock           the writer's lock       notes.log   what recovery noted, one line each
cache/         may go at any time      torn/       bytes that recovery dropped
```
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from struct import Struct
from typing import Any, get_args

from crc32c import crc32c

from ourdb import line, sealedjson
from ourdb.config import Config, LookupKind
from ourdb.errors import DamageError, Error, InvalidError, LockedError, NotFoundError, UnknownFormatError
from ourdb.files import File, FileSystem
from ourdb.names import FILE_NR_MAX, data_file_name, parse_data_file_name
from ourdb.units import format_time, now_ms

FORMAT_VERSION = 1
IDENTITY, FILES, LOCK, NOTES = "ourdb.json", "files.json", "lock", "notes.log"
SETTINGS = "settings.json"
CACHE, TORN = "cache", "torn"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SYNCED_NAME, _SYNCED = "synced", Struct("<16sQ")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A data file. file_id: random u64. The active file has neither bytes, last_seq, records nor times.

    records: how many are there; fewer than the range has if condensing dropped some. exact: every state
    in the range can be told, so that it is one exact run."""

    nr: int
    file_id: int
    first_seq: int
    sealed: bool = False
    exact: bool = True
    bytes: int = 0
    last_seq: int = 0
    records: int = 0
    first_time: int = 0
    last_time: int = 0

    @property
    def name(self) -> str:
        return data_file_name(self.nr)

    @property
    def dense(self) -> bool:
        """Every record of the range is there (but what they replaced may have been dropped: see `exact`)."""
        return self.records == self.last_seq - self.first_seq + 1

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "file_id": f"{self.file_id:016x}"}


@dataclass(frozen=True, kw_only=True)
class FileList:
    """Data files in order of their ranges, without a gap; the last one is active. next_nr: the number of
    the next file: one is used again only when all 65,536 were."""

    files: tuple[FileEntry, ...]
    next_nr: int

    @property
    def active(self) -> FileEntry:
        return self.files[-1]

    @property
    def sealed(self) -> tuple[FileEntry, ...]:
        return self.files[:-1]

    def free_numbers(self, count: int) -> list[int]:
        """Numbers for this many new files, oldest use first."""
        used = {entry.nr for entry in self.files}
        numbers: list[int] = []
        nr = self.next_nr
        for _ in range(FILE_NR_MAX + 1):
            if len(numbers) == count:
                return numbers
            if nr not in used:
                numbers.append(nr)
            nr = (nr + 1) % (FILE_NR_MAX + 1)
        raise InvalidError(
            f"all {FILE_NR_MAX + 1} data files are in use: condense, or use a larger file_size"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "version": FORMAT_VERSION,
            "next_nr": self.next_nr,
            "files": [entry.as_json() for entry in self.files],
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], path: Path) -> FileList:
        if fields.get("version") != FORMAT_VERSION:
            raise UnknownFormatError(f"unknown version of {path.name}: {fields.get('version')!r}")
        try:
            entries = tuple(
                FileEntry(**{**entry, "file_id": int(entry["file_id"], 16)}) for entry in fields["files"]
            )
            found = cls(files=entries, next_nr=fields["next_nr"])
        except (KeyError, TypeError, ValueError) as error:
            raise DamageError(f"not a list of data files: {path}: {error}", file=path.name) from error
        following = [entry.last_seq + 1 for entry in entries[:-1]]
        sealed = [entry.sealed for entry in entries]
        if following != [entry.first_seq for entry in entries[1:]] or sealed != [True] * (len(sealed) - 1) + [
            False
        ]:
            raise DamageError(f"data files do not follow one another: {path}", file=path.name)
        return found


@dataclass(frozen=True, kw_only=True)
class Trust:
    """What recovery may rely on. durable_seq: the log was durable up to there. same_boot: the machine was
    not restarted since the last write, so that the page cache has every byte that was written."""

    durable_seq: int
    same_boot: bool


def file_missing(error: FileNotFoundError) -> DamageError:
    """The error for a data file that the list of files names and that is not there."""
    path = Path(error.filename)
    return DamageError(
        f"data file is missing: {path} (restore the database from a backup)", file=path.name, path=str(path)
    )


def boot_id() -> bytes:
    """16 bytes that are new with each start of the machine; zeros if the system does not tell."""
    try:
        return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)


class Directory:
    """Paths and small files of one database directory."""

    def __init__(self, path: Path, fs: FileSystem) -> None:
        self.path, self.fs = path, fs
        self.cache = path / CACHE

    def exists(self) -> bool:
        return (self.path / IDENTITY).is_file()

    def load_identity(self) -> tuple[bytes, Config]:
        """uuid and configuration. NotFoundError unless the directory is a database."""
        path = self.path / IDENTITY
        fields = sealedjson.read(path, fs=self.fs) if self.path.is_dir() else None
        if fields is None:
            what = f"no {IDENTITY} there" if self.path.is_dir() else "no such directory"
            raise NotFoundError(
                f"not a database: {self.path} ({what}; ourdb init makes one)", path=str(self.path)
            )
        if fields.get("version") != FORMAT_VERSION:
            raise UnknownFormatError(f"unknown version of {path}: {fields.get('version')!r}")
        try:
            return bytes.fromhex(fields["uuid"]), Config.from_json(fields["config"])
        except (KeyError, TypeError, InvalidError, ValueError) as error:
            raise DamageError(f"not the identity of a database: {path}: {error}", file=path.name) from error

    def write_identity(self, uuid: bytes, config: Config) -> None:
        """The last step of making a database."""
        fields = {"version": FORMAT_VERSION, "uuid": uuid.hex(), "config": config.as_json()}
        sealedjson.replace(self.path / IDENTITY, fields, fs=self.fs)

    def load_lookup_kind(self) -> LookupKind:
        """Where the lookup table is held."""
        path = self.path / SETTINGS
        try:
            fields = sealedjson.read(path, fs=self.fs)
            kind = "memory" if fields is None else fields.get("lookup")
        except DamageError:
            kind = None
        if kind not in get_args(LookupKind):
            raise DamageError(
                f"not the settings of a database: {path} (open it with lookup=memory or lookup=disk, which "
                "writes them anew)",
                file=path.name,
                path=str(path),
            )
        return kind  # type: ignore[return-value]

    def replace_lookup_kind(self, kind: LookupKind) -> None:
        """Durable when it returns."""
        sealedjson.replace(self.path / SETTINGS, {"version": FORMAT_VERSION, "lookup": kind}, fs=self.fs)

    def load_list(self) -> FileList:
        path = self.path / FILES
        fields = sealedjson.read(path, fs=self.fs)
        if fields is None:
            raise DamageError(f"list of data files is missing: {path}", file=path.name)
        return FileList.from_json(fields, path)

    def replace_list(self, files: FileList) -> None:
        """The commit point of rotation and condensing: durable when it returns."""
        sealedjson.replace(self.path / FILES, files.as_json(), fs=self.fs)

    def lock(self) -> File:
        """The writer's lock; the kernel drops it with the process. LockedError names who has it."""
        path = self.path / LOCK
        file = self.fs.lock(path, wait=False)
        if file is None:
            holder = self.fs.read(path, bytes_max=32).decode("ascii", "replace").strip()
            by = f" (process {holder})" if holder.isdigit() else ""
            raise LockedError(
                f"another process writes this database{by}: {self.path} (open it readonly, or wait)",
                pid=int(holder) if holder.isdigit() else None,
                path=str(self.path),
            )
        return file

    def data_path(self, entry: FileEntry) -> Path:
        return self.path / entry.name

    def places_path(self, entry: FileEntry) -> Path:
        return self.cache / f"{entry.nr}-{entry.file_id:016x}.places"

    def data_files(self) -> list[int]:
        """Numbers of all data files in the directory, in the list or not."""
        numbers = (parse_data_file_name(name) for name in self.fs.names(self.path))
        return sorted(nr for nr in numbers if nr is not None)

    def note(self, text: str, *, now: int | None = None) -> None:
        """One line for people, in notes.log."""
        moment = format_time(now_ms() if now is None else now)
        with self.fs.open(self.path / NOTES, write=True, create=True) as file:
            file.pwrite(f"{moment} {text}\n".encode(), file.size())

    def empty(self) -> None:
        """Remove all that belongs to a database, its identity first: without it there is none. Locks stay."""
        self.fs.unlink(self.path / IDENTITY)
        self.fs.sync_directory(self.path)
        for nr in self.data_files():
            self.fs.unlink(self.path / data_file_name(nr))
        for name in (FILES, NOTES, SETTINGS, line.FILE_NAME):
            self.fs.unlink(self.path / name)
            self.fs.unlink(self.path / f"{name}.tmp")
        self.fs.unlink(self.path / f"{IDENTITY}.tmp")
        for folder in (self.cache, self.path / TORN):
            if folder.is_dir():
                for name in self.fs.names(folder):
                    self.fs.unlink(folder / name)
                self.fs.remove_directory(folder)
        self.fs.sync_directory(self.path)

    def destroy(self) -> None:
        """Remove the database, and its directory unless something foreign is in it."""
        self.empty()
        for name in (LOCK, line.LOCK_NAME):
            self.fs.unlink(self.path / name)
        if not self.fs.names(self.path):
            self.fs.remove_directory(self.path)

    def load_trust(self, checkpoint_seq: int = 0) -> Trust:
        """From the sync mark, the shipped marks and the checkpoint (or table on disk): whatever of them is
        there."""
        durable, boot = checkpoint_seq, b""
        try:
            data = self.fs.read(self.cache / _SYNCED_NAME, bytes_max=_SYNCED.size + 4)
        except FileNotFoundError:
            data = b""
        body = data[: _SYNCED.size]
        if len(data) == _SYNCED.size + 4 and crc32c(body) == int.from_bytes(data[_SYNCED.size :], "little"):
            boot, synced = _SYNCED.unpack(body)
            durable = max(durable, synced)
        known = line.load(self.path, fs=self.fs)
        shipped = [mark.seq for mark in known.marks.values()] if known else []
        same = boot == boot_id() and any(boot)
        return Trust(durable_seq=max([durable, *shipped]), same_boot=same)


class SyncMark:
    """`cache/synced`: this boot, and up to which seq the log is durable. Written after each sync, and not
    synced itself: an old one says less, a torn one nothing. A cache: where it cannot be written there is
    none, and recovery reads more, no less."""

    def __init__(self, directory: Directory, seq: int) -> None:
        self._fs, self._path = directory.fs, directory.cache / _SYNCED_NAME
        self._boot, self._seq = boot_id(), seq
        self._file: File | None = None
        try:
            self._file = self._fs.open(self._path, write=True, create=True)
        except (Error, FileNotFoundError):
            self._give_up()
        self.write(seq)

    def write(self, seq: int) -> None:
        self._seq = seq
        body = _SYNCED.pack(self._boot, seq)
        if self._file:
            try:
                self._file.pwrite(body + crc32c(body).to_bytes(4, "little"), 0)
            except Error:
                self._give_up()

    def distrust(self) -> None:
        """After a failed sync the page cache has bytes that never reach the disk, and the system takes them
        for clean: recovery is to do as if the machine had been started anew."""
        self._boot = bytes(16)
        self.write(self._seq)

    def _give_up(self) -> None:
        self.close()
        with suppress(Error):
            self._fs.unlink(self._path)

    def close(self) -> None:
        if self._file:
            self._file.close()
        self._file = None


def random_u64() -> int:
    """Not 0, so that 0 may mean none."""
    return secrets.randbelow(2**64 - 1) + 1
