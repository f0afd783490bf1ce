"""The next head, computed on the one it follows: rules 3 to 6, and what a head carries on."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from compactor.entries import Gone, SegmentEntry
from compactor.follow import Change, Writer, follow
from compactor.generations import Began, Forgotten, Generation, Parent, Pin
from compactor.head import Head, Known, Needs, decode_head, encode_head
from compactor.lineage import began_with
from compactor.view import View, may_name
from ourdb.errors import Error, FencedError, UnknownFormatError
from ourdb.names import LISTS_PREFIX, list_key, parse_key
from tests.lines import CONFIG, GEN, OTHER, THIRD, UUID, chain_at, end_of, entry_of

WRITER = Writer(uuid=UUID, namespace="n", config=CONFIG, host="here")


def view_with(*entries: SegmentEntry, last: int | None = None, revision: int = 7, **changes: object) -> View:
    """A head that names these segments of GEN, and ends where the last one does."""
    ends = [entry.last_seq for entry in entries if entry.generation == GEN]
    head = Head(
        uuid=UUID,
        namespace="n",
        revision=revision,
        run="1" * 16,
        host="here",
        config=CONFIG,
        generations={GEN: end_of(last if last is not None else max(ends, default=0))},
        added=entries,
    )
    head = replace(head, **changes)  # type: ignore[arg-type]
    return View(
        head=head, etag="e", written_ms=777, read_ms=778, acknowledged=True, data=encode_head(head), stored={}
    )


def refused(view: View | None, change: Change, text: str) -> None:
    with pytest.raises(Error, match=text) as caught:
        follow(view, WRITER, change)
    assert caught.value.kind == "not_following"


# -- rule 1 and the fields


def test_the_first_head_has_revision_one_and_says_whose_it_is() -> None:
    head = follow(None, WRITER, Change(add=[entry_of(1, 3)], generations={GEN: end_of(3)})).head
    assert (head.revision, head.uuid, head.namespace, head.config) == (1, UUID, "n", CONFIG)
    assert head.kept == Known(0, "")


def test_each_head_has_the_next_revision_and_a_run_id_of_its_own() -> None:
    view = view_with(entry_of(1, 3))
    drafts = [follow(view, WRITER, Change()) for _ in range(2)]
    assert [draft.head.revision for draft in drafts] == [8, 8]
    assert drafts[0].head.run != drafts[1].head.run
    assert drafts[0].data != drafts[1].data  # the ETag is the MD5 in many stores


def test_what_nobody_changes_is_carried_on() -> None:
    view = view_with(
        entry_of(1, 3),
        policy={"window_ms": 9, "later": 1},
        pins=(Pin(name="p", generation=GEN, seq=2, time=20, extra={"later": 2}),),
        extra={"later": 3},
        needs=Needs(),
    )
    head = follow(view, WRITER, Change()).head
    assert (head.policy, head.pins, head.extra) == (view.head.policy, view.head.pins, view.head.extra)
    assert head.generations == view.head.generations


def test_kept_is_the_newest_head_that_the_writer_knew_and_never_one_of_another_line() -> None:
    view = view_with(entry_of(1, 3), kept=Known(4, "4" * 16))
    assert follow(view, WRITER, Change()).head.kept == Known(4, "4" * 16)
    known = replace(WRITER, known=view.head.known)
    assert follow(view, known, Change()).head.kept == view.head.known
    ahead = replace(WRITER, known=Known(90, "9" * 16))
    assert follow(view, ahead, Change()).head.kept == Known(4, "4" * 16)


def test_another_database_on_the_same_name_is_refused() -> None:
    with pytest.raises(FencedError) as caught:
        follow(view_with(entry_of(1, 3)), replace(WRITER, uuid="0" * 32), Change())
    assert caught.value.kind == "other_database"


def test_a_head_that_needs_a_newer_writer_is_not_followed() -> None:
    with pytest.raises(UnknownFormatError):
        follow(view_with(entry_of(1, 3), needs=Needs(write=("later",))), WRITER, Change())


def test_a_single_writers_head_is_followed_on_its_host_or_after_a_take_over_only() -> None:
    view = view_with(entry_of(1, 3), single_writer=True, host="there")
    with pytest.raises(FencedError) as caught:
        follow(view, WRITER, Change())
    assert caught.value.kind == "other_host"
    assert follow(view, replace(WRITER, take_host=True), Change()).head.host == "here"
    assert follow(view, replace(WRITER, host="there"), Change()).head.single_writer


def test_a_new_start_has_a_revision_and_a_floor_above_all_that_anybody_knew() -> None:
    change = Change(generations={OTHER: end_of(0, generation=OTHER)}, revision_at_least=10**15)
    for view in (None, view_with(entry_of(1, 3))):
        draft = follow(view, WRITER, change)
        assert (draft.head.revision, draft.head.floor, draft.anew) == (10**15, 10**15, True)


# -- rule 3: new segments join


def test_a_backup_that_joins_is_taken() -> None:
    view = view_with(entry_of(1, 3))
    change = Change(add=[entry_of(6, 9, made=7), entry_of(4, 5, made=7)], generations={GEN: end_of(9)})
    assert follow(view, WRITER, change).head.generations[GEN].last_seq == 9


@pytest.mark.parametrize(
    ("entries", "end", "text"),
    [
        ([entry_of(5, 6, made=7)], end_of(6), "does not join at seq 3"),
        ([entry_of(3, 6, made=7)], end_of(6), "does not join at seq 3"),
        ([entry_of(4, 6, made=7, salt=1)], end_of(6, salt=1), "does not join at seq 3"),
        ([entry_of(4, 6, made=7), entry_of(8, 9, made=7)], end_of(9), "does not join at seq 6"),
        ([entry_of(4, 6, made=7)], end_of(7), "does not end where its segments do"),
        ([entry_of(4, 6, made=7)], end_of(6, salt=1), "does not end where its segments do"),
        ([], end_of(6), "grows without a segment"),
    ],
)
def test_a_backup_that_does_not_join_is_refused(
    entries: list[SegmentEntry], end: Generation, text: str
) -> None:
    refused(view_with(entry_of(1, 3)), Change(add=entries, generations={GEN: end}), text)


def test_segments_of_an_unknown_generation_are_refused() -> None:
    refused(view_with(entry_of(1, 3)), Change(add=[entry_of(1, 2, generation=OTHER, made=7)]), "not in it")


def test_a_condensed_log_ships_itself_with_the_exactness_that_it_has() -> None:
    entry = entry_of(1, 9, runs=[(4, 5), (9, 9)])
    head = follow(None, WRITER, Change(add=[entry], generations={GEN: end_of(9)})).head
    assert head.added == (entry,)
    short = entry_of(1, 8, runs=[(4, 5), (8, 8)])
    refused(None, Change(add=[short], generations={GEN: end_of(9)}), "no path leads to the end")


# -- rule 3: nothing that is protected is lost


def merge(view: View, *dropped: SegmentEntry, into: SegmentEntry, **changes: object) -> Change:
    return Change(add=[into], drop=[entry.key for entry in dropped], **changes)  # type: ignore[arg-type]


def test_an_exact_merge_takes_the_place_of_its_sources() -> None:
    a, b, c = entry_of(1, 3), entry_of(4, 6), entry_of(7, 9)
    view = view_with(a, b, c)
    merged = entry_of(1, 6, made=7, level=1)
    draft = follow(view, WRITER, merge(view, a, b, into=merged))
    assert draft.head.added == (c, merged)
    assert {gone.key for gone in draft.head.gone} == {a.key, b.key}


def test_a_merge_that_gives_up_points_of_the_window_is_refused() -> None:
    a, b = entry_of(1, 3), entry_of(4, 6)
    view = view_with(a, b)
    merged = entry_of(1, 6, made=7, level=1, runs=[(5, 6)])
    refused(view, merge(view, a, b, into=merged), "protected would be lost, in seq 1 to 6")
    refused(view, merge(view, a, b, into=merged, horizons={GEN: 4}), "protected would be lost, in seq 4 to 6")
    assert follow(view, WRITER, merge(view, a, b, into=merged, horizons={GEN: 5})).head.added == (merged,)


def test_a_merge_that_was_computed_before_a_pin_does_not_lose_the_point() -> None:
    a, b = entry_of(1, 3), entry_of(4, 6)
    merged = entry_of(1, 6, made=7, level=1, runs=[(6, 6)])
    before = view_with(a, b)
    assert follow(before, WRITER, merge(before, a, b, into=merged, horizons={GEN: 6})).head.gone
    after = view_with(a, b, pins=(Pin(name="p", generation=GEN, seq=2, time=20),))
    refused(
        after, merge(after, a, b, into=merged, horizons={GEN: 6}), "pin or branch point would be lost: seq 2"
    )
    exact = entry_of(1, 6, made=7, level=1, runs=[(2, 2), (6, 6)])
    assert follow(after, WRITER, merge(after, a, b, into=exact, horizons={GEN: 6})).head.added == (exact,)


def test_a_merge_does_not_lose_the_point_where_a_child_left() -> None:
    a, b = entry_of(1, 3), entry_of(4, 6)
    child = end_of(8, generation=OTHER, parent=Parent(GEN, 5, chain_at(5)))
    view = view_with(
        a, b, entry_of(6, 8, generation=OTHER), generations={GEN: end_of(6, successor=OTHER), OTHER: child}
    )
    merged = entry_of(1, 6, made=7, level=1, runs=[(6, 6)])
    refused(view, merge(view, a, b, into=merged, horizons={GEN: 6}), "branch point would be lost: seq 5")


@pytest.mark.parametrize(
    "into",
    [
        entry_of(1, 5, made=7, level=1),
        entry_of(2, 6, made=7, level=1),
        entry_of(1, 6, made=7, level=1, salt=1),
    ],
)
def test_a_merge_that_leaves_a_gap_or_does_not_join_is_refused(into: SegmentEntry) -> None:
    a, b, c = entry_of(1, 3), entry_of(4, 6), entry_of(7, 9)
    view = view_with(a, b, c)
    refused(view, merge(view, a, b, into=into, horizons={GEN: 9}), "would be lost|no path leads")


def test_a_merge_of_sources_that_another_merge_has_replaced_is_refused() -> None:
    a, b = entry_of(1, 3), entry_of(4, 6)
    view = view_with(entry_of(1, 6, level=1))
    refused(view, merge(view, a, b, into=entry_of(1, 6, made=7, level=1)), "is not live")


def test_a_pin_on_a_point_that_is_not_offered_is_refused() -> None:
    view = view_with(entry_of(1, 9, level=1, runs=[(4, 5), (9, 9)]))
    pins = tuple(Pin(name=str(seq), generation=GEN, seq=seq, time=seq * 10) for seq in (4, 9))
    assert follow(view, WRITER, Change(pins=pins)).head.pins == pins
    refused(view, Change(pins=(Pin(name="x", generation=GEN, seq=6, time=60),)), "is not offered: seq 6")


# -- generations


def child_of(seq: int, *, salt: int = 0) -> Generation:
    return end_of(9, generation=OTHER, parent=Parent(GEN, seq, chain_at(seq, salt)))


def test_a_child_leaves_its_parent_where_the_store_has_it_exactly() -> None:
    view = view_with(entry_of(1, 3), entry_of(4, 6, level=1, runs=[(6, 6)]))
    add = [entry_of(7, 9, generation=OTHER, made=7)]
    for seq in (4, 5):
        more = [entry_of(seq + 1, 9, generation=OTHER, made=7)]
        refused(view, Change(add=more, generations={OTHER: child_of(seq)}), f"is not offered: seq {seq}")
    taken = Change(add=add, generations={GEN: end_of(6, successor=OTHER), OTHER: child_of(6)})
    assert follow(view, WRITER, taken).head.generations[GEN].successor == OTHER


def test_a_child_leaves_its_parent_at_a_seq_that_it_owns() -> None:
    grandchild = end_of(9, generation=THIRD, parent=Parent(OTHER, 5, chain_at(5)))
    view = view_with(
        entry_of(1, 6),
        entry_of(7, 8, generation=OTHER),
        generations={GEN: end_of(6), OTHER: end_of(8, generation=OTHER, parent=Parent(GEN, 6, chain_at(6)))},
    )
    add = [entry_of(6, 9, generation=THIRD, made=7)]
    refused(view, Change(add=add, generations={THIRD: grandchild}), "a seq that it does not own")


def test_a_child_whose_first_segment_has_another_chain_is_refused() -> None:
    add = [entry_of(4, 9, generation=OTHER, made=7, salt=1)]
    end = replace(child_of(3), chain=chain_at(9, 1))
    refused(view_with(entry_of(1, 3)), Change(add=add, generations={OTHER: end}), "no path leads to the end")


def test_a_child_that_says_another_chain_than_its_parent_has_is_refused() -> None:
    add = [entry_of(4, 9, generation=OTHER, made=7, salt=1)]
    end = replace(child_of(3, salt=1), chain=chain_at(9, 1))
    refused(view_with(entry_of(1, 3)), Change(add=add, generations={OTHER: end}), "another chain")


def test_a_generation_that_was_taken_over_does_not_go_on() -> None:
    ends = {
        GEN: end_of(3, successor=OTHER),
        OTHER: end_of(3, generation=OTHER, parent=Parent(GEN, 3, chain_at(3))),
    }
    view = view_with(entry_of(1, 3), generations=ends)
    more = Change(add=[entry_of(4, 5, made=7)], generations={GEN: end_of(5, successor=OTHER)})
    refused(view, more, "was taken over")
    refused(view, Change(generations={GEN: end_of(3)}), "was taken over")


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (end_of(2), "go back"),
        (replace(end_of(3), as_of=1), "go back"),
        (end_of(3, salt=1), "chain of generation"),
    ],
)
def test_a_generation_never_goes_back(end: Generation, text: str) -> None:
    refused(view_with(entry_of(1, 3)), Change(generations={GEN: end}), text)


def test_a_generation_is_taken_over_by_a_new_one_only() -> None:
    view = view_with(entry_of(1, 3), generations={GEN: end_of(3), OTHER: end_of(0, generation=OTHER)})
    refused(view, Change(generations={GEN: end_of(3, successor=OTHER)}), "is there already")


# -- lines that are cut, forgotten, or hold what lay before them


def superseded(**changes: object) -> View:
    """GEN has 1..9; OTHER took over at 4 and wrote 5..8."""
    ends = {
        GEN: end_of(9, successor=OTHER),
        OTHER: end_of(8, generation=OTHER, parent=Parent(GEN, 4, chain_at(4))),
    }
    entries = (entry_of(1, 5), entry_of(6, 9), entry_of(5, 8, generation=OTHER))
    return view_with(*entries, **{"generations": ends, **changes})


def kept_to(view: View, seq: int | None, **changes: object) -> Change:
    cut = replace(view.head.generations[GEN], kept_to=seq)
    return Change(generations={GEN: cut}, **changes)  # type: ignore[arg-type]


def test_a_superseded_line_is_cut_behind_what_is_marked() -> None:
    view = superseded()
    late = view.segments[1]
    draft = follow(view, WRITER, kept_to(view, 4, drop=[late.key]))
    assert draft.head.generations[GEN].end_seq == 4
    assert {gone.key for gone in draft.head.gone} == {late.key}
    assert draft.head.needs.read == ("lines",)
    assert decode_head(draft.data, "n") == draft.head
    lower = superseded(
        generations={**view.head.generations, GEN: replace(end_of(9, successor=OTHER), kept_to=6)}
    )
    assert follow(lower, WRITER, kept_to(lower, 4)).head.needs.read == ("lines",)


def test_a_cut_never_takes_what_is_marked_and_is_never_taken_back() -> None:
    refused(superseded(), kept_to(superseded(), 3), "branch point would be lost: seq 4")
    pinned = superseded(pins=(Pin(name="p", generation=GEN, seq=7, time=70),))
    refused(pinned, kept_to(pinned, 6), "branch point would be lost: seq 7")
    ends = superseded().head.generations
    view = superseded(generations={**ends, GEN: replace(ends[GEN], kept_to=5)})
    refused(view, kept_to(view, 6), "would come back")
    refused(view, kept_to(view, None), "would come back")


def test_a_cut_does_not_take_what_is_kept() -> None:
    view = superseded()
    refused(view, kept_to(view, 6, drop=[view.segments[1].key]), "no path leads to the end")
    refused(view, kept_to(view, 4, drop=[view.segments[0].key]), "no path leads to the end")


def test_a_pin_behind_a_cut_is_not_offered() -> None:
    ends = superseded().head.generations
    view = superseded(generations={**ends, GEN: replace(ends[GEN], kept_to=4)})
    refused(view, Change(pins=(Pin(name="p", generation=GEN, seq=5, time=50),)), "is not offered|lost")


def test_a_cut_ends_at_a_point_that_is_offered() -> None:
    ends = {GEN: end_of(9), OTHER: end_of(8, generation=OTHER)}
    entries = (entry_of(1, 9, runs=[(5, 5), (9, 9)], level=1), entry_of(1, 8, generation=OTHER))
    view = view_with(*entries, generations=ends)
    refused(view, kept_to(view, 4), "no path leads to the end")
    assert follow(view, WRITER, kept_to(view, 5)).head.generations[GEN].end_seq == 5


def test_a_generation_has_the_chain_of_its_last_segment() -> None:
    view = view_with(entry_of(1, 5))
    wrong = replace(end_of(7), chain=chain_at(7) ^ 1)
    for pins in (None, ()):  # the short check, and the long one
        change = Change(add=[entry_of(6, 7, made=7)], generations={GEN: wrong}, pins=pins)
        refused(view, change, "does not end where|no path leads to the end")


def test_where_its_own_records_begin_is_said_with_the_first_of_them() -> None:
    """A copy ships what it was restored with first, perhaps in a commit of its own."""
    view = view_with(entry_of(1, 4))
    grown = replace(end_of(6), began=Began(5, 50, (5,)))
    draft = follow(view, WRITER, Change(add=[entry_of(5, 6, made=7)], generations={GEN: grown}))
    assert draft.head.generations[GEN].began == grown.began
    late = replace(end_of(6), began=Began(4, 40, (4,)))
    refused(view, Change(add=[entry_of(5, 6, made=7)], generations={GEN: late}), "would begin elsewhere")


def test_a_pin_has_a_generation() -> None:
    """A store that shows an older head may still offer a point of what a newer one has forgotten."""
    view = superseded()
    refused(view, Change(pins=(Pin(name="p", generation=THIRD, seq=1, time=10),)), "not in it")
    ends = {GEN: end_of(9, successor=OTHER), OTHER: end_of(8, generation=OTHER)}
    entries = (entry_of(1, 9), entry_of(1, 8, generation=OTHER))
    pinned = view_with(*entries, generations=ends, pins=(Pin(name="p", generation=GEN, seq=7, time=70),))
    refused(pinned, Change(forget=[GEN], drop=[entries[0].key]), "not in it")


def test_the_only_open_line_is_not_cut() -> None:
    view = view_with(entry_of(1, 9))
    refused(view, kept_to(view, 9), "no line would be open")
    other = view_with(
        entry_of(1, 9),
        entry_of(1, 2, generation=OTHER),
        generations={GEN: end_of(9), OTHER: end_of(2, generation=OTHER)},
    )
    head = follow(other, WRITER, kept_to(other, 9)).head
    assert not head.generations[GEN].open
    closed = replace(other, head=head)
    more = Change(add=[entry_of(10, 11, made=8)], generations={GEN: replace(end_of(11), kept_to=9)})
    refused(closed, more, "would go on")


def test_a_generation_is_forgotten_when_nothing_refers_to_it_and_does_not_come_back() -> None:
    view = superseded()
    gone = [entry.key for entry in view.segments if entry.generation == GEN]
    refused(view, Change(forget=[GEN], drop=gone), "a seq that it does not own")
    ends = {GEN: end_of(9, successor=OTHER), OTHER: end_of(8, generation=OTHER)}
    entries = (entry_of(1, 5), entry_of(6, 9), entry_of(1, 8, generation=OTHER))
    whole = view_with(*entries, generations=ends)
    refused(whole, Change(forget=[GEN]), "segments of a generation that is not in it")
    refused(whole, Change(forget=[GEN], drop=gone[:1]), "not live|is not in it")
    draft = follow(whole, WRITER, Change(forget=[GEN], drop=[entries[0].key, entries[1].key]))
    assert draft.head.forgotten == (Forgotten(GEN, OTHER),)
    assert draft.head.needs.read == ("lines",)
    assert [*draft.head.generations] == [OTHER]
    after = replace(whole, head=draft.head)
    back = Change(add=[entry_of(1, 2, made=8)], generations={GEN: end_of(2)})
    refused(after, back, "would come back")


def test_who_was_taken_over_by_a_forgotten_generation_was_taken_over_by_its_successor() -> None:
    ends = {
        GEN: end_of(3, successor=OTHER),
        OTHER: end_of(5, generation=OTHER, successor=THIRD),
        THIRD: end_of(2, generation=THIRD),
    }
    entries = (entry_of(1, 3), entry_of(1, 5, generation=OTHER), entry_of(1, 2, generation=THIRD))
    view = view_with(*entries, generations=ends)
    drop = [entries[1].key]
    refused(view, Change(forget=[OTHER], drop=drop), "was taken over by")
    mended = {GEN: end_of(3, successor=THIRD)}
    assert follow(view, WRITER, Change(forget=[OTHER], drop=drop, generations=mended)).head.forgotten
    refused(view, Change(forget=[OTHER], drop=drop, generations={GEN: end_of(3)}), "was taken over by")


def whole_child(view: View, **changes: object) -> Generation:
    child = view.head.generations[OTHER]
    return replace(child, parent=None, began=began_with(view.head, OTHER, 50), **changes)  # type: ignore[arg-type]


def test_a_merge_across_the_branch_point_needs_the_parent_no_more() -> None:
    view = superseded()
    own = view.segments[2]
    merged = entry_of(1, 8, generation=OTHER, made=7, level=1)
    draft = follow(view, WRITER, merge(view, own, into=merged, generations={OTHER: whole_child(view)}))
    child = draft.head.generations[OTHER]
    assert (child.parent, child.first_seq, child.began) == (None, 1, Began(5, 50, (5,)))
    after = replace(view, head=draft.head)
    gone = [entry.key for entry in view.segments if entry.generation == GEN]
    assert follow(after, WRITER, Change(forget=[GEN], drop=gone)).head.generations == {OTHER: child}
    assert began_with(draft.head, OTHER, 99) == child.began


def test_a_generation_without_its_parent_needs_segments_from_the_first_record_on() -> None:
    view = superseded()
    refused(view, Change(generations={OTHER: whole_child(view)}), "no path leads to the end")
    late = replace(whole_child(view), began=Began(4, 40))
    merged = entry_of(1, 8, generation=OTHER, made=7, level=1)
    refused(view, merge(view, view.segments[2], into=merged, generations={OTHER: late}), "another parent")


def test_an_older_take_over_on_the_line_is_noted_with_the_merge() -> None:
    ends = superseded().head.generations
    third = end_of(9, generation=THIRD, parent=Parent(OTHER, 6, chain_at(6)))
    head = superseded(generations={**ends, OTHER: replace(ends[OTHER], successor=THIRD), THIRD: third}).head
    assert began_with(head, THIRD, 70) == Began(7, 70, (5, 7))
    fork = replace(head, generations={**ends, THIRD: third})
    assert began_with(fork, THIRD, 70) == Began(7, 70, (5,))


# -- rules 4, 5 and 6


def test_what_is_seen_to_be_absent_leaves_gone_and_the_floor_rises_above_it() -> None:
    old, older = entry_of(4, 6, made=5), entry_of(4, 5, made=3)
    view = view_with(entry_of(1, 3), gone=(Gone(old.key, 5), Gone(older.key, 6), Gone("probe-1", 7)), floor=2)
    first = follow(view, WRITER, Change(left=[older.key, "probe-1"])).head
    assert ([gone.key for gone in first.gone], first.floor) == ([old.key], 4)
    assert follow(view, WRITER, Change(left=[old.key])).head.floor == 6
    assert follow(view, WRITER, Change(left=["probe-1"])).head.floor == 2
    assert follow(view, WRITER, Change(left=[entry_of(1, 1, made=6).key])).head.floor == 2  # it was not there


def test_lists_are_named_by_the_revision_that_was_read_and_by_a_random_number() -> None:
    add = [entry_of(seq, seq, made=7) for seq in range(1, 302)]
    change = Change(add=add, generations={GEN: end_of(301)})
    keys = {follow(view_with(last=0), WRITER, change).new[0] for _ in range(2)}
    assert len(keys) == 2
    for key in keys:
        assert key.startswith(f"{LISTS_PREFIX}{7:016x}-")


def test_since_is_filled_in_by_the_next_head_with_the_time_when_the_one_before_was_written() -> None:
    a, b = entry_of(1, 3), entry_of(4, 6)
    view = view_with(a, b, gone=(Gone("lists/old", 5),))
    draft = follow(view, WRITER, merge(view, a, b, into=entry_of(1, 6, made=7, level=1)))
    since = {gone.key: gone.since for gone in draft.head.gone}
    assert since == {"lists/old": 5, a.key: None, b.key: None}
    put = replace(view, head=draft.head, written_ms=123_456, read_ms=999_999)
    later = follow(put, WRITER, Change()).head
    assert {gone.key: gone.since for gone in later.gone} == {"lists/old": 5, a.key: 123_456, b.key: 123_456}


def test_what_was_let_go_of_is_never_named_again() -> None:
    gone = entry_of(4, 6, made=5)
    view = view_with(entry_of(1, 3), gone=(Gone(gone.key, 5),))
    assert not may_name(gone, view)
    refused(view, Change(add=[gone], generations={GEN: end_of(6)}), "let go of")


def test_what_is_below_the_floor_is_never_named_again() -> None:
    view = view_with(entry_of(1, 3), floor=6)
    below, above = entry_of(4, 6, made=5), entry_of(4, 6, made=6)
    assert (may_name(below, view), may_name(above, view)) == (False, True)
    refused(view, Change(add=[below], generations={GEN: end_of(6)}), "let go of")
    assert follow(view, WRITER, Change(add=[above], generations={GEN: end_of(6)})).head.floor == 6


def test_uploads_of_a_run_that_had_seen_a_head_are_not_named_where_there_is_none() -> None:
    refused(None, Change(add=[entry_of(1, 3, made=2)], generations={GEN: end_of(3)}), "let go of")


def test_a_key_that_is_neither_segment_nor_list_is_never_named() -> None:
    assert parse_key("probe-1") is None
    assert not may_name("probe-1", view_with(entry_of(1, 3)))
    assert may_name(list_key(7, random.getrandbits(64)), view_with(entry_of(1, 3)))
