"""Planning over many segments: the product beside a dynamic program in plain Python, over the same entries.

Each shape has a process of its own, so that its memory is what that planning took: `chain` is a store that
was never merged, `levels` has merged segments of growing spans over half of that, `random` half of it under
spans that begin and end anywhere. Decoding says what reading the entries from lists costs before.
"""

from __future__ import annotations

import gc
import json
import random
import resource
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from compactor.edges import SEGMENT_COST
from compactor.entries import SegmentEntry
from compactor.lists import ListOwner, StoredList, encode_segments
from compactor.path import plan_path
from ourdb.names import SegmentName, list_key
from ourdb.units import format_size

SHAPES = ("chain", "levels", "random")
SPAN = 10  # seqs of a segment that was not merged
GENERATION, UUID = "1" * 16, "2" * 32
DECODED = 10_000  # entries of a list


@dataclass(frozen=True, kw_only=True)
class Planning:
    """Seconds of processor time. bytes: of memory that planning took beside the entries, at its peak.
    decoding: of so many entries from lists."""

    shape: str
    segments: int
    steps: int
    seconds: float
    naive: float
    decoding: float
    bytes: int


def measure(segments: int) -> Iterator[Planning]:
    """Each shape once."""
    for shape in SHAPES:
        command = [sys.executable, "-m", "benchmarks.planning", shape, str(segments)]
        done = subprocess.run(command, check=True, capture_output=True)
        yield Planning(**json.loads(done.stdout))


def table(found: list[Planning]) -> list[str]:
    lines = [
        f"shortest restore path over {found[0].segments:,} segments, in seconds of processor time; "
        "in brackets times OurDB",
        "",
        "| segments | steps of the path | OurDB | plain Python | decoding before | memory |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in found:
        lines.append(
            f"| {one.shape} | {one.steps:,} | {one.seconds:.2f} | {one.naive:.2f} "
            f"({one.naive / one.seconds:.1f}x) | {one.decoding:.2f} | {format_size(one.bytes)} |"
        )
    return lines


def _run(shape: str, count: int) -> Planning:
    entries, target = _entries(shape, count)
    before = _memory_now()
    began = time.process_time()
    path = plan_path(entries, 0, target, chain=0)
    seconds = time.process_time() - began
    used = _memory_peak() - before
    if path is None:
        raise RuntimeError("no path was found")
    began = time.process_time()
    least = _plan_naively(entries, target)
    naive = time.process_time() - began
    if least != len(path) * SEGMENT_COST + sum(step.segment.bytes for step in path):
        raise RuntimeError("the path is not the best one")
    return Planning(
        shape=shape,
        segments=len(entries),
        steps=len(path),
        seconds=seconds,
        naive=naive,
        decoding=_time_decoding(entries[:DECODED]) * len(entries) / min(len(entries), DECODED),
        bytes=max(0, used),
    )


def _entries(shape: str, count: int) -> tuple[list[SegmentEntry], int]:
    """The segments in the order of a head, and the last seq."""
    plain = count if shape == "chain" else count // 2
    target = plain * SPAN
    spans = [(first + 1, first + SPAN) for first in range(0, target, SPAN)]
    spans += (_merged if shape == "levels" else _anywhere)(target, count - plain)
    made = [_entry(first, last, number) for number, (first, last) in enumerate(spans)]
    return sorted(made, key=lambda entry: entry.order), target


def _merged(target: int, count: int) -> list[tuple[int, int]]:
    """Twice as long from level to level."""
    found: list[tuple[int, int]] = []
    span = 2 * SPAN
    while len(found) < count and span <= target:
        found += [(first + 1, first + span) for first in range(0, target - span + 1, span)]
        span *= 2
    return found[:count]


def _anywhere(target: int, count: int) -> list[tuple[int, int]]:
    chance = random.Random(1)
    firsts = (chance.randrange(1, target - 100 * SPAN) for _ in range(count))
    return [(first, first + chance.randrange(SPAN // 2, 100 * SPAN)) for first in firsts]


def _entry(first: int, last: int, number: int) -> SegmentEntry:
    name = SegmentName(
        last_seq=last,
        first_seq=first,
        last_time=last,
        first_time=first,
        horizon=first,
        chain_before=_chain(first - 1),
        chain_after=_chain(last),
        made=1,
        random=number,
    )
    return SegmentEntry(
        generation=GENERATION,
        file_name=name.format(),
        bytes=100 + number % 50,
        index_bytes=10,
        records=last - first + 1,
        highest_id=1,
        highest_before=None if first == 1 else 1,
    )


def _chain(seq: int) -> int:
    return seq * 2654435761 & 0xFFFFFFFF


def _plan_naively(entries: list[SegmentEntry], target: int) -> int | None:
    """The least cost: for each segment, the cheapest of all those that end in it or just before it."""
    spans = sorted((entry.last_seq, entry.first_seq, entry.bytes) for entry in entries)
    lasts = [last for last, _, _ in spans]
    costs: list[int | None] = []
    for last, first, size in spans:
        found = [0] if first == 1 else []
        for before in range(bisect_left(lasts, first - 1), bisect_left(lasts, last)):
            cost = costs[before]
            if cost is not None and spans[before][1] < first:
                found.append(cost)
        costs.append(min(found) + SEGMENT_COST + size if found else None)
    at_end = [cost for cost, last in zip(costs, lasts, strict=True) if cost is not None and last == target]
    return min(at_end, default=None)


def _time_decoding(entries: list[SegmentEntry]) -> float:
    key = list_key(1, 1)
    data = encode_segments(ListOwner(UUID, "name", 1), key, entries)
    gc.freeze()  # what is here for the measurement is nothing that the collector has to walk
    began = time.process_time()
    decoded = StoredList(key, data, UUID, "name").segments
    taken = time.process_time() - began
    if decoded != tuple(entries):
        raise RuntimeError("decoding altered the entries")
    return taken


def _memory_now() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _memory_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


if __name__ == "__main__":
    print(json.dumps(vars(_run(sys.argv[1], int(sys.argv[2])))))
