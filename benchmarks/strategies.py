"""A year of backups each minute, compacted by every strategy: `python -m benchmarks.strategies [--quick]`.

Sizes only: a merged segment has the bytes of its sources, as if nothing were ever overwritten. --quick takes
a month. The table of docs/decisions/auto-strategy.md is made by this.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from compactor.store.parts import COPY_BYTES_MAX, COPY_BYTES_MIN
from compactor.strategies import Strategy, strategy
from ourdb.segment.summary import Stretch
from ourdb.units import KIB, MIB

DAY = 1440  # minutes
EVERY = {"hour": 60, "day": DAY}
NAMES = ["auto", "levels", "log", "all"]
RECORD_BYTES = 200
PART_BYTES = 16 * MIB  # of parts that are put


class Piece(NamedTuple):
    """A segment of the simulation."""

    first_seq: int
    last_seq: int
    bytes: int
    generation: str = "1" * 16
    stretch: Stretch | None = None


@dataclass
class Costs:
    """What a year cost. written: bytes of backups; rewritten: of merged segments; fetched: of the sources
    that have to be read for that. Requests are those of compaction, the head's get and put with them."""

    written: int = 0
    rewritten: int = 0
    fetched: int = 0
    puts: int = 0
    copies: int = 0
    gets: int = 0
    runs: int = 0
    runs_that_merged: int = 0
    lengths: list[NDArray[np.int64]] = field(default_factory=list)

    def merge(self, sources: Sequence[Piece]) -> Piece:
        """Sources below 16 MiB are fetched whole, index and all, with one get; of others the index is, and
        their blocks are copied in the store."""
        small = sum(piece.bytes for piece in sources if piece.bytes < COPY_BYTES_MIN)
        copied = [piece.bytes for piece in sources if piece.bytes >= COPY_BYTES_MIN]
        total = small + sum(copied)
        self.rewritten += total
        self.fetched += small
        self.gets += len(sources)
        self.copies += sum(-(-size // COPY_BYTES_MAX) for size in copied)
        multipart = copied or total > PART_BYTES
        self.puts += 2 + max(1, -(-small // PART_BYTES)) if multipart else 1
        return Piece(sources[0].first_seq, sources[-1].last_seq, total)


def workloads(minutes: int) -> dict[str, NDArray[np.int64]]:
    """Bytes of the segment of each minute; 0: nothing was written, there is none."""
    random = np.random.default_rng(5)
    tiny = np.full(minutes, 2 * KIB)
    bursty = np.where(random.random(minutes) < 0.3, random.lognormal(9, 1.5, minutes) + 600, 0)
    burst = random.random(minutes) < 0.001
    bursty = np.where(burst, random.uniform(10, 500, minutes) * MIB, bursty)
    growing = np.linspace(10 * KIB, MIB, minutes)
    quiet = np.where(np.arange(minutes) % DAY == 700, 2 * KIB, 0)
    named = {"tiny": tiny, "bursty": bursty, "growing": growing, "quiet": quiet}
    return {name: sizes.astype(np.int64) for name, sizes in named.items()}


def simulate(sizes: NDArray[np.int64], chosen: Strategy | None, every: int) -> Costs:
    """Backups of these sizes, a minute apart, and a compaction each `every` minutes (None: none at all)."""
    costs = Costs(written=int(sizes.sum()))
    live: list[Piece] = []
    seq = 0
    for start in range(0, len(sizes), every):
        arriving = sizes[start : start + every]
        costs.lengths.append(len(live) + np.cumsum(arriving > 0))
        for size in arriving[arriving > 0].tolist():
            last = seq + 1 + size // RECORD_BYTES
            live.append(Piece(seq + 1, last, size))
            seq = last
        if chosen is not None:
            live = compact(live, chosen, costs)
    return costs


def compact(live: list[Piece], chosen: Strategy, costs: Costs) -> list[Piece]:
    """One run: a get of the head, and if there is something to merge, its put."""
    costs.runs += 1
    costs.gets += 1
    sets = chosen.partition(live)
    if not sets:
        return live
    costs.runs_that_merged += 1
    costs.puts += 1
    place = {piece.first_seq: nr for nr, piece in enumerate(live)}
    kept: list[Piece] = []
    done = 0
    for sources in sets:
        start = place[sources[0].first_seq]
        kept += [*live[done:start], costs.merge(sources)]
        done = start + len(sources)
    return kept + live[done:]


def row(name: str, every: str, costs: Costs) -> str:
    lengths = np.concatenate(costs.lengths)
    cells = [
        name,
        every,
        f"{np.median(lengths):,.0f}",
        f"{lengths.max():,}",
        f"{costs.rewritten / costs.written:,.2f}",
        f"{costs.fetched / costs.written:,.2f}",
        f"{costs.puts:,}",
        f"{costs.copies:,}",
        f"{costs.gets:,}",
        f"{costs.runs_that_merged / costs.runs:.0%}" if costs.runs else "-",
    ]
    return f"| {' | '.join(cells)} |"


@click.command()
@click.option("--quick", is_flag=True, help="A month instead of a year.")
@click.option("--threshold", default=8, show_default=True, help="Of auto.")
@click.option("--only", type=click.Choice(NAMES), help="One strategy.")
def main(quick: bool, threshold: int, only: str | None) -> None:
    """Simulate a year of backups each minute, and print what each strategy makes of it."""
    began = time.monotonic()
    minutes = (30 if quick else 365) * DAY
    for workload, sizes in workloads(minutes).items():
        stored, count = sizes.sum() / 1e9, np.count_nonzero(sizes)
        print(f"\n{workload}: {count:,} segments in {minutes // DAY} days, {stored:,.3f} GB\n")
        print(
            "| strategy | each | path, median | worst | rewritten | fetched | puts | copies | gets | merged |"
        )
        print("| --- | --- |" + " ---: |" * 8)
        print(row("none", "-", simulate(sizes, None, DAY)))
        for name in [only] if only else NAMES:
            chosen = strategy(name, threshold=threshold) if name == "auto" else strategy(name)
            for every, length in EVERY.items():
                print(row(name, every, simulate(sizes, chosen, length)), flush=True)
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
