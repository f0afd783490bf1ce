"""What the commands share: the class with its example and --json, arguments and options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from backup.cli.output import note


class Command(click.Command):
    """A click command with an Example in its help, and `--json`."""

    def __init__(self, *args: Any, example: str = "", **options: Any) -> None:
        super().__init__(*args, **options)
        self.example = example
        flag = click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object; errors too.")
        self.params.append(flag)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Example"):
            for line in self.example.strip().splitlines():
                formatter.write(f"  {line.strip()}\n")


def command(name: str, *, example: str) -> Callable[[Callable[..., Any]], Command]:
    """Decorator: the function is the command `name`."""
    return click.command(name, cls=Command, example=example)


Convert = Callable[[click.Context, click.Parameter, Any], Any]


def _parse_by(function: str) -> Convert:
    """A callback that reads an option's text with this function of ourdb.units."""

    def convert(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
        if value is None:
            return None
        from ourdb import units
        from ourdb.errors import InvalidError

        try:
            return getattr(units, function)(value)
        except InvalidError as error:
            raise click.BadParameter(str(error), ctx, param) from error

    return convert


parse_size = _parse_by("parse_size")  # bytes
parse_span = _parse_by("parse_span")  # milliseconds
parse_time = _parse_by("parse_time")  # milliseconds since the epoch


def parse_directory(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    """A path; the empty one is a mistake in a script, not the current directory."""
    if value == "":
        raise click.BadParameter("the name is empty", ctx, param)
    return None if value is None else Path(value)


directory_argument = click.argument("directory", metavar="DIR", callback=parse_directory)
url_argument = click.argument("url", metavar="URL")
at_option = click.option(
    "--at", callback=parse_time, metavar="T", help="As of this time: RFC 3339, 'now', '90 minutes ago'."
)
seq_option = click.option(
    "--seq", type=click.IntRange(min=0), metavar="N", help="As of this sequence number."
)
generation_option = click.option("--generation", metavar="G", help="The line that ends in this generation.")
meta_option = click.option(
    "--meta",
    envvar="OURDB_META",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Meta index, a cache of what stores hold [default: in the XDG state folder; or OURDB_META].",
)


def at_most_one(**given: Any) -> None:
    """Usage error if more than one of the options (names with _ for -) was given."""
    names = [name for name, value in given.items() if value is not None and value is not False]
    used = [f"--{name.replace('_', '-')}" for name in names]
    if len(used) > 1:
        raise click.UsageError(f"only one of {' and '.join(used)} at a time", click.get_current_context())


def echo_target(at: int | None, before: int | None) -> None:
    """How a time (ms) was understood, before anything happens."""
    from ourdb.units import format_time

    if at is not None:
        note(f"as of {format_time(at)}")
    elif before is not None:
        note(f"before {format_time(before)}")
