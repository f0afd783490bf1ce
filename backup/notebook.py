"""What a run notes in the database directory as it goes, so that whoever comes after a kill knows it.

Every note is durable when the method returns. Several runs of one directory may note at the same time.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from compactor.head import Known as HeadKnown
from compactor.store import Store
from compactor.view import View, may_name
from ourdb import line
from ourdb.directory import IDENTITY
from ourdb.files import FileSystem
from ourdb.line import Line, Mark, Multipart, Upload
from ourdb.names import SegmentKey, parse_key


class Notebook:
    """The notes of a directory about one store. path: of the directory. Threads may share it."""

    def __init__(self, path: Path, store: Store, *, fs: FileSystem | None = None) -> None:
        self._path, self._store, self._fs = path, store, fs or FileSystem()

    @property
    def identity(self) -> str:
        return self._store.url.identity

    def read(self) -> Line:
        """The line as it is now; one that was lost is made anew."""
        return line.load(self._path, fs=self._fs) or line.update(self._path, lambda new: new, fs=self._fs)

    def choose(self, seen: Line, chosen: Line) -> Line:
        """Notes how the directory goes on, before anything of that is put; unless a run beside this one has
        chosen first. The line as it is then."""
        return line.update(
            self._path,
            lambda now: chosen if (now.generation, now.start) == (seen.generation, seen.start) else now,
            fs=self._fs,
        )

    def began(self, key: str, upload_id: str) -> None:
        """A multipart upload was begun; no part of it is sent before this is noted."""
        begun = Multipart(store=self.identity, key=key, upload_id=upload_id)
        self._update(lambda now: replace(now, multiparts=(*now.multiparts, begun)))

    def acknowledged(self, key: str, size: int) -> None:
        """The store has the object, whole."""
        upload = Upload(store=self.identity, key=key, bytes=size)
        self._update(
            lambda now: replace(
                now,
                uploads=(*now.uploads, upload),
                multiparts=tuple(one for one in now.multiparts if not self._is(one, key)),
            )
        )

    def shipped(self, mark: Mark, view: View) -> None:
        """An acknowledged put of ours wrote this head, or built on it: the mark rises, and uploads that it
        names, or that none may name any more, are forgotten."""
        self._update(
            lambda now: line.raise_mark(self._without_old_uploads(now, mark, view), self.identity, mark)
        )

    def learned(self, kept: HeadKnown) -> None:
        """A head that was read says that this one is kept."""
        noted = self.read().known.get(self.identity)
        if kept.revision > (noted.revision if noted else 0):
            known = line.Known(revision=kept.revision, run=kept.run)
            self._update(lambda now: line.raise_known(now, self.identity, known))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around a run. If no other run of the directory is alive, what killed ones began is aborted.

        Runs hold a kernel lock on the identity together; who has it alone knows that all others are dead.
        """
        file = self._path / IDENTITY
        with self._fs.open(file, write=True) as lock:
            if _locked_alone(lock.fd):
                self._abort_left_over()
            self._fs.call("lock", file, fcntl.flock, lock.fd, fcntl.LOCK_SH)
            yield

    def _abort_left_over(self) -> None:
        left = [one for one in self.read().multiparts if one.store == self.identity]
        for one in left:
            self._store.abort_upload(one.key, one.upload_id)
        if left:
            self._update(
                lambda now: replace(now, multiparts=tuple(one for one in now.multiparts if one not in left))
            )

    def _without_old_uploads(self, now: Line, mark: Mark, view: View) -> Line:
        def waits(upload: Upload) -> bool:
            if upload.store != self.identity:
                return True
            key = parse_key(upload.key)
            return (
                isinstance(key, SegmentKey)
                and key.generation == mark.generation
                and key.name.first_seq > mark.seq
                and may_name(upload.key, view)
            )

        return replace(now, uploads=tuple(filter(waits, now.uploads)))

    def _is(self, multipart: Multipart, key: str) -> bool:
        return multipart.store == self.identity and multipart.key == key

    def _update(self, change: line.Change) -> None:
        line.update(self._path, change, fs=self._fs)


def _locked_alone(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
