"""What a head has let go of: since when, what leaves once it is absent, and what is added. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from compactor import lists
from compactor.entries import Gone, GoneList, made_of
from compactor.head import Head
from compactor.lists import Shelf
from compactor.view import View

GONE_INLINE_MAX = 200  # what a head keeps of `gone` itself; more goes into a list


def fill_since(view: View | None) -> tuple[list[Gone], list[GoneList]]:
    """What the head before had let go of when it was written is gone since then."""
    if view is None:
        return [], []
    when, head = view.written_ms, view.head
    return (
        [gone if gone.since is not None else replace(gone, since=when) for gone in head.gone],
        [ref if ref.since is not None else replace(ref, since=when) for ref in head.gone_lists],
    )


def without_absent(
    head: Head, before: tuple[list[Gone], list[GoneList]], left: frozenset[str], view: View | None
) -> tuple[Head, tuple[list[Gone], list[GoneList]], list[str]]:
    """The head, and what it has let go of, without what was seen to be absent; and the lists that say nothing
    else any more. A list leaves whole; what of it is absent stays named until all is."""
    if not left or view is None:
        return head, before, []
    inline, refs = before
    emptied = [ref for ref in refs if left.issuperset(view.stored[ref.key].keys)]
    leaving = {gone.key for gone in inline} & left
    leaving.update(key for ref in emptied for key in view.stored[ref.key].keys)
    floor = max((made + 1 for key in leaving if (made := made_of(key)) is not None), default=0)
    kept = [gone for gone in inline if gone.key not in left], [ref for ref in refs if ref not in emptied]
    return replace(head, floor=max(head.floor, floor)), kept, [ref.key for ref in emptied]


def with_gone(
    head: Head, before: tuple[list[Gone], list[GoneList]], keys: Iterable[str], shelf: Shelf
) -> Head:
    """The head that also lets go of these keys. Long stretches go into lists: what this head lets go of
    into one of its own, and older entries under the latest of their times, which only delays a delete."""
    inline, refs = before
    new = list(dict.fromkeys(keys))
    if len(new) > GONE_INLINE_MAX:
        refs = [*refs, *(shelf.put_gone(piece, None) for piece in lists.cut(new, lists.GONE_MAX))]
        new = []
    plain = [gone for gone in inline if not gone.extra]
    if len(plain) + len(new) > GONE_INLINE_MAX and plain:
        latest = max(gone.since or 0 for gone in plain)
        refs = [*refs, shelf.put_gone([gone.key for gone in plain], latest)]
        inline = [gone for gone in inline if gone.extra]
    return replace(head, gone=(*inline, *(Gone(key) for key in new)), gone_lists=tuple(refs))
