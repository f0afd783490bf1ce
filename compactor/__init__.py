"""Stores, the head of a namespace, the meta index, and the shortest path through segments.

What commits is in compactor.publish: `follow` computes the next head, `publish` puts it.
"""

from compactor.follow import Change, Draft, Writer
from compactor.head import Generation, Head, Known, Parent, Pin, SegmentEntry
from compactor.host import Host
from compactor.meta import MetaIndex
from compactor.namespace import Namespace
from compactor.publish import Patience
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
    "may_name",
    "open_store",
]
