"""The command line: `ourdb COMMAND`. See README.md for the table of commands, docs/errors.md for errors.

This module and `group` import click and nothing heavier, so that `ourdb --help` answers at once; each
command imports what it needs when it runs.
"""

from __future__ import annotations

import signal
from types import FrameType

from backup.cli.failure import Terminated
from backup.cli.group import cli

__all__ = ["cli", "main"]


def main() -> None:
    """The console script. Ends the process with the exit code of practice: 0 done, 143 SIGTERM, ..."""
    signal.signal(signal.SIGTERM, _terminate)
    cli()


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated
