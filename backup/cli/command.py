"""What the commands share: the class with its example and --json, and the types of arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


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


class _Parsed(click.ParamType):
    """A value that a function of ourdb.units understands."""

    def __init__(self, name: str, function: str) -> None:
        self.name = name
        self.function = function

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from ourdb import units
        from ourdb.errors import InvalidError

        if not isinstance(value, str):
            return value  # a default
        try:
            return getattr(units, self.function)(value)
        except InvalidError as error:
            self.fail(str(error), param, ctx)


class _Directory(click.ParamType):
    name = "dir"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if value == "":
            self.fail("the name is empty", param, ctx)
        return Path(value)


SIZE = _Parsed("size", "parse_size")  # bytes
SPAN = _Parsed("span", "parse_span")  # milliseconds
TIME = _Parsed("time", "parse_time")  # milliseconds since the epoch
DIRECTORY = _Directory()

directory_argument = click.argument("directory", metavar="DIR", type=DIRECTORY)
url_argument = click.argument("url", metavar="URL")
at_option = click.option(
    "--at", type=TIME, metavar="T", help="As of this time: RFC 3339, 'now', '90 minutes ago'."
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
