"""What can be restored now: windows, the gaps between them, and how far behind a live database they end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compactor.fetch import SegmentFetcher
from compactor.generations import Generation
from compactor.head import Head
from compactor.index_points import IndexPoints
from compactor.lineage import line_of, oldest_first, owners_of
from compactor.session import open_session
from compactor.store import NoSuchKey, StoreOptions
from compactor.windows import Reach, Window, gaps_of, reaches, windows_of
from ourdb import line
from ourdb.errors import DamageError
from ourdb.log import LogReader
from ourdb.units import maybe_time


@dataclass(frozen=True, kw_only=True)
class Behind:
    """records: how many the live database has beyond the store's last seq. seconds: from the store's newest
    record to the database's; 0 if it has none more. diverged: at the store's last seq the two have different
    histories, so that a backup would be refused (`fork`)."""

    records: int
    seconds: float
    diverged: bool


@dataclass(frozen=True, kw_only=True)
class PointsReport:
    """generation: in which the line ends that was asked for, None: nothing was ever written. windows, gaps:
    of each generation on that line, the oldest first; a time is None where an index that would tell it cannot
    be read. last_time, as_of: ms. generations: all there are, likewise."""

    namespace: str
    generation: str | None
    windows: tuple[Window, ...]
    gaps: tuple[Window, ...]
    last_seq: int
    last_time: int | None
    as_of: int | None
    behind: Behind | None
    generations: tuple[Generation, ...]
    requests: Mapping[str, int]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        found = {
            "namespace": self.namespace,
            "generation": self.generation,
            "windows": [_window(window) | {"segments": list(window.segments)} for window in self.windows],
            "gaps": [_window(gap) for gap in self.gaps],
            "last_seq": self.last_seq,
            "last_time": maybe_time(self.last_time),
            "as_of": maybe_time(self.as_of),
            "generations": [_generation(generation) for generation in self.generations],
            "requests": dict(self.requests),
            "notes": list(self.notes),
        }
        if self.behind is None:
            return found
        behind = {"records": self.behind.records, "seconds": self.behind.seconds}
        return found | {"behind": behind, "diverged": self.behind.diverged}


def points(
    url: str,
    *,
    generation: str | None = None,
    db: str | os.PathLike[str] | None = None,
    meta: str | os.PathLike[str] | None = None,
    options: StoreOptions | None = None,
) -> PointsReport:
    """What the store can restore now, from its head alone: one request, and one more for the time where a
    line left another in the middle of a segment.

    generation: the line that ends in this one, needed where two lines are open. db: a live database
    directory, to tell how far behind the store is; nothing is locked or written there. meta: path of the meta
    index, None: the user's own.

    Raises NotFoundError (`no_namespace`, `no_generation`, `no_database`), FencedError (`two_lines`;
    `other_database`: db is not the one of this namespace), DamageError, RefusedError, TemporaryError.
    """
    with open_session(url, meta, options) as session, ExitStack() as stack:
        live = None if db is None else stack.enter_context(LogReader(db))
        view = session.read(uuid=live.uuid.hex() if live else None)
        head, end = view.head, line_of(view.head, generation)
        windows: list[Window] = []
        gaps: list[Window] = []
        index = IndexPoints(SegmentFetcher(session.store, head.uuid))
        for owner, upto in owners_of(head, end).items():
            on_line = head.generations[owner]
            reached = reaches(view, on_line, upto)
            found = [_timed(window, reached, index) for window in windows_of(reached, owner)]
            windows += found
            gaps += gaps_of(on_line, found, upto)
        return PointsReport(
            namespace=head.namespace,
            generation=end.id if end else None,
            windows=tuple(windows),
            gaps=tuple(gaps),
            last_seq=end.end_seq if end else 0,
            last_time=_last_time(end, windows),
            as_of=end.as_of if end else None,
            behind=_behind(live, line.load(Path(db)), head, end) if live and db else None,
            generations=tuple(oldest_first(head)),
            requests=session.store.requests.counts(),
            notes=session.notes,
        )


def _last_time(end: Generation | None, windows: Sequence[Window]) -> int | None:
    if end is None or not end.last_seq:
        return None
    return end.last_time if end.end_seq == end.last_seq else windows[-1].last_time if windows else None


def _behind(live: LogReader, on: line.Line | None, head: Head, end: Generation | None) -> Behind:
    """Measured against the generation that the database writes; if the store has it not, against the line."""
    own, stored = live.find_end(), head.generations.get(on.generation if on else "", end)
    if stored is None or not stored.last_seq:
        return Behind(records=own.seq, seconds=0.0, diverged=False)
    chain = live.chain_at(stored.last_seq)
    records = max(0, own.seq - stored.last_seq)
    seconds = max(0, own.time_ms - stored.last_time) / 1000 if records else 0.0
    return Behind(records=records, seconds=seconds, diverged=chain not in (None, stored.chain))


def _timed(window: Window, reached: Sequence[Reach], index: IndexPoints) -> Window:
    """The window with the time at its end, which the head does not tell in the middle of a segment."""
    if window.last_time is not None:
        return window
    holding = min(
        (reach for reach in reached if reach.last_seq == window.last_seq),
        key=lambda reach: reach.segment.index_bytes,
    )
    try:
        point = index.at(holding, window.last_seq)
    except (DamageError, NoSuchKey):
        return window  # what is damaged or missing is for verify to say
    return replace(window, last_time=point.time) if point else window


def _window(window: Window) -> dict[str, Any]:
    return {
        "generation": window.generation,
        "first_seq": window.first_seq,
        "last_seq": window.last_seq,
        "first_time": maybe_time(window.first_time),
        "last_time": maybe_time(window.last_time),
    }


def _generation(generation: Generation) -> dict[str, Any]:
    return {
        "generation": generation.id,
        "parent": generation.parent.generation if generation.parent else None,
        "left_at_seq": generation.parent.seq if generation.parent else None,
        "last_seq": generation.last_seq,
        "kept_to": generation.kept_to,
        "last_time": maybe_time(generation.last_time if generation.last_seq else None),
        "as_of": maybe_time(generation.as_of),
        "successor": generation.successor,
    }
