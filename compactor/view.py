"""A head as a run knows it, with the lists that it names. Nothing of them is decoded before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from compactor.entries import SegmentEntry, made_of
from compactor.head import Head
from compactor.lists import StoredList


@dataclass(frozen=True, kw_only=True)
class View:
    """etag: what the next head is put on. written_ms: when the head was written, read_ms: when it was read,
    both by the store's clock; a reader may use what it names for a grace time from read_ms on.
    acknowledged: it is known to be kept, because a put of ours wrote it, or a later head says so; one that
    was only read may vanish again. data: the head's bytes. stored: every list it names, by key."""

    head: Head
    etag: str
    written_ms: int
    read_ms: int
    acknowledged: bool
    data: bytes
    stored: Mapping[str, StoredList]

    @cached_property
    def list_names(self) -> frozenset[str]:
        """The keys of its lists of segments."""
        return frozenset(ref.key for ref in self.head.lists)

    @cached_property
    def lists(self) -> Mapping[str, tuple[SegmentEntry, ...]]:
        """The entries of each list of segments. Raises DamageError for a damaged list."""
        return {ref.key: self.stored[ref.key].segments for ref in self.head.lists}

    @cached_property
    def segments(self) -> tuple[SegmentEntry, ...]:
        """Every live segment, sorted by generation, last seq, first seq. Raises DamageError for a damaged
        list."""
        removed = frozenset(self.head.removed)
        found = [entry for entries in self.lists.values() for entry in entries]
        found += self.head.added
        if removed:
            found = [entry for entry in found if entry.key not in removed]
        return tuple(sorted(found, key=lambda entry: entry.order))

    @cached_property
    def gone_keys(self) -> frozenset[str]:
        """Everything that was let go of and is not yet seen to be gone."""
        spilled = (key for ref in self.head.gone_lists for key in self.stored[ref.key].keys)
        return frozenset((*(gone.key for gone in self.head.gone), *spilled))


def may_name(entry: SegmentEntry | str, view: View | None) -> bool:
    """Whether a head that follows this one may name an object (or its key) that was uploaded before this
    one was read (rule 6): it was not let go of, and is not older than what was. Such an object exists, no
    request is needed; any other is uploaded anew under a new name."""
    key = entry if isinstance(entry, str) else entry.key
    made = made_of(key)
    if made is None:
        return False
    if view is None:
        return made == 0
    return made >= view.head.floor and key not in view.gone_keys
