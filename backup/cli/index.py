"""ourdb monitor, meta: which namespaces this machine watches, and what it knows of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backup.cli.command import command, meta_option, parse_directory
from backup.cli.each import NOTHING_MONITORED, incomplete, try_each
from backup.cli.failure import report
from backup.cli.output import count, note, print_json, print_table, print_text

if TYPE_CHECKING:
    from compactor.monitor import SyncReport
    from ourdb.errors import Error


@command(
    "monitor",
    example="""
    ourdb monitor add file:///srv/backup/notes
    ourdb monitor add --from .
    ourdb monitor list
    ourdb monitor remove file:///srv/backup/notes
    """,
)
@click.argument("action", metavar="ACTION", type=click.Choice(["add", "remove", "list"]))
@click.argument("urls", metavar="[URL]...", nargs=-1)
@click.option(
    "--from",
    "folder",
    callback=parse_directory,
    metavar="DIR",
    help="Add every store that the databases below this directory were shipped to.",
)
@meta_option
def monitor_command(
    action: str, urls: tuple[str, ...], folder: Path | None, meta: Path | None, as_json: bool
) -> int:
    """Add, remove or list the namespaces that this machine monitors.

    They are what `meta sync`, `compact --all` and `prune --all` go through. Stores are only read; the list is
    kept in the meta index.
    """
    _check_usage(action, urls, folder)
    if action == "list":
        _list(meta, as_json)
        return 0
    import compactor

    failed: dict[str, Error] = {}
    if action == "remove":
        removed = try_each(urls, lambda url: compactor.unmonitor(url, meta=meta), failed)
        lines = [f"not monitored any more: {url}" for url in removed]
        return _end({"removed": list(removed)}, lines, failed, as_json)
    found = [*urls, *(_shipped_from(folder, failed) if folder else ())]
    return _end_sync(try_each(found, lambda url: compactor.monitor(url, meta=meta), failed), failed, as_json)


@command(
    "meta",
    example="""
    ourdb monitor add file:///srv/backup/notes
    ourdb meta sync
    ourdb meta sync file:///srv/backup/notes --full
    ourdb meta rebuild
    """,
)
@click.argument("action", metavar="ACTION", type=click.Choice(["sync", "rebuild"]))
@click.argument("urls", metavar="[URL]...", nargs=-1)
@click.option("--full", is_flag=True, help="Fetch everything again, and write every row anew.")
@meta_option
def meta_command(action: str, urls: tuple[str, ...], full: bool, meta: Path | None, as_json: bool) -> int:
    """Bring the meta index in step with the monitored namespaces, or with these; or build it anew.

    It is a cache of what stores hold: a sync with nothing new costs one request for each of them.
    """
    import compactor

    if action == "rebuild" and (urls or full):
        raise click.UsageError("rebuild takes no URL and no --full", click.get_current_context())
    if urls:
        failed: dict[str, Error] = {}
        synced = try_each(urls, lambda url: compactor.sync_one(url, full=full, meta=meta), failed)
        return _end_sync(synced, failed, as_json)
    done = (
        compactor.rebuild_meta(meta=meta) if action == "rebuild" else compactor.sync_all(full=full, meta=meta)
    )
    if not as_json and not done.synced and not done.failed:
        print_text(NOTHING_MONITORED)
    return _end_sync({report.namespace.url: report for report in done.synced}, done.failed, as_json)


def _check_usage(action: str, urls: tuple[str, ...], folder: Path | None) -> None:
    if action == "list" and (urls or folder):
        raise click.UsageError("list takes no URL and no --from", click.get_current_context())
    if action == "remove" and folder:
        raise click.UsageError("--from is for add", click.get_current_context())
    if action != "list" and not urls and not folder:
        raise click.UsageError(f"which namespace: ourdb monitor {action} URL", click.get_current_context())


def _list(meta: Path | None, as_json: bool) -> None:
    import compactor
    from compactor.monitor import watched_json

    found = [watched_json(watched) for watched in compactor.list_monitored_namespaces(meta=meta)]
    if as_json:
        print_json({"namespaces": found})
        return
    columns = ("segments", "bytes", "last_seq", "last_time", "synced", "url")
    print_table(columns, [[row[column] for column in columns] for row in found])


def _shipped_from(folder: Path, failed: dict[str, Error]) -> list[str]:
    """Where the databases below a folder were shipped to; `failed` gets those that cannot be read."""
    from backup.shipped import databases_below, shipped_urls

    databases = list(map(str, databases_below(folder, failed.__setitem__)))
    if not databases:
        note(f"no database below this directory: {folder}")
    by_database = try_each(databases, shipped_urls, failed)
    for database in (database for database, urls in by_database.items() if not urls):
        note(f"never shipped: {database}")
    return [url for urls in by_database.values() for url in urls]


def _end_sync(synced: Mapping[str, SyncReport], failed: Mapping[str, Error], as_json: bool) -> int:
    told = {"namespaces": [one.as_json() for one in synced.values()]}
    for text in dict.fromkeys(text for one in synced.values() for text in one.notes):
        note(text)
    return _end(told, map(_summary, synced.values()), failed, as_json)


def _summary(done: SyncReport) -> str:
    return (
        f"{count(done.namespace.segments, 'segment')} up to seq {done.namespace.last_seq or 0}, "
        f"{'changed' if done.changed else 'nothing new'}, {count(sum(done.requests.values()), 'request')}: "
        f"{done.namespace.url}"
    )


def _end(told: dict[str, Any], lines: Iterable[str], failed: Mapping[str, Error], as_json: bool) -> int:
    """Prints what was done, then what was not; the exit code. One that failed alone has its own."""
    done = len(next(iter(told.values())))
    if len(failed) == 1 and not done:
        raise next(iter(failed.values()))
    error = incomplete(done, failed) if failed else None
    if as_json:
        print_json(told if error is None else told | {"error": error.as_json()})
        return error.exit_code if error else 0
    for line in lines:
        print_text(line)
    return report(error, as_json=False) if error else 0
