"""Stores, the head of a namespace, the meta index, and the shortest path through segments.

What commits is in compactor.publish: `follow` computes the next head, `publish` puts it.
"""

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
from compactor.meta import MetaIndex
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
from compactor.watchlist import Watched

__all__ = [
    "Change",
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
    "SyncAllReport",
    "SyncReport",
    "View",
    "Watched",
    "Writer",
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
