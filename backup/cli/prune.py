"""ourdb prune: what nothing needs goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from backup.cli.command import command, meta_option, parse_span
from backup.cli.each import check_one_or_all, end_all, monitored_urls, try_each
from backup.cli.failure import report
from backup.cli.output import count, note, print_json, print_table, print_text

if TYPE_CHECKING:
    from backup.retention.report import PruneReport
    from ourdb.errors import Error


@command(
    "prune",
    example="""
    ourdb prune file:///srv/backup/notes --dry-run
    ourdb prune file:///srv/backup/notes
    ourdb prune --all
    """,
)
@click.argument("url", metavar="[URL]", required=False)
@click.option("--all", "everything", is_flag=True, help="Every namespace that this machine monitors.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and why; write nothing.")
@click.option(
    "--grace",
    callback=parse_span,
    metavar="SPAN",
    help="For this run, instead of the policy's. 0s deletes all that no head names at once: only for when "
    "nothing else runs.",
)
@click.option(
    "--drop-generation", metavar="G", help="The line that ends in this generation is dead: it goes at once."
)
@click.option(
    "--force",
    is_flag=True,
    help="Let lines age out although the clocks of this machine and of the store differ.",
)
@click.option("--list-all", is_flag=True, help="Name each object.")
@meta_option
def prune_command(
    url: str | None,
    everything: bool,
    dry_run: bool,
    grace: int | None,
    drop_generation: str | None,
    force: bool,
    list_all: bool,
    meta: Path | None,
    as_json: bool,
) -> int:
    """Let go of what nothing needs any more, and delete what was let go of long enough ago.

    What no head names is let go of first, and deleted by a run after the grace time: restores and backups
    that are under way do not notice. --json names each object, with the reason.
    """
    check_one_or_all(url, everything)
    if everything and drop_generation is not None:
        raise click.UsageError("--drop-generation is of one namespace: a URL", click.get_current_context())

    import backup

    def prune(one: str) -> PruneReport:
        return backup.prune(
            one, dry_run=dry_run, grace_ms=grace, drop_generation=drop_generation, force=force, meta=meta
        )

    if url is not None:
        return _end_one(prune(url), list_all, as_json)
    failed: dict[str, Error] = {}
    done = try_each(monitored_urls(meta), prune, failed)
    failed |= {url: error for url, one in done.items() if (error := _not_deleted(one))}
    return end_all(done, failed, lambda one: _print(one, list_all), as_json=as_json)


def _end_one(done: PruneReport, list_all: bool, as_json: bool) -> int:
    for text in done.notes:
        note(text)
    error = _not_deleted(done)
    if as_json:
        print_json(done.as_json() | ({"error": error.as_json()} if error else {}))
        return error.exit_code if error else 0
    _print(done, list_all)
    return report(error, as_json=False) if error else 0


def _not_deleted(done: PruneReport) -> Error | None:
    from ourdb.errors import IncompleteError

    if not done.failed:
        return None
    key, why = next(iter(done.failed.items()))
    return IncompleteError(
        f"{count(len(done.failed), 'object')} could not be deleted, the first: {key}: {why} (run it again)",
        failed=dict(done.failed),
    )


def _print(done: PruneReport, list_all: bool) -> None:
    from ourdb.units import format_size, maybe_time

    rows = [
        (one.generation, one.first_seq, one.last_seq, "goes" if one.goes else "kept", one.reason)
        for one in done.points
    ]
    print_table(("generation", "first_seq", "last_seq", "points", "why"), rows)
    print_text("")
    if list_all:
        listed = [
            (one.state, one.bytes, maybe_time(one.after_ms), one.key, one.reason) for one in done.objects
        ]
        print_table(("object", "bytes", "after", "key", "why"), listed)
    else:
        groups = [
            (state, number, format_size(size), reason)
            for (state, reason), (number, size) in done.states.items()
        ]
        print_table(("objects", "number", "bytes", "why"), groups)
    for upload in done.uploads:
        print_text(f"upload {upload.state}: {upload.key}")
    would = "would delete" if done.dry_run else "deleted"
    number = sum(one.state == "deleted" for one in done.objects) if done.dry_run else len(done.deleted)
    print_text(f"{would} {count(number, 'object')}, {format_size(done.freed_bytes)}")
