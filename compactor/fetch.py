"""Reading segments of a store: a tail, then the ranges that are asked for; every byte is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from compactor.entries import SegmentEntry
from compactor.store.base import Store, Tail
from ourdb.errors import DamageError
from ourdb.segment.footer import FOOTER_BYTES
from ourdb.segment.reader import TAIL_BYTES, SegmentReader
from ourdb.units import MIB

INDEX_BYTES_MAX = 4 * MIB  # an index up to this comes with the tail, by one request
STORED_BYTES_MAX = 4 * MIB  # of blocks in one request, unless a block is larger


def estimate_requests(entry: SegmentEntry) -> int:
    """How many requests a segment needs that is read from end to end, at least."""
    index = entry.index_bytes + FOOTER_BYTES
    tail = max(TAIL_BYTES, index if index <= INDEX_BYTES_MAX else 0)
    beyond = max(0, index - tail)
    blocks = max(0, entry.bytes - max(tail, index))
    return 1 - (-beyond // INDEX_BYTES_MAX) - (-blocks // STORED_BYTES_MAX)


class SegmentFetcher:
    """Opens the segments that a head names. uuid: of the database, 32 hex digits. on_bytes: is told how many
    bytes came, by the thread that fetched them. For several threads."""

    def __init__(self, store: Store, uuid: str, on_bytes: Callable[[int], None] | None = None) -> None:
        self.store = store
        self._uuid = bytes.fromhex(uuid)
        self._on_bytes = on_bytes

    def read(self, entry: SegmentEntry, offset: int, length: int) -> bytes:
        """These bytes by one request. Raises NoSuchKey, and DamageError for an object that is shorter."""
        data = self.store.get_range(entry.key, offset, length)
        self._count(len(data))
        return data

    def read_tail(self, entry: SegmentEntry) -> bytes:
        """As `read_end`, the bytes alone."""
        return self.read_end(entry).data

    def read_end(self, entry: SegmentEntry) -> Tail:
        """The last bytes by one request: the whole index with the footer, where it is not too large.

        Raises NoSuchKey; DamageError (`store_damaged`) if the object has not the size that it should have.
        """
        with_index = min(entry.index_bytes, entry.bytes) + FOOTER_BYTES
        tail = self.store.get_tail(
            entry.key, max(TAIL_BYTES, with_index if with_index <= INDEX_BYTES_MAX else 0)
        )
        self._count(len(tail.data))
        if tail.size != entry.bytes:
            raise DamageError(
                f"object has {tail.size} bytes, not {entry.bytes}: {entry.key}",
                kind="store_damaged",
                key=entry.key,
                bytes=tail.size,
            )
        return tail

    def open(
        self,
        entry: SegmentEntry,
        *,
        tail: bytes | None = None,
        fetch: Callable[[int, int], bytes] | None = None,
    ) -> SegmentReader:
        """A reader that is proven to be of this entry. tail: its last bytes, if they were read before.
        fetch: reads bytes of it, else each range is a request of its own.

        Raises NoSuchKey; DamageError (`store_damaged`, with `key`) for anything else that is not right.
        """
        reader = SegmentReader(
            entry.bytes,
            fetch or (lambda offset, length: self.read(entry, offset, length)),
            tail=self.read_tail(entry) if tail is None else tail,
            expect_name=entry.file_name,
            expect_uuid=self._uuid,
            where=entry.key,
            in_store=True,
        )
        said = [(run.first_seq, run.last_seq) for run in entry.exact_runs]
        if said != [(run.first_seq, run.last_seq) for run in reader.runs]:
            raise DamageError(
                f"the head says other exact runs than the segment itself: {entry.key}",
                kind="store_damaged",
                key=entry.key,
            )
        return reader

    def _count(self, size: int) -> None:
        if self._on_bytes:
            self._on_bytes(size)


def missing_segment(key: str) -> DamageError:
    """The error for an object that was not there although the head, read again, names it."""
    return DamageError(f"the head names a segment that is missing: {key}", kind="store_damaged", key=key)


@contextmanager
def located(entry: SegmentEntry) -> Iterator[None]:
    """Adds to a DamageError in which object, and in which range of seq, it showed."""
    try:
        yield
    except DamageError as error:
        error.fields = {
            "key": entry.key,
            "first_seq": entry.first_seq,
            "last_seq": entry.last_seq,
        } | error.fields
        if error.kind == DamageError.default_kind:
            error.kind = "store_damaged"
        raise
