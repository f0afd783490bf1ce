"""Lists turn over: the same segments, bounded work, and only lists that change are written."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compactor import lists
from compactor.entries import Gone, SegmentEntry
from compactor.follow import Change, Draft, follow
from compactor.head import decode_head, encode_head
from compactor.view import View
from tests.lines import GEN, Site, end_of, entry_of


def view_of(draft: Draft) -> View:
    """What the draft is once it is put."""
    return View(
        head=decode_head(draft.data, draft.head.namespace),
        etag=str(random.random()),
        written_ms=draft.head.revision * 1000,
        read_ms=0,
        acknowledged=True,
        data=draft.data,
        stored=draft.stored,
    )


def first_view(site: Site) -> View:
    return view_of(follow(None, site.writer(), Change(generations={GEN: end_of(0)})))


def grow(site: Site, view: View, segments: int, span: int = 1) -> tuple[View, Draft]:
    """One head that adds so many segments."""
    seq = view.head.generations[GEN].last_seq
    add = [
        entry_of(seq + 1 + i * span, seq + (i + 1) * span, made=view.head.revision) for i in range(segments)
    ]
    change = Change(add=add, generations={GEN: end_of(seq + segments * span)})
    draft = follow(view, site.writer(), change)
    return view_of(draft), draft


def test_the_head_keeps_a_few_hundred_entries_and_then_writes_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "TURN_OVER", 5)
    site = Site()
    view = first_view(site)
    for _ in range(5):
        view, draft = grow(site, view, 1)
        assert draft.new == ()
    view, draft = grow(site, view, 1)
    assert len(draft.new) == 1
    assert view.head.added == ()
    assert [ref.segments for ref in view.head.lists] == [6]
    assert [entry.first_seq for entry in view.segments] == [1, 2, 3, 4, 5, 6]


def test_what_one_backup_writes_does_not_grow_with_the_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "TURN_OVER", 20)
    monkeypatch.setattr(lists, "SEGMENTS_MAX", 200)
    monkeypatch.setattr("compactor.gone.GONE_INLINE_MAX", 20)
    site = Site()
    view, written = first_view(site), []
    for _ in range(1600):
        view, draft = grow(site, view, 1)
        written.append(len(draft.data) + sum(len(draft.stored[key].data) for key in draft.new))
    assert sum(written[-400:]) < 1.3 * sum(written[400:800])
    assert max(written[-400:]) < 1.5 * max(written[400:800])
    assert len(view.segments) == 1600
    assert all(ref.segments <= 200 for ref in view.head.lists)
    assert len(view.head.lists) < 1600 / 200 + 8


def test_a_full_list_is_never_written_again_by_additions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "TURN_OVER", 5)
    monkeypatch.setattr(lists, "SEGMENTS_MAX", 20)
    site = Site()
    view, full = first_view(site), set()
    for _ in range(200):
        view, _draft = grow(site, view, 1)
        assert full <= view.list_names
        full |= {ref.key for ref in view.head.lists if ref.segments == 20}
    assert len(full) >= 8


def test_a_turn_over_after_additions_decodes_only_the_lists_that_it_joins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lists, "TURN_OVER", 5)
    monkeypatch.setattr(lists, "SEGMENTS_MAX", 20)
    site = Site()
    view = first_view(site)
    for _ in range(65):
        view, _draft = grow(site, view, 1)
    opened: list[str] = []
    unpack = lists.StoredList._open
    monkeypatch.setattr(
        lists.StoredList, "_open", lambda self, kind: opened.append(self.key) or unpack(self, kind)
    )
    view = replace(view, stored={key: replace(it) for key, it in view.stored.items()})
    named = {ref.key: ref.segments for ref in view.head.lists}
    draft = follow(view, site.writer(), Change())
    while not draft.new:
        view, draft = grow(site, view, 1)
    assert all(named.get(key, 0) < 20 for key in opened)
    assert max(named.values()) == 20


def test_a_list_that_was_replaced_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "TURN_OVER", 3)
    site = Site()
    view = first_view(site)
    for _ in range(30):
        before = view.list_names
        view, _draft = grow(site, view, 1)
        replaced = before - view.list_names
        assert replaced <= view.gone_keys
        assert not view.list_names & view.gone_keys
        if replaced:
            assert {gone.since for gone in view.head.gone if gone.key in replaced} == {None}


def test_an_unknown_list_member_stays_with_a_list_that_does_not_change() -> None:
    site = Site()
    view, _draft = grow(site, first_view(site), 300)
    ref = replace(view.head.lists[0], extra={"later": 1})
    view = replace(view, head=replace(view.head, lists=(ref,)))
    view, _draft = grow(site, view, 1)
    assert view.head.lists[0].extra == {"later": 1}


def test_a_long_gone_goes_into_a_list_whose_since_stands_in_the_head() -> None:
    site = Site()
    view, _draft = grow(site, first_view(site), 450)
    merged = entry_of(1, 450, made=view.head.revision, level=1)
    change = Change(add=[merged], drop=[e.key for e in view.segments])
    draft = follow(view, site.writer(), change)
    after = view_of(draft)
    assert after.segments == (merged,)
    assert {e.key for e in view.segments} <= after.gone_keys
    assert [(ref.since, ref.objects) for ref in after.head.gone_lists] == [(None, 451)]
    assert len(draft.data) < 2000
    later = follow(after, site.writer(), Change())
    assert [ref.since for ref in later.head.gone_lists] == [after.written_ms]
    assert later.new == ()


def test_old_gone_entries_move_into_a_list_under_the_latest_of_their_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("compactor.gone.GONE_INLINE_MAX", 3)
    site = Site()
    view = first_view(site)
    keys = [entry_of(1, 1).key for _ in range(6)]
    view = replace(
        view,
        head=replace(view.head, gone=(Gone(keys[0], 5), Gone(keys[1], 9), Gone(keys[2], 7, {"later": 1}))),
    )
    after = view_of(follow(view, site.writer(), Change(let_go=keys[3:5])))
    assert after.gone_keys == frozenset(keys[:5])
    assert [ref.since for ref in after.head.gone_lists] == [9]
    assert Gone(keys[2], 7, {"later": 1}) in after.head.gone
    assert {gone.key for gone in after.head.gone if gone.since is None} == set(keys[3:5])


@st.composite
def _histories(draw: st.DrawFn) -> list[tuple[int, bool]]:
    return draw(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=25))


@given(_histories())
@settings(max_examples=40, deadline=None)
def test_lists_and_removals_always_give_the_live_segments(history: list[tuple[int, bool]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists, "TURN_OVER", 6)
        patch.setattr(lists, "SEGMENTS_MAX", 10)
        patch.setattr("compactor.gone.GONE_INLINE_MAX", 5)
        site = Site()
        view, live, gone = first_view(site), {}, set[str]()
        for count, merge in history:
            if merge and len(view.segments) > 1:
                run = view.segments[-count - 1 :]
                merged = entry_of(run[0].first_seq, run[-1].last_seq, made=view.head.revision, level=1)
                view = view_of(follow(view, site.writer(), Change(add=[merged], drop=[e.key for e in run])))
                live = {key: entry for key, entry in live.items() if entry not in run} | {merged.key: merged}
                gone |= {entry.key for entry in run}
            else:
                view, draft = grow(site, view, count)
                live |= {entry.key: entry for entry in draft.head.added} | {
                    entry.key: entry for key in draft.new for entry in _segments(draft, key)
                }
            assert {entry.key for entry in view.segments} == live.keys()
            assert gone <= view.gone_keys
            assert all(ref.segments <= 10 for ref in view.head.lists)
            assert encode_head(view.head) == view.data


def _segments(draft: Draft, key: str) -> tuple[SegmentEntry, ...]:
    return draft.stored[key].segments if key in {ref.key for ref in draft.head.lists} else ()
