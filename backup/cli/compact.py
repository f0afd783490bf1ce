"""ourdb compact: many segments become few."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backup.cli.command import at_most_one, command, meta_option, parse_directory, parse_span
from backup.cli.each import check_one_or_all, end_all, monitored_urls, try_each
from backup.cli.output import count, note, print_json, print_text
from backup.cli.progress import work_bar

if TYPE_CHECKING:
    from compactor.compaction.report import CompactReport, SetReport
    from ourdb.errors import Error

STRATEGIES = ("auto", "levels", "log", "all")
_POINTS_SHOWN = 20
_COMMIT_REQUESTS = 1  # of a set: the put of the head


@command(
    "compact",
    example="""
    ourdb compact file:///srv/backup/notes --dry-run
    ourdb compact file:///srv/backup/notes
    ourdb compact file:///srv/backup/notes --strategy all --window 30d --json
    """,
)
@click.argument("url", metavar="[URL]", required=False)
@click.option("--all", "everything", is_flag=True, help="Every namespace that this machine monitors.")
@click.option(
    "--strategy",
    type=click.Choice(STRATEGIES),
    default="auto",
    show_default=True,
    help="Which segments: by size; by levels; halves; everything into one.",
)
@click.option("--threshold", type=int, metavar="N", help="Of auto (8) and levels (10): 2 segments or more.")
@click.option(
    "--window",
    callback=parse_span,
    metavar="SPAN",
    help="Keep each point so long (30d; 0: the newest) and drop what none needs; not less than the policy's.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be merged, what it costs and saves.")
@click.option(
    "--out", callback=parse_directory, metavar="DIR", help="Write files below DIR, and publish nothing."
)
@click.option(
    "--force", is_flag=True, help="Drop although the clocks of this machine and of the store differ."
)
@meta_option
def compact_command(
    url: str | None, everything: bool, meta: Path | None, as_json: bool, **options: Any
) -> int:
    """Merge the segments of a store, so that a restore reads few, and drop what the policy does not keep.

    Pins, branch points, keep rules and the window of the policy stay exact. Without a policy nothing is
    dropped. What was merged stays in the store until `prune`.
    """
    at_most_one(all=everything, out=options["out"])
    at_most_one(dry_run=options["dry_run"], out=options["out"])
    check_one_or_all(url, everything)
    from compactor import compact

    with work_bar("compacting") as progress:
        if url is not None:
            found = compact(url, meta=meta, progress=progress, **options)
            return _end_one(found, as_json)
        failed: dict[str, Error] = {}
        done = try_each(
            monitored_urls(meta), lambda one: compact(one, meta=meta, progress=progress, **options), failed
        )
    return end_all(done, failed, _print, as_json=as_json)


def _end_one(found: CompactReport, as_json: bool) -> int:
    for text in found.notes:
        note(text)
    if as_json:
        print_json(found.as_json())
    else:
        _print(found)
    return 0


def _print(found: CompactReport) -> None:
    for each in found.sets:
        for line in _lines(each):
            print_text(line)
    would = any(each.outcome in ("planned", "written") for each in found.sets)
    print_text(
        f"{'a restore would read' if would else 'a restore reads'} {count(found.segments_after, 'segment')}, "
        f"{found.segments_before} before; {_work(found)}"
    )


def _work(found: CompactReport) -> str:
    from ourdb.units import format_size

    if not any(each.changed for each in found.sets):
        return f"nothing to merge; {count(sum(found.requests.values()), 'request')}"
    read = found.total("index_bytes") + found.total("bytes_fetched")
    sizes = (
        ("read", read),
        ("copied in the store", found.total("bytes_copied")),
        ("decoded", found.total("bytes_decoded")),
        ("written", found.total("bytes_written")),
    )
    told = ", ".join(f"{format_size(size)} {what}" for what, size in sizes)
    if not found.dry_run:
        return f"{told}; {count(sum(found.requests.values()), 'request')}"
    merges = [each.figures for each in found.sets if each.changed and each.figures]
    foreseen = sum(sum(figures.requests.values()) + _COMMIT_REQUESTS for figures in merges)
    return f"{told} by about {count(foreseen, 'request')}"


def _lines(each: SetReport) -> Iterator[str]:
    """What became of a set, and what stays exact in it."""
    from ourdb.units import format_size

    where = f"seq {each.first_seq} to {each.last_seq} of generation {each.generation}"
    if not each.changed:
        yield f"{each.outcome}: {where}: {count(each.segments, 'segment')} as before"
        return
    saved = each.bytes - each.bytes_after
    yield (
        f"{each.outcome}: {where}: {count(each.segments, 'segment')} to {each.segments_after}, "
        f"{format_size(each.bytes)} to {format_size(each.bytes_after)}"
        + (f", {format_size(saved)} less" if saved > 0 else "")
    )
    if each.figures:
        dropped = each.figures.records_before - each.figures.records_after
        yield f"  {count(each.figures.records_after, 'record')} kept, {dropped} dropped"
    if each.horizon is not None:
        yield f"  every point from seq {each.horizon} on stays exact"
    points = list(each.kept.items())
    for seq, why in points[:_POINTS_SHOWN]:
        yield f"  seq {seq} stays exact: {why}"
    if len(points) > _POINTS_SHOWN:
        yield f"  and {count(len(points) - _POINTS_SHOWN, 'point')} more"
    for name in each.names:
        yield f"  {name}"
