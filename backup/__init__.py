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
    from backup.pins import PinReport, pin, unpin
    from backup.points import PointsReport, points
    from backup.prune import prune
    from backup.prune_report import PruneReport
    from backup.remote import RemoteOptions, open_remote
    from backup.remote_database import RemoteDatabase
    from backup.report import BackupReport, SegmentReport
    from backup.restore import RestoreOptions, RestoreReport, restore
    from backup.retention import PolicyChanges, PolicyReport, policy, set_policy
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
    "PinReport": "pins",
    "PointsReport": "points",
    "PolicyChanges": "retention",
    "PolicyReport": "retention",
    "PruneReport": "prune_report",
    "RemoteDatabase": "remote_database",
    "RemoteOptions": "remote",
    "RestoreOptions": "restore",
    "RestoreReport": "restore",
    "SegmentReport": "report",
    "SegmentsReport": "segments",
    "VerifyReport": "verify",
    "analyze": "analyze",
    "backup": "run",
    "backup_every": "every",
    "open_remote": "remote",
    "pin": "pins",
    "points": "points",
    "policy": "retention",
    "prune": "prune",
    "restore": "restore",
    "segments": "segments",
    "set_policy": "retention",
    "unpin": "pins",
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
        """Importing the module `backup.restore` would put it in the place of the function `restore`."""
        if isinstance(value, ModuleType) and name in _HOMES:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
