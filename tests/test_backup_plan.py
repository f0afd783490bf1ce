"""The decisions of a backup run, one by one, on plain values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup.plan import (
    Before,
    Facts,
    Gap,
    Idle,
    Refuse,
    Ship,
    choose,
    cover,
    decide,
)
from compactor.head import Forgotten, Generation, Head, Parent
from ourdb.line import Known, Line, Mark, Origin

UUID, STORE = "ab" * 16, "file:/srv/notes"
OURS, OTHER, PARENT, END, OLD = (f"{n:016x}" for n in (0xA1, 0xB2, 0xC3, 0xD4, 0xE5))
RUN = "0123456789abcdef"
NOW = 1_800_000_000_000


def chain(seq: int) -> int:
    """The chain of our log."""
    return seq * 7


@dataclass
class Offered:
    """The store's answers, with what it was asked."""

    all: bool = True
    common: Parent | None = None

    def offers(self, parent: Parent) -> bool:
        return self.all

    def restores(self, generation: str, seq: int) -> bool:
        return self.all

    def newest_common(self, generation: str, end: int) -> Parent | None:
        return self.common


def gen(name: str, last: int, **changes: Any) -> Generation:
    first = Generation(
        id=name, parent=None, last_seq=last, last_time=NOW, chain=chain(last), highest_id=3, as_of=NOW
    )
    return replace(first, **changes)


def head(*generations: Generation, **changes: Any) -> Head:
    first = Head(
        uuid=UUID,
        namespace="notes",
        revision=5,
        run=RUN,
        host="here",
        config={},
        generations={one.id: one for one in generations},
    )
    return replace(first, **changes)


def mark(seq: int, generation: str = OURS) -> Mark:
    return Mark(url="", generation=generation, seq=seq, chain=chain(seq), revision=5, run=RUN)


LINE = Line(generation=OURS, start="first", marks={STORE: mark(10)})
FRESH = Line(generation=OURS, start="first")
ORIGIN = Origin(
    store=STORE,
    generation=PARENT,
    seq=10,
    chain=chain(10),
    end_generation=PARENT,
    end_last_seq=12,
    end_as_of=NOW,
    revision=0,
    run="",
)
COPY = Line(generation=OURS, start="plain", origin=ORIGIN, marks={STORE: mark(10, PARENT)})
LEFT = Parent(PARENT, 10, chain(10))


def facts(**changes: Any) -> Facts:
    first = Facts(
        uuid=UUID,
        head=head(gen(OURS, 10)),
        line=LINE,
        before=Before(known=None, mark=None),
        end=10,
        chain_at=chain,
        offered=Offered(),
        store=STORE,
        now_ms=NOW,
        as_of_ms=600_000,
    )
    return replace(first, **changes)


def copy(**changes: Any) -> Facts:
    return facts(**{"head": head(gen(PARENT, 12)), "line": COPY, "end": 15} | changes)


# -- a generation that the head has


def test_store_at_our_end_with_our_mark_is_idle() -> None:
    assert decide(facts()) == Idle(OURS)


def test_new_records_are_shipped_from_the_end_of_the_store() -> None:
    assert decide(facts(end=14)) == Ship(10, chain(10), begins=False)


def test_generation_keeps_its_parent_when_it_goes_on() -> None:
    held = head(gen(PARENT, 8), gen(OURS, 10, parent=Parent(PARENT, 7, 1)))
    assert decide(facts(head=held, end=14)) == Ship(10, chain(10), False, Parent(PARENT, 7, 1))


@pytest.mark.parametrize("line", [FRESH, replace(LINE, marks={STORE: mark(9)})])
def test_records_only_read_in_the_head_are_put_once_more(line: Line) -> None:
    assert decide(facts(line=line)) == Ship(10, chain(10), begins=False)


def test_mark_of_another_store_says_nothing_of_this_one() -> None:
    line = replace(LINE, marks={"file:/elsewhere": mark(10)})
    assert isinstance(decide(facts(line=line)), Ship)


@pytest.mark.parametrize(("age", "decision"), [(599_999, Idle(OURS)), (600_000, Ship(10, chain(10), False))])
def test_as_of_is_put_by_itself_when_it_is_old_enough(age: int, decision: object) -> None:
    assert decide(facts(now_ms=NOW + age)) == decision


def test_log_that_ends_before_the_store_is_behind_even_as_a_prefix() -> None:
    assert decide(facts(end=9, line=FRESH)) == Refuse("behind", 10)


@pytest.mark.parametrize("ours", [999, None])
def test_other_chain_at_the_end_of_the_store_is_a_fork(ours: int | None) -> None:
    assert decide(facts(end=14, chain_at=lambda _: ours)) == Refuse("fork", 10)


def test_chain_is_compared_at_the_end_of_the_store_and_nowhere_else() -> None:
    asked: list[int] = []

    def chain_at(seq: int) -> int:
        asked.append(seq)
        return chain(seq)

    decide(facts(end=14, line=replace(LINE, marks={STORE: mark(3)}), chain_at=chain_at))
    assert asked == [10]


@pytest.mark.parametrize("end", [9, 10, 14])
def test_generation_with_a_successor_is_superseded(end: int) -> None:
    held = head(gen(OURS, 10, successor=OTHER), gen(OTHER, 12))
    assert decide(facts(head=held, end=end, line=FRESH)) == Refuse("superseded", 10, OTHER)


# -- another database, and a target that lost data


def test_generation_that_was_cut_is_superseded_by_nobody() -> None:
    cut = head(gen(OURS, 8, kept_to=5), gen(OTHER, 9))
    assert decide(facts(head=cut)) == Refuse("superseded", 8, None)


def test_generation_that_was_forgotten_is_superseded_and_not_lost() -> None:
    gone = head(gen(OTHER, 9), forgotten=(Forgotten(OURS, OTHER),))
    shipped = Before(known=None, mark=mark(8))
    assert decide(facts(head=gone, before=shipped)) == Refuse("superseded", 0, OTHER)
    lost = head(gen(OTHER, 9))
    assert decide(facts(head=lost, before=shipped)) == Refuse("store_lost_data", 0)


def test_head_of_another_database_is_refused_whatever_we_know() -> None:
    known = Before(known=Known(revision=9, run=RUN), mark=mark(99))
    decided = decide(facts(head=head(gen(OURS, 10), uuid="cd" * 16), before=known))
    assert decided == Refuse("other_database", other="cd" * 16)


@pytest.mark.parametrize(
    "known",
    [Known(revision=6, run=RUN), Known(revision=5, run="f" * 16)],
    ids=["lower revision", "same revision of another run"],
)
def test_head_that_went_back_is_a_loss(known: Known) -> None:
    assert decide(facts(before=Before(known=known, mark=None), end=14)) == Refuse("store_lost_data", 10)


@pytest.mark.parametrize("known", [Known(revision=5, run=RUN), Known(revision=4, run="f" * 16)])
def test_head_that_is_as_known_or_newer_is_none(known: Known) -> None:
    assert decide(facts(before=Before(known=known, mark=mark(10)))) == Idle(OURS)


def test_missing_head_that_was_known_is_a_loss() -> None:
    before = Before(known=Known(revision=1, run=RUN), mark=None)
    assert decide(facts(head=None, before=before)) == Refuse("store_lost_data")


def test_store_that_ends_below_our_mark_is_a_loss() -> None:
    before = Before(known=None, mark=mark(11))
    assert decide(facts(before=before, end=14)) == Refuse("store_lost_data", 10)


def test_generation_that_was_shipped_and_is_missing_is_a_loss() -> None:
    before = Before(known=None, mark=mark(1))
    assert decide(facts(head=head(gen(OTHER, 10)), before=before)) == Refuse("store_lost_data")


def test_mark_noted_after_the_head_was_read_is_no_loss() -> None:
    """A run beside this one has committed since; what counts is what was known before."""
    line = replace(LINE, marks={STORE: mark(14)}, known={STORE: Known(revision=9, run=RUN)})
    assert decide(facts(line=line, end=14)) == Ship(10, chain(10), begins=False)


def test_mark_of_an_older_generation_asks_nothing_of_the_new_one() -> None:
    before = Before(known=None, mark=mark(99, PARENT))
    assert isinstance(decide(copy(before=before)), Ship)


# -- the first generation


@pytest.mark.parametrize("end", [0, 7])
def test_namespace_without_head_gets_everything_an_empty_database_too(end: int) -> None:
    assert decide(facts(head=None, line=FRESH, end=end)) == Ship(0, 0, begins=True)


def test_head_with_other_generations_and_not_ours_is_a_fork() -> None:
    assert decide(facts(head=head(gen(OTHER, 3)), line=FRESH)) == Refuse("fork")


# -- a restored copy


def test_copy_takes_over_the_line_that_stands_as_at_its_restore() -> None:
    assert decide(copy()) == Ship(10, chain(10), True, LEFT, PARENT)


def test_copy_is_named_successor_of_the_end_of_its_line_and_child_of_its_parent() -> None:
    line = replace(COPY, origin=replace(ORIGIN, end_generation=END, end_last_seq=20))
    held = head(gen(PARENT, 12, successor=END), gen(END, 20, parent=Parent(PARENT, 12, chain(12))))
    assert decide(copy(head=held, line=line)) == Ship(10, chain(10), True, LEFT, END)


MOVED = {
    "records": (head(gen(PARENT, 13)), Refuse("moved", 13, PARENT)),
    "as_of": (head(gen(PARENT, 12, as_of=NOW + 1)), Refuse("moved", 12, PARENT)),
    "successor": (head(gen(PARENT, 12, successor=END), gen(END, 12)), Refuse("moved", 12, END)),
}


@pytest.mark.parametrize(("held", "refusal"), MOVED.values(), ids=MOVED)
def test_copy_whose_line_moved_is_told_so(held: Head, refusal: Refuse) -> None:
    assert decide(copy(head=held)) == refusal


@pytest.mark.parametrize(("held", "refusal"), MOVED.values(), ids=MOVED)
def test_take_over_succeeds_the_end_as_it_is_now(held: Head, refusal: Refuse) -> None:
    told = replace(COPY, start="take-over")
    assert decide(copy(head=held, line=told)) == Ship(10, chain(10), True, LEFT, refusal.other)


def test_copy_without_new_records_is_idle_though_the_line_moved() -> None:
    assert decide(copy(head=head(gen(PARENT, 40)), end=10)) == Idle(PARENT)


def test_copy_of_a_line_that_was_dropped_is_told_so_though_nobody_wrote_there() -> None:
    dropped = head(gen(PARENT, 12, kept_to=10), gen(OTHER, 3))
    assert decide(copy(head=dropped)) == Refuse("moved", 12, PARENT)
    assert decide(copy(head=dropped, line=replace(COPY, start="take-over"))) == Ship(
        10, chain(10), True, LEFT, PARENT
    )


def test_copy_of_a_point_that_was_let_go_of_is_not_idle() -> None:
    cut = head(gen(PARENT, 12, kept_to=9, successor=OTHER), gen(OTHER, 14))
    assert decide(copy(head=cut, end=10, offered=Offered(all=False))) == Refuse("moved", 14, OTHER)


def test_copy_whose_branch_point_is_no_longer_offered_ships_everything() -> None:
    assert decide(copy(offered=Offered(all=False))) == Ship(0, 0, True, None, PARENT)


def test_copy_whose_parent_vanished_beside_other_generations_is_a_fork() -> None:
    assert decide(copy(head=head(gen(OTHER, 30)))) == Refuse("fork")


def test_copy_whose_store_has_no_head_any_more_is_a_loss() -> None:
    assert decide(copy(head=None)) == Refuse("store_lost_data")


def test_copy_begins_anew_on_a_store_that_it_was_not_restored_from() -> None:
    assert decide(copy(head=None, store="file:/elsewhere")) == Ship(0, 0, begins=True)


def test_copy_that_lost_records_of_its_parent_is_behind() -> None:
    assert decide(copy(end=9)) == Refuse("behind", 10)


def test_copy_with_another_chain_where_it_left_is_a_fork() -> None:
    assert decide(copy(chain_at=lambda _: 1)) == Refuse("fork", 10)


# -- told to


FORKED = replace(LINE, generation=OURS, start="fork", old=OLD)


def test_fork_leaves_at_the_newest_common_point_and_succeeds_nobody() -> None:
    common = Parent(OLD, 6, chain(6))
    decided = decide(facts(head=head(gen(OLD, 40)), line=FORKED, end=9, offered=Offered(common=common)))
    assert decided == Ship(6, chain(6), True, common, None)


def test_fork_without_common_point_ships_everything() -> None:
    assert decide(facts(head=head(gen(OLD, 40)), line=FORKED, end=9)) == Ship(0, 0, begins=True)


def test_fork_of_a_copy_leaves_where_the_copy_left_if_that_is_newer() -> None:
    line = replace(COPY, start="fork", old=OLD)
    common = Parent(PARENT, 6, chain(6))
    assert decide(copy(line=line, offered=Offered(common=common))) == Ship(10, chain(10), True, LEFT, None)


def test_fork_of_a_copy_does_not_leave_where_its_own_chain_differs() -> None:
    line = replace(COPY, start="fork", old=OLD)
    common = Parent(PARENT, 6, chain(6))
    decided = decide(
        copy(line=line, offered=Offered(common=common), chain_at=lambda seq: chain(seq) if seq < 8 else 1)
    )
    assert decided == Ship(6, chain(6), True, common, None)


def test_fork_without_records_beyond_the_common_point_is_idle() -> None:
    common = Parent(OLD, 9, chain(9))
    decided = decide(facts(head=head(gen(OLD, 40)), line=FORKED, end=9, offered=Offered(common=common)))
    assert decided == Idle(OLD)


def test_new_start_ships_everything_and_succeeds_the_old_line_where_it_is_left() -> None:
    line = replace(LINE, start="new", old=OLD)
    held = head(gen(OLD, 3, successor=END), gen(END, 4))
    assert decide(facts(head=held, line=line)) == Ship(0, 0, True, None, END)
    assert decide(facts(head=None, line=line)) == Ship(0, 0, begins=True)
    assert decide(facts(head=head(gen(OTHER, 3)), line=line)) == Ship(0, 0, begins=True)


# -- what an option changes in the line


@pytest.mark.parametrize("kind", ["moved", "fork", "behind", "superseded"])
def test_fork_is_the_way_out_with_a_generation_of_its_own(kind: Any) -> None:
    chosen = choose(LINE, "fork", kind, head(gen(OURS, 10)), STORE)
    assert (chosen.start, chosen.old) == ("fork", OURS)
    assert chosen.generation != OURS
    assert chosen.marks == LINE.marks


def test_take_over_keeps_the_generation_of_the_copy() -> None:
    chosen = choose(COPY, "take-over", "moved", head(gen(PARENT, 13)), STORE)
    assert chosen == replace(COPY, start="take-over")


def test_new_start_forgets_the_lost_head_and_the_origin_but_not_other_stores() -> None:
    known = {STORE: Known(revision=9, run=RUN), "file:/elsewhere": Known(revision=3, run=RUN)}
    chosen = choose(replace(COPY, known=known), "new", "store_lost_data", None, STORE)
    assert (chosen.start, chosen.old, chosen.origin) == ("new", OURS, None)
    assert set(chosen.known) == {"file:/elsewhere"}


@pytest.mark.parametrize(
    ("how", "refused"),
    [
        ("fork", None),
        ("fork", "store_lost_data"),
        ("fork", "other_database"),
        ("take-over", None),
        ("take-over", "fork"),
        ("take-over", "moved"),
        ("new", None),
        ("new", "fork"),
        ("new", "other_database"),
        (None, "fork"),
    ],
)
def test_option_that_is_no_way_out_changes_nothing(how: Any, refused: Any) -> None:
    assert choose(LINE, how, refused, head(gen(OURS, 10)), STORE) is LINE


def test_copy_that_has_not_begun_may_be_told_beforehand() -> None:
    held = head(gen(PARENT, 12))
    assert choose(COPY, "fork", None, held, STORE).start == "fork"
    assert choose(COPY, "take-over", None, held, STORE).start == "take-over"
    assert choose(COPY, "new", None, held, STORE) is COPY


def test_copy_that_has_begun_is_not_begun_again() -> None:
    held = head(gen(PARENT, 12, successor=OURS), gen(OURS, 15, parent=LEFT))
    for how in ("fork", "take-over"):
        assert choose(COPY, how, None, held, STORE) is COPY  # type: ignore[arg-type]


# -- what is uploaded already


@dataclass(frozen=True)
class Piece:
    first_seq: int
    last_seq: int


def test_cover_prefers_what_is_there_and_the_longest_of_it() -> None:
    there = [Piece(6, 8), Piece(6, 9), Piece(12, 14), Piece(3, 7), Piece(15, 30), Piece(9, 10)]
    assert cover(5, 20, there) == [Piece(6, 9), Gap(10, 11), Piece(12, 14), Gap(15, 20)]


@given(
    after=st.integers(0, 20),
    length=st.integers(1, 20),
    there=st.lists(st.tuples(st.integers(1, 45), st.integers(0, 8)), max_size=8),
)
def test_cover_is_without_gap_and_overlap(after: int, length: int, there: list[tuple[int, int]]) -> None:
    pieces = [Piece(first, first + more) for first, more in there]
    parts = cover(after, after + length, pieces)
    seqs = [seq for part in parts for seq in range(part.first_seq, part.last_seq + 1)]
    assert seqs == list(range(after + 1, after + length + 1))
