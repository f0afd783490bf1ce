"""`make bench`: all measurements, as a table and as JSON in benchmarks/results/.

--quick takes a tenth of the sizes. S3 is measured where AWS_ENDPOINT_URL and OURDB_BENCH_BUCKET name a
server, else against one that is started for it if there is any; --no-s3 leaves it out.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from benchmarks import merging, operations, planning, transfers
from benchmarks.raw import Bucket, Directory
from ourdb.units import format_size

RESULTS = Path(__file__).parent / "results"
PARTS = ("operations", "transfers", "merging", "planning")
SEGMENTS = 1_000_000  # to plan over


@click.command()
@click.option("--quick", is_flag=True, help="A tenth of the sizes.")
@click.option("--records", default=1_000_000, show_default=True, help="For set, get and the rest.")
@click.option("--bytes", "raw_bytes", default=1_000_000_000, show_default=True, help="For backup, restore.")
@click.option("--s3/--no-s3", default=True, help="Measure an S3 server too.")
@click.option("--only", type=click.Choice(PARTS), help="One part of it.")
def main(quick: bool, records: int, raw_bytes: int, s3: bool, only: str | None) -> None:
    """Measure OurDB beside other databases and raw copies, and print ratios of the same run."""
    scale = 10 if quick else 1
    records, raw_bytes = records // scale, raw_bytes // scale
    machine = describe_machine()
    result: dict[str, Any] = {"machine": machine}
    text = [f"{machine['time']}: {machine['cpu']}, {machine['cores']} cores, Python {machine['python']}"]
    if only in (None, "operations"):
        result["operations"] = found = operations.measure(records)
        text += ["", *operations_table(found, records)]
    if only in (None, "transfers"):
        done = list(measure_transfers(raw_bytes, s3))
        result["transfers"] = [asdict(transfer) for transfer in done]
        text += ["", *transfers_table(done)]
    if only in (None, "merging"):
        merged = list(measure_merging(quick, s3))
        result["merging"] = [asdict(one) for one in merged]
        text += ["", *merging.table(merged)]
    if only in (None, "planning"):
        planned = list(planning.measure(SEGMENTS // scale))
        result["planning"] = [asdict(one) for one in planned]
        text += ["", *planning.table(planned)]
    print("\n".join(text))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / "latest.md").write_text("\n".join(text) + "\n")


def operations_table(found: dict[str, dict[str, float]], records: int) -> list[str]:
    """In brackets how many times the other takes: above 1, OurDB is faster."""
    engines = list(next(iter(found.values())))
    lines = [
        f"{records:,} records of {operations.VALUE_BYTES} bytes, random ids, `_many` by "
        f"{operations.BATCH:,}, median of {operations.ROUNDS}; µs a record, open in ms; "
        "in brackets times OurDB",
        "",
        "| | " + " | ".join(engines) + " |",
        "| --- |" + " ---: |" * len(engines),
    ]
    for task, times in found.items():
        unit = 1e3 if task == "open after kill" else 1e6
        cells = [f"{times[name] * unit:.2f} ({times[name] / times['ourdb']:.1f}x)" for name in engines]
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return lines


def transfers_table(done: list[transfers.Transfer]) -> list[str]:
    lines = [
        f"values of {transfers.VALUE_BYTES} bytes; MB/s of the raw data files, median of {transfers.ROUNDS}; "
        "in brackets times the raw copy in the same direction",
        "",
        "| store | raw | stored | backup | raw copy out | restore | raw copy back |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in done:
        rate = {task: one.raw_bytes / seconds / 1e6 for task, seconds in one.seconds.items()}
        out, back = rate["raw copy out"], rate["raw copy back"]
        lines.append(
            f"| {one.store} | {format_size(one.raw_bytes)} | {format_size(one.stored_bytes)} "
            f"| {rate['backup']:.0f} ({rate['backup'] / out:.2f}x) | {out:.0f} "
            f"| {rate['restore']:.0f} ({rate['restore'] / back:.2f}x) | {back:.0f} |"
        )
    return lines


def measure_transfers(raw_bytes: int, s3: bool) -> Iterator[transfers.Transfer]:
    with tempfile.TemporaryDirectory(prefix="ourdb-bench-") as directory:
        place = Path(directory)
        database = place / "database"
        transfers.build_database(database, raw_bytes)
        yield transfers.measure(database, Directory(place), place)
        if s3:
            with s3_bucket(place) as (kind, bucket):
                yield transfers.measure(database, Bucket(kind, bucket), place)


def measure_merging(quick: bool, s3: bool) -> Iterator[merging.Merging]:
    with tempfile.TemporaryDirectory(prefix="ourdb-bench-") as directory:
        place = Path(directory)
        yield from merging.measure_all("file", f"file://{directory}/merging", quick=quick)
        if s3:
            with s3_bucket(place) as (kind, bucket):
                url = f"s3://{bucket}/bench-{os.urandom(4).hex()}"
                yield from merging.measure_all(kind, url, quick=quick)


@contextmanager
def s3_bucket(place: Path) -> Iterator[tuple[str, str]]:
    """What serves it, and a bucket; the environment leads to the server."""
    if bucket := os.environ.get("OURDB_BENCH_BUCKET"):
        yield os.environ.get("AWS_ENDPOINT_URL", "s3"), bucket
        return
    from tests import servers

    server = servers.start(place)
    os.environ.update(server.environment())
    try:
        yield server.kind, server.bucket
    finally:
        servers.stop(server)


def describe_machine() -> dict[str, Any]:
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return {
        "time": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    sys.exit(main())
