"""What the meta index holds of a monitored namespace, as of its last sync: no store is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from compactor.entries import SegmentEntry
from compactor.meta.index import MetaIndex
from compactor.monitor import MetaPath, lasting_index, not_monitored
from compactor.url import StoreUrl, parse_url
from compactor.view import View
from ourdb.errors import InvalidError, NotFoundError
from ourdb.names import SegmentName
from ourdb.units import format_time


class SegmentRow(NamedTuple):
    """A live segment. Ranges with both ends, times in ms; level: 0 if it was never merged."""

    key: str
    generation: str
    first_seq: int
    last_seq: int
    first_time: int
    last_time: int
    level: int
    records: int
    bytes: int
    index_bytes: int


class SegmentRange(NamedTuple):
    """From the least to the greatest of some segments, with what may be missing between; times in ms."""

    first_seq: int
    last_seq: int
    first_time: int
    last_time: int
    segments: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class SegmentInfo:
    """All that head or list say of a segment. listed_in: the key of the list, None: the head itself."""

    entry: SegmentEntry
    listed_in: str | None

    def as_json(self) -> dict[str, Any]:
        entry, summary = self.entry, self.entry.summary()
        return {
            "key": entry.key,
            "generation": entry.generation,
            "first_seq": summary.first_seq,
            "last_seq": summary.last_seq,
            "first_time": format_time(summary.first_time),
            "last_time": format_time(summary.last_time),
            "exact_runs": [{"first_seq": run.first_seq, "last_seq": run.last_seq} for run in summary.runs],
            "level": summary.level,
            "records": summary.records,
            "bytes": entry.bytes,
            "index_bytes": entry.index_bytes,
            "highest_id": summary.highest_id,
            "chain_before": summary.chain_before,
            "chain_after": summary.chain_after,
            "part": summary.stretch.part if summary.stretch else None,
            "parts": summary.stretch.parts if summary.stretch else None,
            "made": entry.made,
            "listed_in": self.listed_in,
        }


_SEGMENTS = """
    from segments join namespaces n on n.id = segments.namespace
    where n.identity = ? and (? is null or generation = ?)
"""


def list_all_segments(url: str, *, generation: str | None = None, meta: MetaPath = None) -> list[SegmentRow]:
    """The live segments of a namespace, or of one of its generations, by first seq, last seq, generation.

    Raises NotFoundError (`not_monitored`; `no_generation`).
    """
    with lasting_index(meta) as index:
        place = _monitored(url, generation, index)
        columns = ", ".join(SegmentRow._fields)
        sql = f"select {columns} {_SEGMENTS} order by first_seq, last_seq, generation, key"
        return [SegmentRow(*row) for row in index.read(sql, place.identity, generation, generation)]


def get_segment_range(
    url: str, *, generation: str | None = None, meta: MetaPath = None
) -> SegmentRange | None:
    """What the live segments of a namespace, or of one generation, reach from and to; None: there are none.

    Raises NotFoundError (`not_monitored`; `no_generation`).
    """
    with lasting_index(meta) as index:
        place = _monitored(url, generation, index)
        sql = (
            "select min(first_seq), max(last_seq), min(first_time), max(last_time), count(*), sum(bytes) "
            f"{_SEGMENTS} having count(*) > 0"
        )
        rows = index.read(sql, place.identity, generation, generation)
        return SegmentRange(*rows[0]) if rows else None


def segment_info(url: str, name: str, *, meta: MetaPath = None) -> SegmentInfo:
    """What head and lists say of one live segment. name: its key, or the last part of it.

    Raises NotFoundError (`not_monitored`; `no_segment`).
    """
    with lasting_index(meta) as index:
        place = _monitored(url, None, index)
        view = index.recall(place.identity, place.namespace)
        found = _find(view, name.rpartition("/")[2]) if view else None
        if found is None or name not in (found.entry.key, found.entry.file_name):
            raise NotFoundError(
                f"no live segment of this name is known (ourdb meta sync): {name}",
                kind="no_segment",
                name=name,
            )
        return found


def _find(view: View, file_name: str) -> SegmentInfo | None:
    """The live segment of this name; only lists that may hold it are decoded."""
    try:
        parsed = SegmentName.parse(file_name)
    except InvalidError:
        return None
    lists = [ref for ref in view.head.lists if ref.first_seq <= parsed.first_seq]
    places = [(ref.key, view.stored[ref.key].segments) for ref in lists if parsed.last_seq <= ref.last_seq]
    for listed_in, entries in [(None, view.head.added), *places]:
        for entry in entries:
            if entry.file_name == file_name and entry.key not in view.head.removed:
                return SegmentInfo(entry=entry, listed_in=listed_in)
    return None


def _monitored(url: str, generation: str | None, index: MetaIndex) -> StoreUrl:
    place = parse_url(url)
    if index.watchlist.find(place.identity) is None:
        raise not_monitored(place, index)
    known = [row["generation"] for row in index.rows("generations", place.identity)]
    if generation is not None and generation not in known:
        raise NotFoundError(
            f"no generation {generation} in namespace {place.namespace} "
            f"(there are: {', '.join(known) or 'none'})",
            kind="no_generation",
            generations=known,
        )
    return place
