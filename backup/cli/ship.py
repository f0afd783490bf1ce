"""ourdb backup: ship what is new."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from backup.cli.command import at_most_one, command, directory_argument, meta_option, parse_span, url_argument
from backup.cli.failure import report
from backup.cli.output import count, note, print_json, print_text
from backup.cli.progress import work_bar

if TYPE_CHECKING:
    from backup.plan import Start
    from backup.report import BackupReport
    from ourdb.errors import Error


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `backup.backup` is called with. fork, take_over, new: at most one, the way out of a refusal."""

    fork: bool
    take_over: bool
    new: bool
    single_writer: bool
    dry_run: bool
    meta: Path | None

    @property
    def how(self) -> Start | None:
        ways: dict[Start, bool] = {"fork": self.fork, "take-over": self.take_over, "new": self.new}
        return next((how for how, wanted in ways.items() if wanted), None)


@command(
    "backup",
    example="""
    ourdb backup notes file:///srv/backup/notes
    ourdb backup notes s3://bucket/laptop/notes --every 10s
    ourdb backup notes file:///srv/backup/notes --dry-run --json
    """,
)
@directory_argument
@url_argument
@click.option("--every", callback=parse_span, metavar="10s", help="Run again and again, until SIGTERM.")
@click.option(
    "--fork", is_flag=True, help="This directory's history goes on as a branch beside what is there."
)
@click.option("--take-over", is_flag=True, help="A restored copy takes over; the other writer stops.")
@click.option("--new", is_flag=True, help="The store lost data: ship everything, as a new generation.")
@click.option("--single-writer", is_flag=True, help="Accept a store without compare-and-swap: only we write.")
@click.option("--dry-run", is_flag=True, help="Say what would be uploaded.")
@meta_option
def backup_command(
    directory: Path,
    url: str,
    every: int | None,
    fork: bool,
    take_over: bool,
    new: bool,
    single_writer: bool,
    dry_run: bool,
    meta: Path | None,
    as_json: bool,
) -> None:
    """Ship what is new in DIR to URL. Others may write DIR meanwhile; nothing is locked.

    What it reports is restorable from the store alone. With --every a store that is away is tried again.
    """
    at_most_one(fork=fork, take_over=take_over, new=new)
    at_most_one(every=every is not None, dry_run=dry_run)
    options = Options(
        fork=fork, take_over=take_over, new=new, single_writer=single_writer, dry_run=dry_run, meta=meta
    )
    if every is None:
        _run(directory, url, options, as_json)
    else:
        _run_every(directory, url, options, every, as_json)


def _run(directory: Path, url: str, options: Options, as_json: bool) -> None:
    import backup

    with work_bar("backing up") as progress:
        done = backup.backup(directory, url, progress=progress, **vars(options))
    _print_report(done, as_json)


def _run_every(directory: Path, url: str, options: Options, every_ms: int, as_json: bool) -> None:
    """A line for each run, and one for each time that the store was away."""
    import backup
    from backup.cli.schedule import until_sigterm

    until_sigterm(
        lambda stop: backup.backup_every(
            directory,
            url,
            every_ms,
            stop,
            on_report=lambda done: _print_report(done, as_json),
            on_error=lambda error: _print_error(error, as_json),
            single_writer=options.single_writer,
            meta=options.meta,
            options=backup.BackupOptions(how=options.how),
        )
    )


def _print_report(done: BackupReport, as_json: bool) -> None:
    for text in done.notes:
        note(text)
    if as_json:
        print_json(done.as_json())
    else:
        print_text(_summary(done))


def _print_error(error: Error, as_json: bool) -> None:
    report(error, as_json=as_json)


def _summary(done: BackupReport) -> str:
    from ourdb.units import format_size, format_time

    requests = count(sum(done.requests.values()), "request")
    if not done.last_seq:
        return f"the database is empty, {requests}"
    safe = f"seq {done.last_seq} ({format_time(done.last_time)})"
    if not done.segments:
        return f"nothing new, safe up to {safe}, {requests}"
    verb = "would upload" if done.dry_run else "uploaded"
    return (
        f"{verb} {count(len(done.segments), 'segment')}, {format_size(done.bytes_uploaded)}; "
        f"{'would be' if done.dry_run else 'is'} safe up to {safe}, {requests}"
    )
