"""ourdb set, get, delete, history: one value."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from backup.cli.command import at_most_one, at_option, command, directory_argument, seq_option
from backup.cli.handle import opened
from backup.cli.output import note, print_json, print_table, print_text, show_value, value_fields


@command(
    "set",
    example="""
    ourdb set notes 7 "buy bread"
    echo "buy milk" | ourdb set notes 8 -
    ourdb set diary "in incremental mode the database gives the id"
    """,
)
@directory_argument
@click.argument("words", metavar="[ID] VALUE|-", nargs=-1, required=True)
def set_command(directory: Path, words: tuple[str, ...], as_json: bool) -> None:
    """Write a value; - reads it from standard input.

    Without ID (incremental mode) it gets a new one, which is printed.
    """
    if len(words) > 2:
        raise click.UsageError(
            "more than ID and VALUE: quote a value with spaces", click.get_current_context()
        )
    given = _parse_id(words[0]) if len(words) == 2 else None
    with opened(directory) as db:
        value = _read_value(words[-1], db.config.record_size_max)
        new_id = db.set(value, given)
        seq = db.last_seq
    if as_json:
        print_json({"id": new_id, "seq": seq})
    elif given is None:
        print_text(str(new_id))


@command(
    "get",
    example="""
    ourdb get notes 7
    ourdb get notes 7 --at "10 minutes ago"
    ourdb get notes 7 --seq 1 --raw > value
    """,
)
@directory_argument
@click.argument("record_id", metavar="ID", type=int)
@at_option
@seq_option
@click.option("--raw", is_flag=True, help="Write the bytes as they are, and no line end.")
def get_command(
    directory: Path, record_id: int, at: int | None, seq: int | None, raw: bool, as_json: bool
) -> None:
    """Print a value: as text if it is UTF-8, else in base64.

    With --at or --seq, what it was then.
    """
    at_most_one(at=at, seq=seq)
    at_most_one(raw=raw, json=as_json)
    from ourdb.errors import MissingIdError

    with opened(directory, readonly=True) as db:
        value = db.get(record_id, at=at, seq=seq)
    if value is None:
        raise MissingIdError(
            f"no such id{'' if at is None and seq is None else ' then'}: {record_id}", id=record_id
        )
    if raw:
        sys.stdout.buffer.write(value)
    elif as_json:
        print_json({"id": record_id} | value_fields(value))
    else:
        fields = value_fields(value)
        if "base64" in fields:
            note("not UTF-8 text, shown in base64 (--raw writes the bytes)")
        print_text(next(iter(fields.values())))


@command("delete", example="ourdb delete notes 8")
@directory_argument
@click.argument("record_id", metavar="ID", type=int)
def delete_command(directory: Path, record_id: int, as_json: bool) -> None:
    """Delete a value. Older versions stay readable: history, get --at, restore --at."""
    with opened(directory) as db:
        db.delete(record_id)
        seq = db.last_seq
    if as_json:
        print_json({"id": record_id, "deleted": True, "seq": seq})


@command("history", example="ourdb history notes 7 --depth 3")
@directory_argument
@click.argument("record_id", metavar="ID", type=int)
@click.option("--depth", type=click.IntRange(min=1), metavar="N", help="At most so many [default: all].")
def history_command(directory: Path, record_id: int, depth: int | None, as_json: bool) -> None:
    """List the versions of a value, newest first."""
    from ourdb.errors import MissingIdError
    from ourdb.units import format_time

    with opened(directory, readonly=True) as db:
        versions = db.get_history(record_id, depth)
    if not versions:
        raise MissingIdError(f"no such id: {record_id}", id=record_id)
    if as_json:
        listed = [
            {"seq": version.seq, "time": format_time(version.time_ms)} | value_fields(version.value)
            for version in versions
        ]
        print_json({"id": record_id, "versions": listed})
    else:
        rows = [
            (version.seq, format_time(version.time_ms), show_value(version.value)) for version in versions
        ]
        print_table(("seq", "time", "value"), rows)


def _parse_id(word: str) -> int:
    try:
        return int(word)
    except ValueError as error:
        raise click.BadParameter(f"not a whole number: {word!r}", param_hint="ID") from error


def _read_value(word: str, size_max: int) -> bytes:
    """The bytes of the argument, or of standard input for `-`: one too many is enough to be refused."""
    if word == "-":
        return sys.stdin.buffer.read(size_max + 1)
    return os.fsencode(word)
