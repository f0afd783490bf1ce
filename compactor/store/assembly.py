"""Putting an object together where no S3 is: counted as if it were."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain

from compactor.store.base import CopyRange, Piece, StoreOptions
from compactor.store.parts import FETCH_BYTES_MAX, Gathered, PartSizes, PartStream, evenly, opening
from compactor.store.requests import RequestCounter


def assemble_here(
    pieces: Iterable[Piece],
    size_hint: int,
    options: StoreOptions,
    requests: RequestCounter,
    *,
    begin: Callable[[], None],
    append: Callable[[Piece], None],
) -> None:
    """Appends the pieces one after the other. begin: is called before the first if it were several parts."""
    parts = PartStream(PartSizes.of(size_hint, options.part_bytes)).parts(pieces)
    whole, first = opening(parts, options.put_bytes_max)
    if whole is not None:
        _append_gathered(whole, requests, append)
        return
    requests.add("POST")
    begin()
    for part in chain(first, parts):
        if isinstance(part, CopyRange):
            requests.add("COPY")
            append(part)
            requests.add_copied(part.length)
        else:
            _append_gathered(part, requests, append)
    requests.add("POST")


def _append_gathered(part: Gathered, requests: RequestCounter, append: Callable[[Piece], None]) -> None:
    for piece in part:
        if not isinstance(piece, CopyRange):
            append(piece)
            continue
        for fetched in evenly(piece, FETCH_BYTES_MAX):
            requests.add("GET")
            append(fetched)
            requests.add_fetched(fetched.length)
    requests.add("PUT")
