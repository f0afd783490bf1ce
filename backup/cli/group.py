"""The table of commands. A command's module is imported when the command is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn

import click

from backup.cli.failure import report

# command: (module of backup.cli, what `ourdb --help` says)
COMMANDS = {
    "init": ("database", "Make a database."),
    "set": ("record", "Write a value."),
    "get": ("reading", "Print a value, the newest or an older one."),
    "delete": ("record", "Delete a value; its history stays."),
    "history": ("reading", "List the versions of a value, newest first."),
    "import": ("transfer", "Write the lines of a JSONL file."),
    "export": ("transfer", "Print every value as JSONL."),
    "info": ("database", "Say what a database is and holds."),
    "check": ("database", "Read everything and compare checksums; writes nothing."),
    "condense": ("database", "Rewrite the data files without what is no longer wanted."),
    "backup": ("ship", "Ship what is new to a store, once or again and again."),
    "restore": ("restore", "Make a database from a store, as it was at any point in time."),
    "points": ("store", "List what can be restored now."),
    "segments": ("store", "List the segments of a store."),
    "verify": ("store", "Check that what a store should have is there and unharmed."),
    "compact": ("compact", "Merge segments, so that a restore reads few."),
    "policy": ("retention", "Show or set what a store keeps."),
    "pin": ("retention", "Keep a point exact under a name."),
    "unpin": ("retention", "Let go of a pin."),
    "prune": ("prune", "Let go of what nothing needs, delete what was let go of."),
    "analyze": ("analyze", "Say what a store holds, and the shortest way to restore it."),
    "monitor": ("index", "Say which namespaces this machine monitors."),
    "meta": ("index", "Sync or rebuild the meta index, a cache of what stores hold."),
}


class Commands(click.Group):
    """`ourdb`: finds commands by the table, and ends with an exit code of docs/errors.md."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"backup.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = get_close_matches(args[0], COMMANDS, 1)
            hint = f": did you mean {near[0]}?" if near else f" (one of {', '.join(COMMANDS)})"
            raise click.UsageError(f"no such command: {args[0]}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:  # click would end with 1, as if something had failed
            ctx.exit(report(error, as_json=False))

    def main(self, args: Sequence[str] | None = None, *_: Any, **options: Any) -> NoReturn:
        words = list(sys.argv[1:] if args is None else args)
        try:
            options |= {"prog_name": "ourdb", "standalone_mode": False}
            code = super().main(words, **options) or 0
            sys.stdout.flush()
        except SystemExit:
            raise
        except BaseException as error:
            code = report(error, as_json=_wants_json(words))
        sys.exit(code)


def _wants_json(words: list[str]) -> bool:
    """Whether an error goes out as JSON, known also where the options could not be parsed."""
    options = words[: words.index("--")] if "--" in words else words
    return "--json" in options


def _print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"ourdb {version('ourdb')}")
        except PackageNotFoundError:
            click.echo("ourdb, run from its source")
        ctx.exit()


@click.command(cls=Commands, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print it."
)
def cli() -> None:
    """An embedded key-value database with history, and its backups.

    URL is file:///path/to/prefix/name or s3://bucket/prefix/name: the last part names the database
    in the store. Errors are one line, exit codes tell them apart: docs/errors.md.
    """
