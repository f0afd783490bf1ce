"""Stores, the head of a namespace, the meta index, and the shortest path through segments.

What commits is in compactor.publish: `follow` computes the next head, `publish` puts it. `compact` and what
belongs to it are imported when they are first used: a backup run needs none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from compactor.follow import Change, Draft, Writer
from compactor.head import Generation, Head, Known, Parent, Pin, SegmentEntry
from compactor.host import Host
from compactor.inventory import (
    SegmentInfo,
    SegmentRange,
    SegmentRow,
    get_segment_range,
    list_all_segments,
    segment_info,
)
from compactor.meta.index import MetaIndex
from compactor.meta.watchlist import Watched
from compactor.monitor import (
    SyncAllReport,
    SyncReport,
    list_monitored_namespaces,
    monitor,
    rebuild_meta,
    sync_all,
    sync_one,
    unmonitor,
)
from compactor.namespace import Namespace
from compactor.publish import Patience
from compactor.store import open_store
from compactor.view import View, may_name

if TYPE_CHECKING:
    from compactor.compaction.options import CompactOptions
    from compactor.compaction.report import CompactReport, SetReport
    from compactor.compaction.run import compact

__all__ = [
    "Change",
    "CompactOptions",
    "CompactReport",
    "Draft",
    "Generation",
    "Head",
    "Host",
    "Known",
    "MetaIndex",
    "Namespace",
    "Parent",
    "Patience",
    "Pin",
    "SegmentEntry",
    "SegmentInfo",
    "SegmentRange",
    "SegmentRow",
    "SetReport",
    "SyncAllReport",
    "SyncReport",
    "View",
    "Watched",
    "Writer",
    "compact",
    "get_segment_range",
    "list_all_segments",
    "list_monitored_namespaces",
    "may_name",
    "monitor",
    "open_store",
    "rebuild_meta",
    "segment_info",
    "sync_all",
    "sync_one",
    "unmonitor",
]

_LATE = {
    "CompactOptions": "compaction.options",
    "CompactReport": "compaction.report",
    "SetReport": "compaction.report",
    "compact": "compaction.run",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
