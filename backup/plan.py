"""What a backup run does on the head that it read: a decision, computed from values and never applied here.

The rules are those of docs/protocols.md ("Backup run", "A restored copy that goes on").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar

from compactor.head import Generation, Head, Parent
from ourdb.line import Known, Line, Mark, Origin, new_generation

Start = Literal["fork", "take-over", "new"]
RefusalKind = Literal["other_database", "store_lost_data", "superseded", "moved", "behind", "fork"]

CHAIN_OF_NOTHING = 0
WAYS_OUT: dict[Start, frozenset[RefusalKind]] = {
    "take-over": frozenset({"moved"}),
    "fork": frozenset({"moved", "fork", "behind", "superseded"}),
    "new": frozenset({"store_lost_data"}),
}


@dataclass(frozen=True, kw_only=True)
class Before:
    """What the directory knew of the store before the head was asked for: a run beside it may know more by
    now."""

    known: Known | None
    mark: Mark | None

    @classmethod
    def of(cls, line: Line, store: str) -> Before:
        return cls(known=line.known.get(store), mark=line.shipped(store))


class StoreFacts(Protocol):
    """Answers about the store that may need a look at the index of a segment."""

    def offers(self, parent: Parent) -> bool:
        """Whether the generation owns this seq and the store restores it exactly, with this chain; and what
        comes behind it can be shipped by itself."""
        ...

    def restores(self, generation: str, seq: int) -> bool:
        """Whether the store still restores this seq of the generation exactly. Asks the head alone."""
        ...

    def newest_common(self, generation: str, end: int) -> Parent | None:
        """The newest point up to `end`, of the generation or an ancestor, that is exact in the store, has our
        chain, and is not inside a condensed file of ours."""
        ...


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a decision rests on. head: None if there is none. line: as it is now. before: as it was
    before the head was read. end: last seq of our log, found after the head was read. chain_at: of our log,
    None where it is not exact. store: its identity. now_ms, as_of_ms: `as_of` is put by itself when it is
    older than that."""

    uuid: str
    head: Head | None
    line: Line
    before: Before
    end: int
    chain_at: Callable[[int], int | None]
    offered: StoreFacts
    store: str
    now_ms: int
    as_of_ms: int


@dataclass(frozen=True)
class Refuse:
    """Nothing is written. seq: where it shows, for behind, fork and a loss: the last seq of the store."""

    kind: RefusalKind
    seq: int = 0
    other: str | None = None


@dataclass(frozen=True)
class Idle:
    """The store holds everything up to our end, and that is known to be kept. generation: that owns it."""

    generation: str


@dataclass(frozen=True)
class Ship:
    """Put a head in which `generation` goes on from `after` to our end: with new segments, or, where that
    is our end already, to state `as_of`, or to have acknowledged what was only read.

    parent, follows: of a generation that begins here, where it left, and whose successor it is.
    """

    after: int
    chain: int
    begins: bool
    parent: Parent | None = None
    follows: str | None = None


Decision = Refuse | Idle | Ship


def decide(facts: Facts) -> Decision:
    """What to do on this head."""
    refusal = _other_store(facts)
    if refusal:
        return refusal
    generation = facts.head.generations.get(facts.line.generation) if facts.head else None
    if generation is None:
        return _begin(facts)
    if not generation.open:
        return Refuse("superseded", generation.last_seq, generation.successor)
    return _compare(facts, generation.last_seq, generation.chain) or _go_on(facts, generation)


def choose(line: Line, how: Start | None, refused: RefusalKind | None, head: Head | None, store: str) -> Line:
    """The line after what the operator asked for; the same line where that does not apply.

    An option is the way out of a refusal. --fork and --take-over also say how a restored copy begins that
    has not begun yet, and --new how to begin where there is no head: perhaps there was one. A run that needs
    no way out takes none, so that an option left in a script does not begin a generation each time.
    """
    begun = head is not None and line.generation in head.generations
    undecided = line.origin is not None and line.start == "plain" and not begun
    if how == "new":
        undecided = head is None and line.start != "new"
    if how is None or not (refused in WAYS_OUT[how] or undecided):
        return line
    if how == "take-over":
        return replace(line, start=how) if line.origin else line
    chosen = replace(line, generation=new_generation(), start=how, old=line.generation)
    if how == "fork":
        return chosen
    known = {name: known for name, known in line.known.items() if name != store}
    return replace(chosen, origin=None, known=known)


def line_end(head: Head, generation: str) -> Generation:
    """Where the line of a generation ends: its last successor."""
    at = head.generations[generation]
    while at.successor:
        at = head.generations[at.successor]
    return at


def parent_of(origin: Origin) -> Parent:
    """Where a restored copy left the line that it was restored from."""
    return Parent(origin.generation, origin.seq, origin.chain)


@dataclass(frozen=True)
class Gap:
    """A range of seq, ends included, that has to be uploaded."""

    first_seq: int
    last_seq: int


class Ranged(Protocol):
    """What covers a range of seq, ends included."""

    @property
    def first_seq(self) -> int: ...

    @property
    def last_seq(self) -> int: ...


R = TypeVar("R", bound=Ranged)


def cover(after: int, end: int, found: Iterable[R]) -> list[R | Gap]:
    """The range (after, end] in order: what is uploaded already, the longest first, and the gaps between."""
    inside = sorted((one for one in found if after < one.first_seq and one.last_seq <= end), key=_longest)
    parts: list[R | Gap] = []
    for one in inside:
        if one.first_seq <= after:
            continue
        if one.first_seq > after + 1:
            parts.append(Gap(after + 1, one.first_seq - 1))
        parts.append(one)
        after = one.last_seq
    return parts if after == end else [*parts, Gap(after + 1, end)]


def _longest(one: Ranged) -> tuple[int, int]:
    return one.first_seq, -one.last_seq


def _other_store(facts: Facts) -> Refuse | None:
    """Whether the target is another database's, or went back to what it held before (rule 8)."""
    head, before = facts.head, facts.before
    if head is not None and head.uuid != facts.uuid:
        return Refuse("other_database", other=head.uuid)
    gone = (
        next((one for one in head.forgotten if one.generation == facts.line.generation), None)
        if head
        else None
    )
    generation = head.generations.get(facts.line.generation) if head else None
    last = generation.last_seq if generation else 0
    lost = Refuse("store_lost_data", last)
    if before.known and _older(head, before.known):
        return lost
    if gone:
        return Refuse("superseded", last, gone.successor)
    shipped = before.mark and before.mark.generation == facts.line.generation and before.mark.seq
    return lost if shipped and last < shipped else None


def _older(head: Head | None, known: Known) -> bool:
    if head is None:
        return True
    another = head.revision == known.revision and head.run != known.run
    return head.revision < known.revision or another


def _begin(facts: Facts) -> Decision:
    """A generation that the head does not have: where it leaves another, and whose successor it is."""
    line, head = facts.line, facts.head
    if line.start == "new":
        follows = line_end(head, line.old).id if head and line.old and line.old in head.generations else None
        return _first_records(facts, None, follows)
    if head is None:
        if line.origin and line.origin.store == facts.store:
            return Refuse("store_lost_data")
        return _first_records(facts, None, None)
    if line.start == "fork":
        return _first_records(facts, _leave(facts, head), None)
    if line.origin is None or line.origin.generation not in head.generations:
        return Refuse("fork") if head.generations else _first_records(facts, None, None)
    return _go_on_from(facts, head, line.origin)


def _leave(facts: Facts, head: Head) -> Parent | None:
    """Where a fork leaves: the newest seq that is proven common and exact in the store."""
    line, found = facts.line, []
    if line.origin and line.origin.generation in head.generations:
        left_at = parent_of(line.origin)
        if facts.chain_at(left_at.seq) == left_at.chain and facts.offered.offers(left_at):
            found.append(left_at)
    known = [line.old, line.origin.generation if line.origin else None]
    generation = next((one for one in known if one and one in head.generations), None)
    if generation and (common := facts.offered.newest_common(generation, facts.end)):
        found.append(common)
    return max(found, key=lambda parent: parent.seq, default=None)


def _go_on_from(facts: Facts, head: Head, origin: Origin) -> Decision:
    """A restored copy: it takes its line over, if that stands where it stood at the restore or if it is told
    to."""
    if facts.end == origin.seq and facts.offered.restores(origin.generation, origin.seq):
        return Idle(origin.generation)  # no record is new; whether the line moved is asked when there is one
    end = line_end(head, origin.generation)
    moved = (end.id, end.last_seq) != (origin.end_generation, origin.end_last_seq)
    if facts.line.start == "plain" and (moved or end.as_of > origin.end_as_of or not end.open):
        return Refuse("moved", end.last_seq, end.id)
    parent = parent_of(origin)
    return _first_records(facts, parent if facts.offered.offers(parent) else None, end.id)


def _first_records(facts: Facts, parent: Parent | None, follows: str | None) -> Decision:
    """A generation begins with its first new record; the first of a namespace may begin with none."""
    if parent is None:
        return Ship(0, CHAIN_OF_NOTHING, True, None, follows)
    if facts.end == parent.seq and facts.chain_at(parent.seq) == parent.chain:
        return Idle(parent.generation)
    return _compare(facts, parent.seq, parent.chain) or Ship(parent.seq, parent.chain, True, parent, follows)


def _compare(facts: Facts, last: int, chain: int) -> Refuse | None:
    """Our log against the store's last seq, and nowhere else."""
    if facts.end < last:
        return Refuse("behind", last)
    return Refuse("fork", last) if facts.chain_at(last) != chain else None


def _go_on(facts: Facts, generation: Generation) -> Decision:
    on = Ship(generation.last_seq, generation.chain, False, generation.parent)
    if facts.end > generation.last_seq:
        return on
    mark = facts.line.shipped(facts.store)
    if mark is None or mark.seq < facts.end:
        return on  # what was only read is not yet kept: once more
    return on if facts.now_ms - generation.as_of >= facts.as_of_ms else Idle(generation.id)
