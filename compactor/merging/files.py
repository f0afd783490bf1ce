"""What a merge writes, as a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from compactor.store.base import CopyRange, Piece, Store
from compactor.store.parts import FETCH_BYTES_MAX, evenly
from ourdb.files import File, FileSystem
from ourdb.segment.reader import SegmentReader


def write_file(path: Path, pieces: Iterable[Piece], store: Store, fs: FileSystem) -> int:
    """A new file of these pieces, durable; returns its size. store: has the ranges. Nothing is left of it
    after an error."""
    fs.make_directory(path.parent)
    place = 0
    with fs.open(path, write=True, create=True, exclusive=True) as file:
        try:
            for piece in pieces:
                for some in evenly(piece, FETCH_BYTES_MAX) if isinstance(piece, CopyRange) else (piece,):
                    data = (
                        store.get_range(some.key, some.start, some.length)
                        if isinstance(some, CopyRange)
                        else some
                    )
                    file.pwrite(data, place)
                    place += len(data)
            file.fsync()
        except BaseException:
            fs.unlink(path)
            raise
    fs.sync_directory(path.parent)
    return place


def open_file(file: File, size: int) -> SegmentReader:
    """A segment in a file."""
    return SegmentReader(size, lambda offset, length: file.pread(length, offset), where=str(file.path))
