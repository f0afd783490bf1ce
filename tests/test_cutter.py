"""Where merged records are cut into files: pieces as they come, compared with a look at all of them."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from ourdb.layout import Cut, Cutter
from ourdb.segment.columns import Columns
from ourdb.segment.summary import Run
from tests.segment_tools import Log

EXTRA = 16


def cut_plainly(
    log: Log, seqs: Sequence[int], ends: set[int], bytes_max: int, *, stretches_only: bool
) -> list[tuple[int, int, bool]]:
    """Last seq, count of records, and whether it goes on, of each file."""
    sizes = [len(log.records[seq - 1]) + EXTRA for seq in seqs]
    found, start, inside = [], 0, False
    while start < len(seqs):
        stop, size, last_end = start, 0, None
        while stop < len(seqs) and (size + sizes[stop] <= bytes_max or stop == start):
            size += sizes[stop]
            stop += 1
            if seqs[stop - 1] in ends:
                last_end = stop
                size = 0 if stretches_only else size
                if inside:
                    break
            if stretches_only and last_end == stop and stop < len(seqs) and sizes[stop] > bytes_max:
                break
        if last_end is not None and (stop < len(seqs) or inside):
            stop = last_end
        found.append((seqs[stop - 1], stop - start, last_end is None))
        start, inside = stop, last_end is None
    return found


@st.composite
def histories(draw: st.DrawFn) -> Log:
    sizes = draw(st.lists(st.sampled_from([0, 5, 40, 300]), min_size=1, max_size=25))
    goes_on = [draw(st.booleans()) for _ in sizes[1:]] + [False]
    return Log(
        [(1, b"x" * size, 1000 + at, on) for at, (size, on) in enumerate(zip(sizes, goes_on, strict=True))]
    )


@given(data=st.data(), log=histories())
@settings(max_examples=200, deadline=None)
def test_files_are_cut_as_a_look_at_all_records_says(data: st.DataObject, log: Log) -> None:
    last = len(log)
    first_exact = data.draw(st.integers(1, last), label="horizon")
    points = [seq for seq in log.batch_ends() if seq < first_exact - 1 and data.draw(st.integers(0, 3)) == 0]
    ranges = [(seq, seq) for seq in points] + [(first_exact, last)]
    dropped = {seq for seq in range(1, last) if data.draw(st.integers(0, 3)) == 0}
    exact = {seq for a, b in ranges for seq in range(a, b + 1)}
    seqs = [seq for seq in range(1, last + 1) if seq in exact or seq not in dropped]
    bytes_max = data.draw(st.sampled_from([60, 150, 500, 10_000]), label="bytes_max")
    stretches_only = data.draw(st.booleans(), label="stretches_only")
    whole = log.columns(seqs)

    cutter = Cutter(1, [run_of(*ends) for ends in ranges], bytes_max, EXTRA, stretches_only=stretches_only)
    size = data.draw(st.integers(1, 9), label="piece")
    for at in range(0, len(seqs), size):
        piece = whole[at : at + size]
        cutter.add(piece, closed=int(piece.seq[-1]) == last)

    cuts = cutter.cuts()
    ends = exact & set(log.batch_ends())
    assert [(cut.last_seq, cut.records, cut.goes_on) for cut in cuts] == cut_plainly(
        log, seqs, ends, bytes_max, stretches_only=stretches_only
    )
    check_times(cuts, whole)


def check_times(cuts: Sequence[Cut], columns: Columns) -> None:
    first_seq, start = 1, 0
    for cut in cuts:
        here = columns[start : start + cut.records]
        assert cut.first_seq == first_seq
        assert (cut.first_time, cut.last_time) == (int(here.time[0]), int(here.time[-1]))
        first_seq, start = cut.last_seq + 1, start + cut.records
    assert start == len(columns)


def run_of(first: int, last: int) -> Run:
    """A cutter only looks at the range."""
    return Run(
        first_seq=first,
        last_seq=last,
        first_time=0,
        last_time=0,
        next_time=None,
        chain_before=0,
        chain_after=0,
        highest_before=None,
    )
