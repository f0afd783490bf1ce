"""The command line: `ourdb COMMAND`. See README.md for the table of commands, docs/errors.md for errors.

This package imports next to nothing and `group` only click, so that `ourdb --help` answers at once; each
command imports what it needs when it runs.
"""

from __future__ import annotations

from backup.cli import signals

__all__ = ["main"]


def main() -> None:
    """The console script. Ends the process with the exit code of practice: 0 done, 143 SIGTERM, ..."""
    signals.end_silently()
    from backup.cli.standard import open_closed

    open_closed()
    from backup.cli.failure import Terminated
    from backup.cli.group import cli

    signals.raise_in_main(Terminated)
    cli()
