"""Strategies: the worked examples, what every set is, and what `auto` guarantees (docs/decisions)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, replace
from itertools import accumulate, pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.strategies import Piece, simulate, workloads
from compactor.entries import SegmentEntry
from compactor.strategies import STRATEGIES, All, Auto, Levels, Log, Strategy, strategy
from ourdb.errors import InvalidError
from ourdb.segment.summary import Stretch
from ourdb.units import GIB, KIB, MIB
from tests.lines import entry_of

EVERY = [All(), Log(), Levels(threshold=3), Auto(threshold=2, segment_bytes_max=100), Auto()]
SIZES = st.lists(st.one_of(st.integers(1, 20), st.integers(1, 2000)), max_size=120)


def pieces(spans: Sequence[int], sizes: Sequence[int] | None = None, first: int = 1) -> list[Piece]:
    """Segments that span so many seqs, one behind the other; as many bytes, or `sizes`."""
    lasts = accumulate(spans, initial=first - 1)
    return [
        Piece(before + 1, last, size)
        for (before, last), size in zip(pairwise(lasts), sizes or spans, strict=True)
    ]


def sized(sizes: Sequence[int]) -> list[Piece]:
    return pieces([1] * len(sizes), sizes) if sizes else []


def spans_after(chosen: Strategy, spans: Sequence[int]) -> list[int]:
    return [piece.last_seq - piece.first_seq + 1 for piece in merged(chosen, pieces(spans))]


def sizes_after(chosen: Strategy, sizes: Sequence[int]) -> list[int]:
    return [piece.bytes for piece in merged(chosen, sized(sizes))]


def join(sources: Sequence[Piece]) -> Piece:
    return Piece(sources[0].first_seq, sources[-1].last_seq, sum(piece.bytes for piece in sources))


def merged(
    chosen: Strategy, live: Sequence[Piece], merge: Callable[[Sequence[Piece]], Piece] = join
) -> list[Piece]:
    """What is live after one compaction; checks what holds for the sets of every strategy."""
    sets = chosen.partition(live)
    place = {piece.first_seq: nr for nr, piece in enumerate(live)}
    after: list[Piece] = []
    done = 0
    for sources in sets:
        start = place[sources[0].first_seq]
        assert len(sources) > 1
        assert start >= done
        assert list(sources) == list(live[start : start + len(sources)])
        after += [*live[done:start], merge(sources)]
        done = start + len(sources)
    return [*after, *live[done:]]


# --- by name


def test_strategy_by_name_has_the_options_given() -> None:
    assert strategy("levels", threshold=4) == Levels(threshold=4)
    assert strategy("auto", threshold=3, segment_bytes_max=MIB) == Auto(threshold=3, segment_bytes_max=MIB)
    assert [strategy(name).name for name in STRATEGIES] == ["auto", "levels", "log", "all"]


def test_strategy_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidError, match=r"'tiered' \(there are auto, levels, log, all\)"):
        strategy("tiered")


def test_strategy_option_of_another_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidError, match=r"'depth' \(it has threshold\)"):
        strategy("levels", depth=3)
    with pytest.raises(InvalidError, match=r"strategy all .* 'threshold' \(it has none\)"):
        strategy("all", threshold=3)


@pytest.mark.parametrize("name", ["auto", "levels"])
@pytest.mark.parametrize("threshold", [1, 0, -3])
def test_threshold_below_two_is_refused(name: str, threshold: int) -> None:
    with pytest.raises(InvalidError, match=rf"at least 2 segments: {threshold}$"):
        strategy(name, threshold=threshold)


def test_segment_bytes_max_below_two_is_refused() -> None:
    with pytest.raises(InvalidError, match="segment_bytes_max must be at least 2 bytes: 1"):
        Auto(segment_bytes_max=1)


def test_strategy_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Levels().threshold = 1  # type: ignore[misc]


# --- input that is no row of segments


@pytest.mark.parametrize("chosen", EVERY, ids=repr)
@pytest.mark.parametrize(
    ("ranges", "message", "bad"),
    [
        ([(1, 5), (9, 12)], "hole between them: seq 6 to 8", (6, 8)),
        ([(1, 5), (4, 9)], "overlap: seq 4 to 5", (4, 5)),
        ([(1, 9), (3, 4)], "overlap: seq 3 to 4", (3, 4)),
        ([(1, 5), (1, 5)], "overlap: seq 1 to 5", (1, 5)),
        ([(4, 5), (1, 9)], "overlap: seq 4 to 5", (4, 5)),
        ([(1, 5), (11, 20), (6, 10)], "hole between them: seq 6 to 10", (6, 10)),
        ([(6, 10), (1, 5)], "out of order, behind seq 10 comes seq 1 to 5", (1, 5)),
    ],
)
def test_segments_that_do_not_join_are_refused_with_the_range(
    chosen: Strategy, ranges: list[tuple[int, int]], message: str, bad: tuple[int, int]
) -> None:
    with pytest.raises(InvalidError, match=message) as caught:
        chosen.partition([Piece(first, last, 1) for first, last in ranges])
    assert (caught.value.fields["first_seq"], caught.value.fields["last_seq"]) == bad


@pytest.mark.parametrize("chosen", EVERY, ids=repr)
def test_segments_of_two_generations_are_refused(chosen: Strategy) -> None:
    live = [Piece(1, 5, 1, "a" * 16), Piece(6, 9, 1, "b" * 16)]
    with pytest.raises(InvalidError, match=r"generations, a{16} and b{16}: the second from seq 6 to 9"):
        chosen.partition(live)


@pytest.mark.parametrize(
    "stretches",
    [
        [None, Stretch(7, 2, 2), None],
        [None, Stretch(7, 1, 2), None],
        [Stretch(7, 1, 3), Stretch(7, 2, 3)],
        [Stretch(7, 1, 2), Stretch(8, 2, 2)],
    ],
)
@pytest.mark.parametrize("chosen", EVERY, ids=repr)
def test_stretch_without_all_its_parts_is_refused(chosen: Strategy, stretches: list[Stretch | None]) -> None:
    live = sized([9] * len(stretches))
    with pytest.raises(InvalidError, match=r"part \d of \d of a stretch is missing at seq"):
        chosen.partition(
            [piece._replace(stretch=stretch) for piece, stretch in zip(live, stretches, strict=True)]
        )


# --- what holds for all


@pytest.mark.parametrize("chosen", EVERY, ids=repr)
def test_no_segment_or_one_is_left_alone(chosen: Strategy) -> None:
    assert chosen.partition([]) == []
    assert chosen.partition(pieces([10])) == []


@pytest.mark.parametrize("chosen", EVERY, ids=repr)
@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, first=st.integers(1, 10**9), data=st.data())
def test_sets_are_neighbours_in_order_whatever_the_sizes(
    chosen: Strategy, sizes: list[int], first: int, data: st.DataObject
) -> None:
    spans = data.draw(st.lists(st.integers(1, 50), min_size=len(sizes), max_size=len(sizes)))
    live = pieces(spans, sizes, first) if sizes else []
    after = merged(chosen, live)
    assert sum(piece.bytes for piece in after) == sum(sizes)
    assert all(a.last_seq + 1 == b.first_seq for a, b in pairwise(after))


@pytest.mark.parametrize("chosen", EVERY, ids=repr)
@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 60)), max_size=30))
def test_parts_of_a_stretch_go_all_or_none(chosen: Strategy, counts: list[tuple[int, int]]) -> None:
    live: list[Piece] = []
    for nr, (parts, size) in enumerate(counts):
        for part in range(1, parts + 1):
            seq = len(live) + 1
            live.append(Piece(seq, seq, size, stretch=Stretch(nr, part, parts) if parts > 1 else None))
    for sources in chosen.partition(live):
        ids = {piece.stretch.id for piece in sources if piece.stretch}
        parts_of = [piece for piece in live if piece.stretch and piece.stretch.id in ids]
        assert [piece for piece in sources if piece.stretch] == parts_of
        assert len(sources) > len(parts_of) or len(ids) > 1


def test_entries_of_a_head_are_taken_as_they_are() -> None:
    live: list[SegmentEntry] = [entry_of(1, 40), entry_of(41, 50), entry_of(51, 60), entry_of(61, 70)]
    assert Levels(threshold=3).partition(live) == [tuple(live[1:])]
    assert All().partition(live) == [tuple(live)]
    with pytest.raises(InvalidError, match="overlap: seq 41 to 50"):
        All().partition([live[0], replace(live[1]), live[1]])


# --- worked examples


def test_all_makes_one() -> None:
    assert spans_after(All(), [10, 7, 21, 14]) == [52]


@pytest.mark.parametrize(
    ("count", "after"),
    [
        (1, [1]),
        (2, [1, 1]),
        (3, [1, 1, 1]),
        (4, [2, 1, 1]),
        (8, [4, 2, 1, 1]),
        (10, [5, 2, 1, 1, 1]),
        (64, [32, 16, 8, 4, 2, 1, 1]),
    ],
)
def test_log_makes_one_of_the_older_half_again_and_again(count: int, after: list[int]) -> None:
    assert spans_after(Log(), [1] * count) == after


@pytest.mark.parametrize(
    ("threshold", "spans", "after"),
    [
        (3, [10, 7, 21, 14], [52]),
        (3, [52, 5, 6, 4], [52, 15]),
        (3, [52, 15], [52, 15]),
        (3, [52, 15, 1], [52, 15, 1]),
        (3, [52, 15, 15], [52, 30]),
        (5, [20, 7, 14, 29], [20, 7, 14, 29]),
        (5, [20, 7, 14, 29, 11, 19], [100]),
        (5, [100, 5, 5, 5, 5, 2], [100, 22]),
        (3, [30, 1, 20, 5, 5], [61]),  # 5 + 5 < 20: but 20 is among those above the threshold
        (4, [9, 40, 3, 20, 5, 5], [9, 40, 33]),  # 9 would fit, but 40 is between: no hole
        (2, [4, 4], [8]),
        (2, [8, 4], [8, 4]),
    ],
)
def test_levels_take_the_newest_and_older_ones_no_larger(
    threshold: int, spans: list[int], after: list[int]
) -> None:
    assert spans_after(Levels(threshold=threshold), spans) == after


@settings(max_examples=100, deadline=None)
@given(spans=st.lists(st.integers(1, 100), max_size=60), threshold=st.integers(2, 12))
def test_levels_leave_no_more_than_the_threshold(spans: list[int], threshold: int) -> None:
    assert len(spans_after(Levels(threshold=threshold), spans)) <= threshold


# --- auto: examples with classes (1, 3], (3, 12], (12, 50], closed above 50


SMALL = Auto(threshold=4, segment_bytes_max=100)


@pytest.mark.parametrize(
    ("sizes", "after"),
    [
        pytest.param([1, 1, 1], [1, 1, 1], id="below the threshold nothing"),
        pytest.param([2, 2, 2, 2], [8], id="a full class becomes one of the next"),
        pytest.param([8, 8, 8, 2, 2, 2, 2], [32], id="and that may fill the next"),
        pytest.param([40, 8, 2, 2, 2], [40, 8, 2, 2, 2], id="sizes that fall are fine"),
        pytest.param([2] * 30, [60], id="many at once become one"),
        pytest.param([40, 40], [80], id="two that fill a closed one"),
        pytest.param([80, 2, 2, 80, 60], [80, 4, 80, 60], id="between closed ones all go together"),
        pytest.param([200, 60], [200, 60], id="what is closed stays"),
        pytest.param([2, 2, 2, 4], [10], id="small ones go into a larger that follows"),
        pytest.param([4, 2, 2, 4], [4, 8], id="and that without the larger before them"),
        pytest.param([30, 30, 30, 30], [60, 60], id="never above the maximum"),
        pytest.param([5, 5, 2, 2, 2, 8], [24], id="a class in which small ones count"),
        pytest.param([40, 40, 40, 80], [80, 40, 80], id="nor between closed ones"),
        pytest.param([45, *[12] * 5], [45, 60], id="nor with an older one"),
        pytest.param([12] * 12, [60, 60, 12, 12], id="what does not fill one waits"),
        pytest.param([4, *[3] * 14], [4, 42], id="an older one that became smaller waits"),
    ],
)
def test_auto_merges_by_size(sizes: list[int], after: list[int]) -> None:
    assert sizes_after(SMALL, sizes) == after


def test_auto_first_run_over_a_month_of_backups_makes_a_few() -> None:
    assert len(sizes_after(Auto(), [2 * KIB] * 43_200)) == 1
    assert len(sizes_after(Auto(segment_bytes_max=GIB), [MIB] * 43_200)) <= 100


# --- auto: what it guarantees


def classes(chosen: Auto, size: int) -> int:
    """How many classes there are from that of `size` bytes to the largest open one."""
    count = 0
    while size <= chosen.segment_bytes_max // 2:
        size *= chosen.threshold
        count += 1
    return count


def path_max(chosen: Auto, sizes: Sequence[int]) -> float:
    """Of segments of these sizes, before a compaction or after it."""
    if not sizes:
        return 0
    return 4 * sum(sizes) / chosen.segment_bytes_max + (chosen.threshold - 1) * classes(chosen, min(sizes))


def check_path(chosen: Auto, sizes: Sequence[int]) -> None:
    """The bound after a compaction, part by part: closed ones, what is between them, what is open."""
    closed = [nr for nr, size in enumerate(sizes) if size > chosen.segment_bytes_max // 2]
    begin = closed[-1] + 1 if closed else 0
    done, opened = sizes[:begin], sizes[begin:]
    assert all(
        a + b > chosen.segment_bytes_max
        for a, b in pairwise(done)
        if max(a, b) <= chosen.segment_bytes_max // 2
    )
    largest = list(accumulate(reversed(opened), max))
    counts = Counter(classes(chosen, size) for size in largest)
    assert max(counts.values(), default=0) < chosen.threshold
    assert len(opened) <= (chosen.threshold - 1) * classes(chosen, min(opened, default=0) or 10**12)
    assert len(sizes) <= path_max(chosen, sizes)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Auto, list[int]]:
    """A strategy, and sizes of all magnitudes up to twice its maximum: at random, falling, or a pattern that
    comes again and again."""
    magnitude = draw(st.integers(1, 20))
    largest = draw(st.integers(2, 1 + 2**magnitude))
    chosen = Auto(threshold=draw(st.integers(2, 9)), segment_bytes_max=largest)
    bits = st.integers(0, magnitude).flatmap(lambda power: st.integers(1, 2**power))
    size = st.one_of(bits, bits, st.integers(1 + largest // 4, 2 * largest))
    pattern = draw(st.lists(size, max_size=60))
    shape = draw(st.sampled_from(["random", "falling", "again"]))
    if shape == "again":
        return chosen, (pattern[:8] * 25)[:150]
    return chosen, sorted(pattern, reverse=True) if shape == "falling" else pattern


@settings(max_examples=300, deadline=None)
@given(case=cases())
def test_auto_path_is_short_whatever_came_before(case: tuple[Auto, list[int]]) -> None:
    chosen, sizes = case
    after = sizes_after(chosen, sizes)
    check_path(chosen, after)
    assert len(after) <= path_max(chosen, sizes)


@settings(max_examples=200, deadline=None)
@given(case=cases())
def test_auto_never_makes_a_segment_above_the_maximum(case: tuple[Auto, list[int]]) -> None:
    chosen, sizes = case
    for sources in chosen.partition(sized(sizes)):
        assert sum(piece.bytes for piece in sources) <= chosen.segment_bytes_max


@settings(max_examples=200, deadline=None)
@given(case=cases())
def test_auto_has_nothing_to_do_after_it_ran(case: tuple[Auto, list[int]]) -> None:
    chosen, sizes = case
    assert chosen.partition(merged(chosen, sized(sizes))) == []


class Traced(NamedTuple):
    """A segment that knows its originals: (bytes, how often they were written again)."""

    first_seq: int
    last_seq: int
    bytes: int
    originals: tuple[tuple[int, int], ...]
    generation: str = "1" * 16
    stretch: Stretch | None = None


def run_over(chosen: Auto, sizes: Sequence[int], every: Sequence[int]) -> list[Traced]:
    """Backups one by one, and a compaction after each so many as `every` says, over and over."""
    live: list[Traced] = []
    seq = turn = 0
    while seq < len(sizes):
        for size in sizes[seq : seq + every[turn % len(every)]]:
            seq += 1
            live.append(Traced(seq, seq, size, ((size, 0),)))
        turn += 1
        for sources in reversed(chosen.partition(live)):
            start = live.index(sources[0])
            originals = tuple((size, times + 1) for piece in sources for size, times in piece.originals)
            whole = Traced(
                sources[0].first_seq, sources[-1].last_seq, sum(s.bytes for s in sources), originals
            )
            live[start : start + len(sources)] = [whole]
        check_path(chosen, [piece.bytes for piece in live])
    return live


@settings(max_examples=200, deadline=None)
@given(case=cases(), every=st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_auto_writes_no_byte_again_more_often_than_it_says(
    case: tuple[Auto, list[int]], every: list[int]
) -> None:
    chosen, sizes = case
    for piece in run_over(chosen, sizes, every):
        for size, times in piece.originals:
            above = size > chosen.segment_bytes_max // 2
            assert times <= (0 if above else classes(chosen, size) + 1)


@pytest.mark.parametrize(
    ("threshold", "largest", "pattern", "every"),
    [
        (8, 1024, [1, 1, 1, 1, 1, 65, 1, 1], 8),
        (6, 93_312, [1, 1, 1, 1, 6, 7777, 216], 7),
        (8, 524_288, [1, 1, 1, 1, 1, 4097, 32_769], 7),
    ],
)
def test_auto_small_ones_between_do_not_drag_a_large_one_along(
    threshold: int, largest: int, pattern: list[int], every: int
) -> None:
    chosen = Auto(threshold=threshold, segment_bytes_max=largest)
    for piece in run_over(chosen, (pattern * 30)[:200], [every]):
        assert all(times <= classes(chosen, size) + 1 for size, times in piece.originals)


def test_auto_limit_of_rewrites_is_reached() -> None:
    chosen = Auto(threshold=3, segment_bytes_max=486)
    originals = [o for piece in run_over(chosen, [25, 1, 28, 1, 1] * 12, [1]) for o in piece.originals]
    assert any(times == classes(chosen, size) + 1 for size, times in originals)


@settings(max_examples=60, deadline=None)
@given(case=cases(), left=st.integers(1, 100))
def test_auto_path_stays_short_when_merges_drop_records(case: tuple[Auto, list[int]], left: int) -> None:
    chosen, sizes = case
    live: list[Piece] = []
    for seq, size in enumerate(sizes, 1):
        live.append(Piece(seq, seq, size))
        now = [piece.bytes for piece in live]
        live = merged(
            chosen, live, lambda sources: join(sources)._replace(bytes=1 + join(sources).bytes * left // 101)
        )
        assert len(live) <= path_max(chosen, now)


@settings(max_examples=60, deadline=None)
@given(threshold=st.integers(2, 9), size=st.integers(1, 1000), count=st.integers(1, 200))
def test_auto_acts_once_in_threshold_less_one_equal_backups(threshold: int, size: int, count: int) -> None:
    chosen = Auto(threshold=threshold, segment_bytes_max=GIB)
    live: list[Piece] = []
    acted = 0
    for seq in range(1, count + 1):
        live.append(Piece(seq, seq, size))
        before, live = len(live), merged(chosen, live)
        acted += len(live) < before
    assert acted <= count // (threshold - 1)


# --- the simulation


def test_simulation_counts_paths_bytes_and_requests() -> None:
    costs = simulate(workloads(240)["tiny"], strategy("all"), 60)
    assert [int(lengths.max()) for lengths in costs.lengths] == [60, 61, 61, 61]
    assert costs.rewritten == (60 + 120 + 180 + 240) * 2 * KIB == costs.fetched
    assert (costs.puts, costs.copies, costs.gets) == (4 + 4, 0, 4 + 60 + 3 * 61)
    assert costs.runs == costs.runs_that_merged == 4


def test_simulation_of_auto_writes_less_than_levels_do() -> None:
    sizes = workloads(7 * 1440)["bursty"]
    auto, levels = (simulate(sizes, strategy(name), 60) for name in ("auto", "levels"))
    assert auto.rewritten < levels.rewritten
