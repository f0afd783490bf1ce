"""ourdb import, export: many values as JSONL."""

from __future__ import annotations

import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import click

from backup.cli.command import at_most_one, at_option, command, directory_argument, seq_option
from backup.cli.handle import opened
from backup.cli.output import count, print_json, print_text

_EXPORT_CHUNK_BYTES = 1 << 20


@command(
    "import",
    example="""
    ourdb import notes notes.jsonl --dry-run
    ourdb export notes | ourdb import copy -
    """,
)
@directory_argument
@click.argument("source", metavar="FILE.jsonl|-")
@click.option(
    "--batch", "lines_max", type=click.IntRange(min=1), metavar="N", help="Lines in one batch [100000]."
)
@click.option("--dry-run", is_flag=True, help="Check the file, write nothing.")
def import_command(directory: Path, source: str, lines_max: int | None, dry_run: bool, as_json: bool) -> None:
    """Write the lines of a JSONL file: {"id": 7, "value": "text"}, or "base64", or "deleted": true.

    The whole file is checked before anything is written. It becomes one batch, all or nothing; beyond
    100,000 lines (--batch) or half a data file several.
    """
    from backup.cli.intake import BATCH_LINES, check_file, write_file
    from backup.cli.progress import byte_bar

    lines_max = lines_max or BATCH_LINES
    with _open_seekable(source) as (file, size), opened(directory, readonly=dry_run) as db:
        with byte_bar("checking", size) as advance:
            done = check_file(db, file, lines_max, advance)
        if not dry_run:
            file.seek(0)
            with byte_bar("writing", size) as advance:
                done = write_file(db, file, lines_max, advance)
    if as_json:
        print_json(done.as_json())
    else:
        verb = "would write" if dry_run else "wrote"
        deleted = f", {done.deleted} of them deletions" if done.deleted else ""
        print_text(f"{verb} {count(done.records, 'record')}, batches: {done.batches}{deleted}")


@command("export", example="ourdb export notes --at '2 hours ago' > notes.jsonl")
@directory_argument
@at_option
@seq_option
def export_command(directory: Path, at: int | None, seq: int | None, as_json: bool) -> None:
    """Print every value as a line of JSONL, by ascending id; with --at or --seq, what was there then."""
    at_most_one(at=at, seq=seq)
    from backup.cli.jsonl import format_line

    with opened(directory, readonly=True) as db:
        chunk = bytearray()
        for record_id, value in db.items(at=at, seq=seq):
            chunk += format_line(record_id, value)
            if len(chunk) >= _EXPORT_CHUNK_BYTES:
                sys.stdout.buffer.write(chunk)
                chunk.clear()
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


@contextmanager
def _open_seekable(source: str) -> Iterator[tuple[IO[bytes], int]]:
    """The file and its bytes. Standard input, and what cannot be read twice, through a temporary file."""
    if source == "-":
        with _spooled(sys.stdin.buffer) as spooled:
            yield spooled
        return
    with _open_file(source) as file:
        status = Path(source).stat()
        if stat.S_ISREG(status.st_mode):
            yield file, status.st_size
        else:
            with _spooled(file) as spooled:
                yield spooled


def _open_file(source: str) -> IO[bytes]:
    from ourdb.errors import InvalidError

    try:
        return open(source, "rb")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InvalidError(f"cannot read {source}: {reason}", kind="unreadable_file", file=source) from error


@contextmanager
def _spooled(stream: IO[bytes]) -> Iterator[tuple[IO[bytes], int]]:
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(stream, copy, 1 << 20)
        size = copy.tell()
        copy.seek(0)
        yield copy, size
