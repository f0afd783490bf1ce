"""Backup of OurDB databases into object stores, and restore to any point in time.

The names below are imported when they are first used: `ourdb --help` needs none of them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backup.analyze import AnalysisReport, analyze
    from backup.every import backup_every
    from backup.options import BackupOptions
    from backup.points import PointsReport, points
    from backup.reading.database import RemoteDatabase
    from backup.reading.remote import RemoteOptions, open_remote
    from backup.report import BackupReport, SegmentReport
    from backup.restoring.restore import RestoreOptions, RestoreReport, restore
    from backup.retention.pins import PinReport, pin, unpin
    from backup.retention.policy import PolicyChanges, PolicyReport, policy, set_policy
    from backup.retention.prune import prune
    from backup.retention.report import PruneReport
    from backup.run import backup
    from backup.segments import SegmentsReport, segments
    from backup.verify import VerifyReport, verify

__all__ = [
    "AnalysisReport",
    "BackupOptions",
    "BackupReport",
    "PinReport",
    "PointsReport",
    "PolicyChanges",
    "PolicyReport",
    "PruneReport",
    "RemoteDatabase",
    "RemoteOptions",
    "RestoreOptions",
    "RestoreReport",
    "SegmentReport",
    "SegmentsReport",
    "VerifyReport",
    "analyze",
    "backup",
    "backup_every",
    "open_remote",
    "pin",
    "points",
    "policy",
    "prune",
    "restore",
    "segments",
    "set_policy",
    "unpin",
    "verify",
]

_HOMES = {
    "AnalysisReport": "analyze",
    "BackupOptions": "options",
    "BackupReport": "report",
    "PinReport": "retention.pins",
    "PointsReport": "points",
    "PolicyChanges": "retention.policy",
    "PolicyReport": "retention.policy",
    "PruneReport": "retention.report",
    "RemoteDatabase": "reading.database",
    "RemoteOptions": "reading.remote",
    "RestoreOptions": "restoring.restore",
    "RestoreReport": "restoring.restore",
    "SegmentReport": "report",
    "SegmentsReport": "segments",
    "VerifyReport": "verify",
    "analyze": "analyze",
    "backup": "run",
    "backup_every": "every",
    "open_remote": "reading.remote",
    "pin": "retention.pins",
    "points": "points",
    "policy": "retention.policy",
    "prune": "retention.prune",
    "restore": "restoring.restore",
    "segments": "segments",
    "set_policy": "retention.policy",
    "unpin": "retention.pins",
    "verify": "verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    setattr(sys.modules[__name__], name, value)
    return value


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        """Importing the module `backup.points` would put it in the place of the function `points`."""
        if isinstance(value, ModuleType) and name in _HOMES:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
