"""Uploads that killed runs have left: which of them this run may name (protocol rule 6)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from compactor.head import SegmentEntry
from compactor.store import NoSuchKey, Store
from compactor.view import View, may_name
from ourdb.errors import DamageError
from ourdb.line import Upload
from ourdb.names import SegmentKey, SegmentName, parse_key
from ourdb.segment.reader import TAIL_BYTES, SegmentReader
from ourdb.segment.summary import Summary

ChainAt = Callable[[int], int | None]


def is_ours(name: SegmentName, after: int, end: int, chain_at: ChainAt) -> bool:
    """Whether a segment of our generation lies in (after, end] of our log and has our chain at both ends."""
    if not after < name.first_seq <= name.last_seq <= end:
        return False
    before = name.first_seq - 1
    ours = (chain_at(before) if before else 0), chain_at(name.last_seq)
    return None not in ours and ours == (name.chain_before, name.chain_after)


def find_left(
    uploads: Collection[Upload],
    store: Store,
    uuid: bytes,
    *,
    view: View | None,
    generation: str,
    after: int,
    end: int,
    chain_at: ChainAt,
    same_range: Callable[[SegmentName], Summary | None],
) -> Iterator[SegmentEntry]:
    """The entries of noted uploads that may be named on this head and are ours; one request for each.

    uploads: those whose put was acknowledged. same_range: what our log has of the very range of a segment as
    one piece, if it has: only such a segment may be inexact.
    """
    for upload in uploads:
        key = parse_key(upload.key)
        if (
            upload.store == store.url.identity
            and isinstance(key, SegmentKey)
            and key.generation == generation
            and may_name(upload.key, view)
            and is_ours(key.name, after, end, chain_at)
        ):
            entry = _entry(upload, key, store, uuid)
            if entry and (entry.summary().exact or entry.summary().runs == _runs(same_range(key.name))):
                yield entry


def _runs(summary: Summary | None) -> object:
    return summary.runs if summary else None


def _entry(upload: Upload, key: SegmentKey, store: Store, uuid: bytes) -> SegmentEntry | None:
    """The entry of an upload if footer and size are right; else it is uploaded anew."""
    name = key.name.format()
    try:
        tail, size, _ = store.get_tail(upload.key, TAIL_BYTES)
        reader = SegmentReader(
            size,
            lambda offset, length: store.get_range(upload.key, offset, length),
            tail=tail,
            expect_name=name,
            expect_uuid=uuid,
            where=upload.key,
            in_store=True,
        )
    except (NoSuchKey, DamageError):
        return None
    if size != upload.bytes:
        return None
    return SegmentEntry.of(
        key.generation, key.name, reader.summary, size=size, index_bytes=reader.footer.index_bytes
    )
