"""ourdb set, delete: one value."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from backup.cli.command import command, directory_argument
from backup.cli.handle import opened
from backup.cli.output import print_json, print_text


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
