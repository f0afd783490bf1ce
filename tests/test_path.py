"""The restore path: the optimum under the rules, against brute force, and each rule by itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise, permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compactor.entries import SegmentEntry
from compactor.generations import Generation, Parent
from compactor.head import Head
from compactor.lineage import line_of, owner_of
from compactor.path import Step, exact_ranges, plan_path, route
from ourdb.errors import FencedError, NotFoundError
from ourdb.names import SegmentName
from ourdb.segment.summary import Run, Stretch

G1, G2, G3 = "1" * 16, "2" * 16, "3" * 16


def chain_at(seq: int, history: int = 0) -> int:
    return 0 if seq == 0 else (seq * 2654435761 + history) % 2**32


def entry(
    first: int,
    last: int,
    *runs: tuple[int, int],
    size: int = 100,
    generation: str = G1,
    history: int = 0,
    part: tuple[int, int, int] | None = None,
) -> SegmentEntry:
    """A segment; without runs it is exact all over. part: (stretch, part, parts)."""
    known_before = not part or part[1] == 1
    known_after = not part or part[1] == part[2]
    entry.count = getattr(entry, "count", 0) + 1  # type: ignore[attr-defined]
    name = SegmentName(
        last_seq=last,
        first_seq=first,
        last_time=last % 10**9 * 10,
        first_time=first % 10**9 * 10,
        horizon=(runs[-1][0] if runs else 0 if part else first),
        chain_before=chain_at(first - 1, history) if known_before else None,
        chain_after=chain_at(last, history) if known_after else None,
        made=1,
        random=entry.count,  # type: ignore[attr-defined]
    )
    exact = tuple(
        Run(
            first_seq=a,
            last_seq=b,
            first_time=a * 10,
            last_time=b * 10,
            next_time=None if b == last else b * 10 + 10,
            chain_before=chain_at(a - 1, history),
            chain_after=chain_at(b, history),
            highest_before=None if a == 1 else 1,
        )
        for a, b in runs
    )
    return SegmentEntry(
        generation=generation,
        file_name=name.format(),
        bytes=size,
        index_bytes=10,
        records=last - first + 1,
        highest_id=1,
        highest_before=None if first == 1 else 1,
        runs=exact if runs or part else None,
        stretch=Stretch(*part) if part else None,
    )


def ranges(path: list[Step] | None) -> list[tuple[int, int, int, int]] | None:
    return path and [(s.segment.first_seq, s.segment.last_seq, s.after, s.upto) for s in path]


Unit = tuple[SegmentEntry, ...]  # what a path uses all or none of: a segment, or the parts of a stretch


def units(segments: list[SegmentEntry]) -> list[Unit]:
    """Every segment, and every way to choose the parts of a whole stretch."""
    found: list[Unit] = [(s,) for s in segments if not s.stretch]
    for number, count in {(s.stretch.id, s.stretch.parts) for s in segments if s.stretch}:
        choices = [
            [s for s in segments if s.stretch == Stretch(number, part, count)] for part in range(1, count + 1)
        ]
        found += [
            unit
            for unit in product(*choices)
            if all(a.last_seq + 1 == b.first_seq for a, b in pairwise(unit))
        ]
    return found


def known_chains(unit: Unit) -> set[int]:
    known = {unit[0].first_seq - 1}
    for run in (run for segment in unit for run in segment.exact_runs):
        known.update(range(run.first_seq - 1, run.last_seq + 1))
    return known


def exact_seqs(unit: Unit) -> set[int]:
    runs = [run for segment in unit for run in segment.exact_runs]
    return {seq for run in runs for seq in range(run.first_seq, run.last_seq + 1)}


def joins(before: Unit, after: Unit) -> list[int]:
    """Every seq at which two units may be joined, by the rules as they stand in the module's text."""
    end, first = before[-1].last_seq, after[0].first_seq
    if not before[0].first_seq < first <= end + 1 or end >= after[-1].last_seq:
        return []
    if first == end + 1:
        return [end] if before[-1].name.chain_after == after[0].name.chain_before else []
    found = [end] if end in known_chains(after) else []
    return found + ([first - 1] if first - 1 in exact_seqs(before) else [])


def brute_force(segments: list[SegmentEntry], start: int, target: int) -> tuple[int, int] | None:
    """The least (segments, bytes) over all sequences of units, with every choice of joins."""
    usable = [
        unit
        for unit in units(segments)
        if unit[0].first_seq > start and (unit[-1].last_seq < target or target in exact_seqs(unit))
    ]
    costs = []
    for count in range(1, len(usable) + 1):
        for path in permutations(usable, count):
            if path[0][0].first_seq != start + 1 or path[0][0].name.chain_before != chain_at(start):
                continue
            if path[-1][-1].last_seq < target or any(unit[-1].last_seq >= target for unit in path[:-1]):
                continue
            pairs = [joins(a, b) for a, b in pairwise(path)]
            if any(all(a < b for a, b in pairwise(js)) for js in product(*pairs)):
                used = [segment for unit in path for segment in unit]
                costs.append((len(used), sum(segment.bytes for segment in used)))
        if costs and count >= min(costs)[0]:
            break
    return min(costs, default=None)


def cost_of(path: list[Step] | None, segments: list[SegmentEntry]) -> tuple[int, int] | None:
    """Segments and bytes of a path, None for no path. All parts of a stretch count, also where it is joined
    behind its first ones."""
    if path is None:
        return None
    used = [step.segment for step in path]
    for stretch in {segment.stretch.id: segment.stretch for segment in used if segment.stretch}.values():
        for part in (replace(stretch, part=part + 1) for part in range(stretch.parts)):
            if part not in [segment.stretch for segment in used]:
                used.append(min((s for s in segments if s.stretch == part), key=lambda s: s.bytes))
    return len(used), sum(segment.bytes for segment in used)


@st.composite
def segment_sets(draw: st.DrawFn) -> list[SegmentEntry]:
    top = draw(st.integers(4, 14))
    found = []
    for _ in range(draw(st.integers(1, 7))):
        first = draw(st.integers(1, top))
        last = draw(st.integers(first, min(top, first + 8)))
        runs: list[tuple[int, int]] = []
        if draw(st.booleans()):
            at = first
            while at < last - 1 and draw(st.booleans()):
                a = draw(st.integers(at, last - 2))
                b = draw(st.integers(a, last - 2))
                runs.append((a, b))
                at = b + 2
            runs.append((last, last))
        history = draw(st.sampled_from([0, 0, 0, 0, 0, 1]))
        found.append(entry(first, last, *runs, size=draw(st.integers(1, 50)), history=history))
    return found


@st.composite
def stretch_sets(draw: st.DrawFn) -> list[SegmentEntry]:
    """Segments that begin and end at few places, so that they are nested, doubled and end alike; and one or
    two stretches, of which a part may be missing or there twice."""
    cuts = sorted(draw(st.sets(st.integers(1, 11), min_size=2, max_size=4)) | {0, 12})
    found = []
    for _ in range(draw(st.integers(1, 4))):
        first = draw(st.sampled_from(cuts[:-1]))
        last = draw(st.sampled_from([cut for cut in cuts if cut > first]))
        runs = draw(st.sampled_from([[], [(last, last)], [(first + 1, first + 1), (last, last)]]))
        overlap = any(a == b for a, b in runs[1:]) and first + 1 >= last - 1
        found.append(entry(first + 1, last, *([(last, last)] if overlap else runs), size=draw(SIZES)))
    for number in range(draw(st.integers(1, 2))):
        bounds = draw(st.sets(st.sampled_from(cuts), min_size=3, max_size=3).map(sorted))
        for part, (before, last) in enumerate(pairwise(bounds), 1):
            runs = [(last, last)] if part == 2 else []
            for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2]))):
                found.append(entry(before + 1, last, *runs, size=draw(SIZES), part=(number, part, 2)))
    return found[:7]


SIZES = st.integers(1, 50)


@settings(max_examples=400, deadline=None)
@given(st.one_of(segment_sets(), stretch_sets()), st.integers(0, 2), st.integers(1, 14))
def test_any_set_of_segments_gives_the_optimum_of_brute_force(segments, start, target):
    if target <= start:
        return
    path = plan_path(segments, start, target, chain=chain_at(start))
    assert cost_of(path, segments) == brute_force(segments, start, target)
    if path:
        assert [s.after for s in path] == [start] + [s.upto for s in path[:-1]]
        assert path[-1].upto == target
        assert all(s.after < s.upto for s in path)
        for a, b in pairwise(path):
            if not a.segment.stretch and not b.segment.stretch:
                assert a.upto in joins((a.segment,), (b.segment,))


@settings(max_examples=150, deadline=None)
@given(segment_sets(), segment_sets(), st.integers(1, 8), st.integers(1, 14))
def test_a_route_through_an_ancestor_is_the_optimum_of_both_parts(own, inherited, left_at, target):
    """The child left its parent at `left_at`; what the parent wrote behind it is not the child's."""
    child = [replace(s, generation=G2) for s in own]
    there = view(inherited + child, generation(G1, None, 14), generation(G2, (G1, left_at), 14))
    before = brute_force(inherited, 0, min(left_at, target))
    after = brute_force(own, left_at, target) if target > left_at else (0, 0)
    wanted = (before[0] + after[0], before[1] + after[1]) if before and after else None
    assert cost_of(route(there, G2, target), child) == wanted
    assert cost_of(route(there, G1, target), inherited) == brute_force(inherited, 0, target)


@settings(max_examples=200, deadline=None)
@given(segment_sets())
def test_exact_ranges_are_the_targets_that_have_a_path(segments):
    reached = {
        seq
        for found in exact_ranges(segments, 0, 0)
        for seq in range(found.first_seq, found.run.last_seq + 1)
    }
    assert reached == {t for t in range(1, 15) if plan_path(segments, 0, t, chain=0)}


def test_segments_in_a_row_are_all_used():
    segments = [entry(1, 10), entry(11, 20), entry(21, 30)]
    assert ranges(plan_path(segments, 0, 25)) == [(1, 10, 0, 10), (11, 20, 10, 20), (21, 30, 20, 25)]


def test_a_merged_segment_is_taken_instead_of_its_sources():
    segments = [entry(1, 10), entry(11, 20), entry(1, 20, (15, 20)), entry(21, 30)]
    assert ranges(plan_path(segments, 0, 30)) == [(1, 20, 0, 20), (21, 30, 20, 30)]


def test_a_target_before_the_horizon_is_reached_by_the_sources():
    segments = [entry(1, 10), entry(11, 20), entry(1, 20, (15, 20))]
    assert ranges(plan_path(segments, 0, 12)) == [(1, 10, 0, 10), (11, 20, 10, 12)]


def test_of_equally_many_segments_the_smaller_ones_are_taken():
    segments = [entry(1, 10, size=9), entry(1, 12, size=5), entry(11, 20, size=9), entry(13, 20, size=8)]
    assert ranges(plan_path(segments, 0, 20)) == [(1, 12, 0, 12), (13, 20, 12, 20)]


def test_a_gap_gives_no_path():
    assert plan_path([entry(1, 10), entry(12, 20)], 0, 20) is None


def test_an_inexact_target_gives_no_path():
    assert plan_path([entry(1, 20, (20, 20))], 0, 12) is None


def test_a_pin_inside_a_merged_segment_is_reached():
    assert ranges(plan_path([entry(1, 20, (7, 7), (20, 20))], 0, 7)) == [(1, 20, 0, 7)]


def test_a_segment_that_reaches_beyond_and_is_not_exact_at_the_target_is_not_used():
    segments = [entry(1, 20, (7, 7), (20, 20)), entry(8, 12)]
    assert plan_path(segments, 0, 12) is None


def test_chains_that_differ_do_not_join():
    assert plan_path([entry(1, 10), entry(11, 20, history=1)], 0, 20) is None


def test_a_start_of_another_chain_is_not_joined():
    assert plan_path([entry(11, 20)], 10, 20, chain=5) is None
    assert ranges(plan_path([entry(11, 20)], 10, 20, chain=chain_at(10))) == [(11, 20, 10, 20)]


def test_overlap_joins_behind_the_earlier_one_if_the_later_one_knows_the_chain_there():
    segments = [entry(1, 12, (12, 12)), entry(8, 20)]
    assert ranges(plan_path(segments, 0, 20)) == [(1, 12, 0, 12), (8, 20, 12, 20)]


def test_overlap_joins_before_the_later_one_if_the_earlier_one_is_exact_there():
    segments = [entry(1, 12), entry(8, 20, (20, 20))]
    assert ranges(plan_path(segments, 0, 20)) == [(1, 12, 0, 7), (8, 20, 7, 20)]


def test_overlap_of_two_segments_that_know_no_common_chain_is_not_joined():
    assert plan_path([entry(1, 12, (12, 12)), entry(8, 20, (20, 20))], 0, 20) is None


def test_joins_that_would_go_backwards_are_not_taken():
    segments = [entry(1, 50, (50, 50)), entry(30, 60), entry(40, 100, (100, 100))]
    assert plan_path(segments, 0, 100) is None


def test_all_parts_of_a_stretch_are_used_together():
    parts = [
        entry(1, 5, part=(7, 1, 3)),
        entry(6, 10, part=(7, 2, 3)),
        entry(11, 20, (20, 20), part=(7, 3, 3)),
    ]
    path = plan_path([*parts, entry(21, 30)], 0, 25)
    assert ranges(path) == [(1, 5, 0, 5), (6, 10, 5, 10), (11, 20, 10, 20), (21, 30, 20, 25)]


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_stretch_without_one_of_its_parts_is_not_used(missing):
    parts = [
        entry(1, 5, part=(7, 1, 3)),
        entry(6, 10, part=(7, 2, 3)),
        entry(11, 20, (20, 20), part=(7, 3, 3)),
    ]
    del parts[missing]
    assert plan_path(parts, 0, 20) is None


def test_parts_count_as_many_segments():
    parts = [entry(1, 5, part=(7, 1, 2)), entry(6, 10, (10, 10), part=(7, 2, 2))]
    assert ranges(plan_path([*parts, entry(1, 10, size=900)], 0, 10)) == [(1, 10, 0, 10)]


def test_a_segment_that_is_left_out_is_gone_around():
    whole = entry(1, 20)
    segments = [whole, entry(1, 10), entry(11, 20)]
    assert ranges(plan_path(segments, 0, 20, without={whole.key})) == [(1, 10, 0, 10), (11, 20, 10, 20)]


def test_a_seq_above_32_bits_is_no_problem():
    base = 2**60
    segments = [entry(base + 1, base + 5), entry(base + 6, base + 9)]
    assert ranges(plan_path(segments, base, base + 9)) == [
        (base + 1, base + 5, base, base + 5),
        (base + 6, base + 9, base + 5, base + 9),
    ]


@dataclass
class FakeView:
    head: Head
    segments: tuple[SegmentEntry, ...]


def generation(
    name: str, parent: tuple[str, int] | None, last: int, successor: str | None = None
) -> Generation:
    return Generation(
        id=name,
        parent=Parent(*parent, chain_at(parent[1])) if parent else None,
        last_seq=last,
        last_time=last * 10,
        chain=chain_at(last),
        highest_id=1,
        as_of=last * 10,
        successor=successor,
    )


def view(segments: list[SegmentEntry], *generations: Generation) -> FakeView:
    head = Head(
        uuid="0" * 32,
        namespace="n",
        revision=1,
        run="0" * 16,
        host="h",
        config={},
        generations={g.id: g for g in generations},
    )
    return FakeView(head, tuple(sorted(segments, key=lambda s: s.order)))


def restored_copy() -> FakeView:
    """G1 to 30, left by G2 at 20, which G3 left at 25."""
    segments = [entry(1, 10), entry(11, 30), entry(21, 40, generation=G2), entry(26, 50, generation=G3)]
    return view(
        segments,
        generation(G1, None, 30, G2),
        generation(G2, (G1, 20), 40, G3),
        generation(G3, (G2, 25), 50),
    )


@pytest.mark.parametrize(
    ("name", "target", "wanted"),
    [
        (G3, 45, [(1, 10, 0, 10), (11, 30, 10, 20), (21, 40, 20, 25), (26, 50, 25, 45)]),
        (G3, 22, [(1, 10, 0, 10), (11, 30, 10, 20), (21, 40, 20, 22)]),
        (G3, 5, [(1, 10, 0, 5)]),
        (G2, 40, [(1, 10, 0, 10), (11, 30, 10, 20), (21, 40, 20, 40)]),
        (G1, 30, [(1, 10, 0, 10), (11, 30, 10, 30)]),
    ],
)
def test_route_goes_through_ancestors_up_to_where_they_were_left(name, target, wanted):
    assert ranges(route(restored_copy(), name, target)) == wanted


def test_route_needs_the_branch_point_to_be_exact():
    segments = [entry(1, 30, (30, 30)), entry(21, 40, generation=G2)]
    there = view(segments, generation(G1, None, 30), generation(G2, (G1, 20), 40))
    assert route(there, G2, 40) is None
    assert ranges(route(there, G1, 30)) == [(1, 30, 0, 30)]


def test_a_generation_does_not_use_its_siblings_segments():
    there = view([entry(1, 10), entry(11, 20)], generation(G1, None, 20), generation(G2, (G1, 10), 20))
    assert route(there, G2, 20) is None


def test_owner_is_the_generation_that_wrote_the_seq():
    head = restored_copy().head
    assert [owner_of(head, G3, seq).id for seq in (1, 20, 21, 25, 26)] == [G1, G1, G2, G2, G3]


def test_a_parent_that_the_head_does_not_have_is_an_error():
    there = view([], generation(G2, (G1, 10), 20))
    with pytest.raises(NotFoundError) as caught:
        route(there, G2, 5)
    assert caught.value.kind == "no_generation"


def test_two_open_lines_without_a_choice_are_an_error_that_lists_both():
    head = view([], generation(G1, None, 30), generation(G2, (G1, 20), 40)).head
    with pytest.raises(FencedError) as caught:
        line_of(head)
    assert caught.value.kind == "two_lines"
    assert [g["generation"] for g in caught.value.fields["generations"]] == [G1, G2]
    chosen = line_of(head, G2)
    assert chosen is not None
    assert chosen.id == G2


def test_an_unknown_generation_is_an_error_that_names_those_there_are():
    head = view([], generation(G1, None, 30)).head
    with pytest.raises(NotFoundError, match=G1):
        line_of(head, G3)


def test_the_open_line_is_the_one_without_successor():
    line = line_of(restored_copy().head)
    assert line is not None
    assert line.id == G3
    assert line_of(replace(restored_copy().head, generations={})) is None
