"""ourdb get, history: one value and its versions, of a database here or in a store."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backup.cli.command import (
    at_most_one,
    at_option,
    command,
    echo_target,
    generation_option,
    meta_option,
    parse_directory,
    parse_time,
    seq_option,
)
from backup.cli.handle import opened
from backup.cli.output import note, print_json, print_table, print_text, show_value, value_fields

if TYPE_CHECKING:
    from ourdb import Version

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, kw_only=True)
class _Moment:
    """When is meant, and of which line. at, before: ms."""

    at: int | None
    before: int | None
    seq: int | None
    nearest_before: bool
    generation: str | None
    meta: Path | None

    @property
    def given(self) -> bool:
        return (self.at, self.before, self.seq) != (None, None, None)


@dataclass(frozen=True)
class _Source:
    """value: of an id, None if there is none. versions: of an id, newest first, at most so many. fields: what
    JSON says of where they come from."""

    value: Callable[[int], bytes | None]
    versions: Callable[[int, int | None], list[Version]]
    fields: dict[str, Any]


def _moment_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Which place and moment: the arguments that `_asked` makes something of."""
    for decorate in (
        meta_option,
        generation_option,
        click.option(
            "--nearest-before", is_flag=True, help="If that cannot be told exactly, the nearest point before."
        ),
        click.option("--before", callback=parse_time, metavar="T", help="As of just before this time."),
        seq_option,
        at_option,
        click.argument("record_id", metavar="ID", type=int),
        click.argument("place", metavar="DIR|URL"),
    ):
        function = decorate(function)
    return function


@command(
    "get",
    example="""
    ourdb get notes 7
    ourdb get notes 7 --at "10 minutes ago"
    ourdb get notes 7 --seq 1 --raw > value
    ourdb get file:///srv/backup/notes 7 --seq 2
    """,
)
@_moment_options
@click.option("--raw", is_flag=True, help="Write the bytes as they are, and no line end.")
def get_command(place: str, record_id: int, raw: bool, as_json: bool, **when: Any) -> None:
    """Print a value: as text if it is UTF-8, else in base64.

    With --at, --before or --seq, what it was then. Of a URL it is read from the store, without a restore;
    --generation and --nearest-before are as for restore.
    """
    at_most_one(raw=raw, json=as_json)
    moment = _asked(when)
    from ourdb.errors import MissingIdError

    with _source(place, moment) as source:
        value = source.value(record_id)
    if value is None:
        raise MissingIdError(f"no such id{' then' if moment.given else ''}: {record_id}", id=record_id)
    if raw:
        sys.stdout.buffer.write(value)
    elif as_json:
        print_json({"id": record_id} | value_fields(value) | source.fields)
    else:
        fields = value_fields(value)
        if "base64" in fields:
            note("not UTF-8 text, shown in base64 (--raw writes the bytes)")
        print_text(next(iter(fields.values())))


@command(
    "history",
    example="""
    ourdb history notes 7 --depth 3
    ourdb history file:///srv/backup/notes 7 --seq 2
    """,
)
@_moment_options
@click.option("--depth", type=click.IntRange(min=1), metavar="N", help="At most so many [default: all].")
def history_command(place: str, record_id: int, depth: int | None, as_json: bool, **when: Any) -> None:
    """List the versions of a value, newest first.

    With --at, --before or --seq, those up to then. Of a URL they are read from the store, without a restore;
    --generation and --nearest-before are as for restore.
    """
    moment = _asked(when)
    from ourdb.errors import MissingIdError
    from ourdb.units import format_time

    with _source(place, moment) as source:
        versions = source.versions(record_id, depth)
    if not versions:
        raise MissingIdError(f"no such id{' then' if moment.given else ''}: {record_id}", id=record_id)
    if as_json:
        listed = [
            {"seq": version.seq, "time": format_time(version.time_ms)} | value_fields(version.value)
            for version in versions
        ]
        print_json({"id": record_id, "versions": listed} | source.fields)
    else:
        rows = [
            (version.seq, format_time(version.time_ms), show_value(version.value)) for version in versions
        ]
        print_table(("seq", "time", "value"), rows)


def _asked(when: dict[str, Any]) -> _Moment:
    at_most_one(at=when["at"], before=when["before"], seq=when["seq"])
    moment = _Moment(**when)
    if moment.nearest_before and not moment.given:
        raise click.UsageError("--nearest-before needs --at, --before or --seq", click.get_current_context())
    return moment


def _source(place: str, moment: _Moment) -> AbstractContextManager[_Source]:
    if _URL.match(place):
        return _in_store(place, moment)
    context = click.get_current_context()
    for name in ("generation", "nearest_before"):
        if getattr(moment, name):
            raise click.UsageError(
                f"--{name.replace('_', '-')} is for a URL: {place} is a directory", context
            )
    directory = parse_directory(context, context.command.params[0], place)
    assert directory is not None
    return _in_directory(directory, moment)


@contextmanager
def _in_directory(directory: Path, moment: _Moment) -> Iterator[_Source]:
    at, seq = moment.at, moment.seq
    if moment.before is not None:
        at, seq = (moment.before - 1, None) if moment.before else (None, 0)
    with opened(directory, readonly=True) as db:

        def versions(record_id: int, depth: int | None) -> list[Version]:
            if not moment.given:
                return db.get_history(record_id, depth)
            upto = db.resolve(at=at, seq=seq)
            return [version for version in db.get_history(record_id) if version.seq <= upto][:depth]

        yield _Source(lambda record_id: db.get(record_id, at=at, seq=seq), versions, {})


@contextmanager
def _in_store(url: str, moment: _Moment) -> Iterator[_Source]:
    import backup

    echo_target(moment.at, moment.before)
    with backup.open_remote(url, **vars(moment)) as db:
        point = {"point": db.point.as_json() if db.point else None}
        yield _Source(db.get, db.history, point)
        for text in (*db.notes, *(f"left out, damaged or missing: {key}" for key in db.left_out)):
            note(text)
