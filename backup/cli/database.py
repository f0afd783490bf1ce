"""ourdb init, info, check, condense: a whole database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from backup.cli.command import at_most_one, command, directory_argument, parse_size, parse_span
from backup.cli.handle import opened
from backup.cli.output import count, note, print_json, print_table, print_text


@command(
    "init",
    example="""
    ourdb init notes
    ourdb init diary --mode incremental --record-size-max 64KiB --sync always
    """,
)
@directory_argument
@click.option(
    "--mode",
    type=click.Choice(["kv", "incremental"]),
    help="Who gives the ids: you (kv, default) or the database.",
)
@click.option("--record-size-max", callback=parse_size, metavar="SIZE", help="Longest value [default: 4KiB].")
@click.option("--record-nr-max", type=int, metavar="N", help="Highest id, to 4294967295 [default: 16777215].")
@click.option("--file-size", callback=parse_size, metavar="SIZE", help="Largest data file [default: 500MiB].")
@click.option(
    "--sync",
    type=click.Choice(["never", "interval", "always"]),
    help="When a power cut loses nothing more [default: interval, within a second].",
)
@click.option(
    "--lookup",
    type=click.Choice(["memory", "disk"]),
    help="Where the table of newest records is: memory (default), or disk, for many millions of ids.",
)
def init_command(directory: Path, as_json: bool, **options: Any) -> None:
    """Make a database in DIR, which must not hold one."""
    from ourdb import create
    from ourdb.units import format_size

    given = {name: value for name, value in options.items() if value is not None}
    with create(directory, **given) as db:
        config, uuid = db.config, db.uuid
    if as_json:
        print_json({"path": str(directory), "uuid": uuid.hex()} | config.as_json())
    else:
        print_text(
            f"made {directory}: {config.mode}, ids to {config.record_nr_max}, "
            f"values to {format_size(config.record_size_max)}, sync {config.sync}"
        )


@command("info", example="ourdb info notes --json")
@directory_argument
def info_command(directory: Path, as_json: bool) -> None:
    """Say what a database is, how much it holds, and what was shipped where."""
    with opened(directory, readonly=True) as db:
        told = db.info()
    if as_json:
        print_json(told)
    else:
        _print_facts(told)


@command("check", example="ourdb check notes")
@directory_argument
def check_command(directory: Path, as_json: bool) -> None:
    """Read every record of every file and compare checksums and links. Writes nothing; damage is exit 14."""
    from ourdb.check import check

    found = check(directory)
    for text in found.notes:
        note(text)
    if as_json:
        print_json(found.as_json())
    else:
        print_text(f"as written: {count(found.records, 'record')} in {count(found.files, 'file')}")


@command(
    "condense",
    example="""
    ourdb condense notes --window 30d --dry-run
    ourdb condense notes --keep-versions 10
    """,
)
@directory_argument
@click.option(
    "--window",
    callback=parse_span,
    metavar="30d",
    help="Give up what is older than this, but for the last state.",
)
@click.option(
    "--keep-versions",
    type=click.IntRange(min=1),
    metavar="N",
    help="Give up all but so many versions of each id.",
)
@click.option("--forget", metavar="URL", help="No longer spare what this store does not have yet.")
@click.option("--dry-run", is_flag=True, help="Say what would go, write nothing.")
def condense_command(
    directory: Path,
    window: int | None,
    keep_versions: int | None,
    forget: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Merge the data files into fewer. All history is kept, unless --window or --keep-versions is given.

    What a store that was backed up to does not have yet is never given up, unless --forget names it.
    """
    at_most_one(window=window, keep_versions=keep_versions)
    from compactor.url import parse_url

    store = None if forget is None else parse_url(forget).identity
    with opened(directory) as db:
        if store is not None and not dry_run:
            db.forget(store)
        done = db.condense(window, keep_versions, dry_run=dry_run, without=store if dry_run else None)
    if as_json:
        print_json(done.as_json())
    else:
        rows = [
            ("before", done.files_before, done.records_before, done.bytes_before),
            ("would be" if dry_run else "after", done.files_after, done.records_after, done.bytes_after),
        ]
        print_table(("", "sealed files", "records", "bytes"), rows)


def _print_facts(told: dict[str, Any]) -> None:
    facts = {name: value for name, value in told.items() if not isinstance(value, list)}
    width = max(map(len, facts))
    for name, value in facts.items():
        print_text(f"{name:<{width}}  {'-' if value is None else value}")
    for store in told["stores"]:
        print_text(f"{'shipped':<{width}}  up to seq {store['seq']}: {store['url']}")
