"""The line that a database directory is on, and what it knows of its stores: `line.json`.

It says which generation the directory writes, where a restored copy left its parent, and for each
store the shipped mark and the uploads whose acknowledgement is noted. Backup runs replace it under
the kernel lock `line.lock`; the writer of the database never touches it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ourdb import sealedjson
from ourdb.errors import DamageError, InvalidError, UnknownFormatError
from ourdb.files import FileSystem

Start = Literal["first", "plain", "take-over", "fork", "new"]

FILE_NAME, LOCK_NAME = "line.json", "line.lock"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Up to where a store is known to hold our log: put, or built on, by an acknowledged put of ours.

    url: as people read it. revision, run: of the head that this put wrote.
    """

    url: str
    generation: str
    seq: int
    chain: int
    revision: int
    run: str


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a restored copy comes from: a point, and the end of the line as it stood at the restore.

    store: its identity. generation: the one that owns `seq`. revision, run: what the head that was read
    named as kept.
    """

    store: str
    generation: str
    seq: int
    chain: int
    end_generation: str
    end_last_seq: int
    end_as_of: int
    revision: int
    run: str


@dataclass(frozen=True, kw_only=True)
class Known:
    """The newest head of a store that is known to be kept: revision, and the run that wrote it."""

    revision: int
    run: str


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A segment whose put the store has acknowledged, and that no head of ours names yet."""

    store: str
    key: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Multipart:
    """A multipart upload that was begun: to be aborted if its run did not live to end it."""

    store: str
    key: str
    upload_id: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """generation: what the directory writes, 16 hex digits. start: how that generation begins in a store
    that does not have it yet. old: the generation before a fork or a new start. marks, known: by the
    identity of the store."""

    generation: str
    start: Start
    old: str | None = None
    origin: Origin | None = None
    marks: Mapping[str, Mark] = field(default_factory=dict)
    known: Mapping[str, Known] = field(default_factory=dict)
    uploads: tuple[Upload, ...] = ()
    multiparts: tuple[Multipart, ...] = ()

    def shipped(self, store: str) -> Mark | None:
        """The mark of this store, if it is of the generation that the directory writes now."""
        mark = self.marks.get(store)
        return mark if mark and mark.generation == self.generation else None

    def as_json(self) -> dict[str, Any]:
        return {"version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Line:
        """Raises KeyError, TypeError or ValueError for what `as_json` never gives."""
        given = dict(fields)
        if given.pop("version") != FORMAT_VERSION:
            raise UnknownFormatError(f"unknown version of {FILE_NAME}: {fields['version']!r}")
        if given["start"] not in get_args(Start):
            raise ValueError(f"unknown start: {given['start']!r}")
        return cls(
            **given
            | {
                "origin": Origin(**given["origin"]) if given["origin"] else None,
                "marks": {store: Mark(**mark) for store, mark in given["marks"].items()},
                "known": {store: Known(**known) for store, known in given["known"].items()},
                "uploads": tuple(Upload(**upload) for upload in given["uploads"]),
                "multiparts": tuple(Multipart(**multipart) for multipart in given["multiparts"]),
            }
        )


Change = Callable[[Line], Line]


def new_generation() -> str:
    """A random generation id: 16 hex digits, not all of them zero."""
    return f"{secrets.randbelow(2**64 - 1) + 1:016x}"


def create(
    path: Path,
    generation: str,
    *,
    origin: Origin | None = None,
    marks: Mapping[str, Mark] | None = None,
    known: Mapping[str, Known] | None = None,
    fs: FileSystem | None = None,
) -> Line:
    """Writes the first line.json of a directory, durably. With an origin it is a restored copy's."""
    line = Line(
        generation=generation,
        start="plain" if origin else "first",
        origin=origin,
        marks=marks or {},
        known=known or {},
    )
    _write(Path(path), line, fs or FileSystem())
    return line


def load(path: Path, *, fs: FileSystem | None = None) -> Line | None:
    """The line of the directory, None if it has none. Raises DamageError."""
    file = Path(path) / FILE_NAME
    fields = sealedjson.read(file, fs=fs or FileSystem())
    if fields is None:
        return None
    try:
        return Line.from_json(fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamageError(f"not the line of a database: {file}: {error}", path=str(file)) from error


def update(path: Path, change: Change, *, fs: FileSystem | None = None) -> Line:
    """Replaces the line by what `change` makes of it, under the lock and durably; nothing is written if
    that is the same. A directory whose line.json was lost gets a new generation: its stores then say
    `fork`, and nothing is overwritten."""
    path, fs = Path(path), fs or FileSystem()
    with fs.locked(path / LOCK_NAME):
        old = load(path, fs=fs)
        new = change(old or Line(generation=new_generation(), start="first"))
        if new != old:
            _write(path, new, fs)
    return new


def raise_mark(line: Line, store: str, mark: Mark) -> Line:
    """The line with this mark of the store; a mark of the same generation is never lowered."""
    old = line.shipped(store)
    higher = old if old and (old.seq, old.revision) > (mark.seq, mark.revision) else mark
    return raise_known(
        replace(line, marks={**line.marks, store: higher}),
        store,
        Known(revision=mark.revision, run=mark.run),
    )


def raise_known(line: Line, store: str, known: Known | None) -> Line:
    """The line that knows this head of the store to be kept, if none newer is known."""
    old = line.known.get(store)
    if known is None or (old and old.revision >= known.revision):
        return line
    return replace(line, known={**line.known, store: known})


def forget(line: Line, store: str) -> Line:
    """The line without the shipped mark of this store and its noted uploads, so that condensing need not
    spare them."""
    uploads = tuple(upload for upload in line.uploads if upload.store != store)
    if store not in line.marks and uploads == line.uploads:
        stores = ", ".join(sorted(mark.url for mark in line.marks.values())) or "none"
        raise InvalidError(f"nothing was shipped to this store from here: {store} (known: {stores})")
    marks = {name: mark for name, mark in line.marks.items() if name != store}
    return replace(line, marks=marks, uploads=uploads)


def _write(path: Path, line: Line, fs: FileSystem) -> None:
    sealedjson.replace(path / FILE_NAME, line.as_json(), fs=fs)
