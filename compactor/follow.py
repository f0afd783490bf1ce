"""The next head, computed on the one that it follows. Pure: a Draft is a value; publish() puts it.

Whatever a run wants (segments of a backup, a merge, a pin) is said as a Change. `follow` applies it to
the head that the run has read, fills in what only the next head can know, moves what has become long
into lists, and refuses what does not fit that head (rules 3, 6 and 9).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from compactor import lists, offers
from compactor.body import Json
from compactor.entries import SegmentEntry
from compactor.generations import Forgotten, Generation, Pin
from compactor.gone import fill_since, with_gone, without_absent
from compactor.head import LINES_WORD, NOTHING_KNOWN, Head, Known, Needs, encode_head, refuse_to_write
from compactor.lists import ListOwner, Shelf, StoredList
from compactor.view import View, may_name
from ourdb.errors import FencedError

RandomU64 = Callable[[], int]


def random_u64() -> int:
    return secrets.randbits(64)


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Who writes. uuid, config: of the database (32 hex digits; its JSON), for the first head; a later one
    must have this uuid. host: this machine's id. known: the newest head that this run knew to be
    acknowledged. single_writer: the store has no compare-and-swap, and that was accepted. take_host: the
    operator said that the other machine writes no more."""

    uuid: str
    namespace: str
    config: Json
    host: str
    known: Known = NOTHING_KNOWN
    single_writer: bool = False
    take_host: bool = False


@dataclass(frozen=True, kw_only=True)
class Change:
    """What the next head does. add, drop: segments, and keys of segments. generations: those that are new
    or different. forget: generations that leave the head, to which nothing refers. pins, policy: as they are
    to be, None: as they are. let_go: keys of objects that no head names. left: keys that were let go of and
    were seen to be absent: they leave `gone`, and the floor rises above them. horizons: see
    offers.check_all; only a run that drops needs them. revision_at_least: for `backup --new` the store's time
    in microseconds: revision and floor rise to it."""

    add: Sequence[SegmentEntry] = ()
    drop: Sequence[str] = ()
    generations: Mapping[str, Generation] = field(default_factory=dict)
    forget: Sequence[str] = ()
    pins: tuple[Pin, ...] | None = None
    policy: Json | None = None
    let_go: Sequence[str] = ()
    left: Sequence[str] = ()
    horizons: Mapping[str, int] = field(default_factory=dict)
    revision_at_least: int = 0


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A head to be put on the one it was computed on (base, None: on none). new: keys of `stored` that
    have to be uploaded before it. anew: the head of a `backup --new`."""

    base: View | None
    head: Head
    data: bytes
    stored: Mapping[str, StoredList]
    new: tuple[str, ...]
    anew: bool


def follow(view: View | None, writer: Writer, change: Change, *, random: RandomU64 = random_u64) -> Draft:
    """The head after this one.

    Raises Error (`not_following`): the change does not fit this head; FencedError (`other_database`,
    `other_host`), UnknownFormatError (the head needs what this program does not know), DamageError (a
    list). It can be called again on a newer view; nothing was sent.
    """
    old = check_base(view, writer)
    head = _changed(old, writer, change, random)
    _check(view, head, change)
    head, gone, emptied = without_absent(head, fill_since(view), frozenset(change.left), view)
    owner = ListOwner(head.uuid, head.namespace, old.revision if old else 0)
    shelf = Shelf(owner, dict(view.stored) if view else {}, random)
    head, replaced = _with_segments(head, change, shelf)
    head = with_gone(head, gone, [*change.drop, *change.let_go, *replaced, *emptied], shelf)
    named = {key: shelf.stored[key] for key in head.list_keys}
    return Draft(
        base=view,
        head=head,
        data=encode_head(head),
        stored=named,
        new=tuple(key for key in named if key in shelf.new),
        anew=change.revision_at_least > 0,
    )


def check_base(view: View | None, writer: Writer) -> Head | None:
    """The head, if this program on this machine may write the one after it: see `follow`."""
    if view is None:
        return None
    head = view.head
    refuse_to_write(head, "head")
    check_database(head, writer.uuid)
    if head.single_writer and head.host != writer.host and not writer.take_host:
        raise FencedError(
            f"namespace {head.namespace} is on a store without compare-and-swap and belongs to another host, "
            f"{head.host} (this is {writer.host}): work there, or if it writes no more, take over with "
            "backup --take-over",
            kind="other_host",
            host=head.host,
        )
    return head


def check_database(head: Head, uuid: str) -> None:
    """FencedError (`other_database`) unless the namespace is that of this database."""
    if head.uuid != uuid:
        raise FencedError(
            f"namespace {head.namespace} belongs to another database, {head.uuid} (this one is {uuid}): "
            "use another name in the URL",
            kind="other_database",
            uuid=head.uuid,
        )


def _changed(old: Head | None, writer: Writer, change: Change, random: RandomU64) -> Head:
    """The head without lists and gone, which come later."""
    revision = max((old.revision if old else 0) + 1, change.revision_at_least)
    run = f"{random():016x}"
    if old is None:
        return Head(
            uuid=writer.uuid,
            namespace=writer.namespace,
            revision=revision,
            run=run,
            host=writer.host,
            single_writer=writer.single_writer,
            config=writer.config,
            generations=dict(change.generations),
            pins=change.pins or (),
            policy=change.policy,
            floor=change.revision_at_least,
            kept=_kept(NOTHING_KNOWN, writer.known, 0),
        )
    generations = {**old.generations, **change.generations}
    forgotten = [Forgotten(name, generations.pop(name).successor) for name in change.forget]
    return replace(
        old,
        revision=revision,
        run=run,
        host=writer.host,
        single_writer=old.single_writer or writer.single_writer,
        generations=generations,
        forgotten=(*old.forgotten, *forgotten),
        needs=_needs(old.needs, generations.values(), forgets=bool(forgotten)),
        pins=old.pins if change.pins is None else change.pins,
        policy=old.policy if change.policy is None else change.policy,
        floor=max(old.floor, change.revision_at_least),
        kept=_kept(old.kept, writer.known, old.revision),
    )


def _needs(before: Needs, generations: Iterable[Generation], *, forgets: bool) -> Needs:
    """Whoever does not know what was cut or forgotten, or how a generation began, would restore otherwise."""
    known = LINES_WORD in before.read
    shapes = ((g.kept_to, g.kept_until, g.began) for g in generations)
    if known or (not forgets and all(shape == (None, None, None) for shape in shapes)):
        return before
    return before._replace(read=(*before.read, LINES_WORD))


def _kept(before: Known, known: Known, revision: int) -> Known:
    """The newest that is known to be acknowledged; never one of a line that this head does not follow."""
    return max(before, known if known.revision <= revision else NOTHING_KNOWN)


def _check(view: View | None, head: Head, change: Change) -> None:
    old = view.head if view else None
    for entry in change.add:
        if not may_name(entry, view):
            raise offers.refuse(f"it was let go of, or may have been: {entry.key}", key=entry.key)
    offers.check_generations(old, head)
    begun = [g for name, g in head.generations.items() if g.parent and not (old and name in old.generations)]
    exact = all(entry.runs is None and entry.stretch is None for entry in change.add)
    same = not change.forget and all(_same_shape(old, now) for now in change.generations.values())
    if not change.drop and not begun and change.pins is None and exact and same:
        offers.check_additions(old, head, change.add)
        _check_unchanged_ends(old, head, change)
        return
    live = view.segments if view else ()
    missing = set(change.drop) - {entry.key for entry in live}
    if missing:
        raise offers.refuse(f"what it replaces is not live: {sorted(missing)[0]}")
    dropped = frozenset(change.drop)
    after = [entry for entry in live if entry.key not in dropped]
    before = offers.by_generation(live)
    offers.check_all(old, head, before, offers.by_generation([*after, *change.add]), change.horizons)


def _same_shape(old: Head | None, now: Generation) -> bool:
    """Whether a generation begins where it did, and is kept as far as it was."""
    was = old.generations.get(now.id) if old else None
    return was is None or (now.parent, now.kept_to) == (was.parent, was.kept_to)


def _check_unchanged_ends(old: Head | None, head: Head, change: Change) -> None:
    """A generation without new segments ends where it did."""
    grown = {entry.generation for entry in change.add}
    for name, end in head.generations.items():
        before = old.generations.get(name) if old else None
        was = before.last_seq if before else end.first_seq - 1
        if name not in grown and end.last_seq != was:
            raise offers.refuse(f"generation {name} grows without a segment, at seq {was}", seq=was)


def _with_segments(head: Head, change: Change, shelf: Shelf) -> tuple[Head, list[str]]:
    """The head with the live segments, and the lists that it does not name any more."""
    dropped = frozenset(change.drop)
    own = [entry for entry in (*head.added, *change.add) if entry.key not in dropped]
    ours = {entry.key for entry in head.added}
    removed = [*head.removed, *(key for key in change.drop if key not in ours)]
    if not lists.needs_turning_over(len(own), len(removed)):
        return replace(head, added=tuple(own), removed=tuple(removed)), []
    kept, written = lists.turn_over(
        head.lists, lambda key: shelf.stored[key].segments, own, frozenset(removed)
    )
    refs = [*kept, *map(shelf.put_segments, written)]
    refs.sort(key=lambda ref: (ref.first_seq, ref.key))
    left = {ref.key for ref in refs}
    replaced = [ref.key for ref in head.lists if ref.key not in left]
    return replace(head, lists=tuple(refs), added=(), removed=()), replaced
