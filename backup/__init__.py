"""Backup of OurDB databases into object stores, and restore to any point in time."""

from __future__ import annotations

from backup.every import backup_every
from backup.options import BackupOptions
from backup.report import BackupReport, SegmentReport
from backup.run import backup

__all__ = ["BackupOptions", "BackupReport", "SegmentReport", "backup", "backup_every"]
