"""Stores, the head of a namespace, the meta index, and the shortest path through segments."""

from compactor.follow import Change, Draft, Writer, follow
from compactor.head import Generation, Head, Known, Parent, Pin, SegmentEntry
from compactor.host import Host
from compactor.meta import MetaIndex
from compactor.namespace import Namespace
from compactor.publish import Patience, publish
from compactor.store import open_store
from compactor.view import View, may_name

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
    "View",
    "Writer",
    "follow",
    "may_name",
    "open_store",
    "publish",
]
