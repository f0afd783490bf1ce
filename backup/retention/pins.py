"""Pins: points that stay exact whatever the policy says, under a name in the head."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from backup.commit import commit
from backup.restoring.planner import Planner
from backup.restoring.target import Wanted
from compactor.fetch import SegmentFetcher
from compactor.head import Head, Pin
from compactor.index_points import Point
from compactor.publish import Change, Patience
from compactor.session import Session, open_session
from compactor.store import StoreOptions
from compactor.view import View
from ourdb.errors import ExistsError, InvalidError, NotFoundError, UnreachableError
from ourdb.units import When, format_time

NAME_CHARACTERS_MAX = 100


@dataclass(frozen=True, kw_only=True)
class PinReport:
    """The pin that was made, or `removed`."""

    url: str
    pin: Pin
    removed: bool
    requests: Mapping[str, int]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "url": self.url,
            **pin_json(self.pin),
            "removed": self.removed,
            "requests": dict(self.requests),
            "notes": list(self.notes),
        }


def pin_json(pin: Pin) -> dict[str, Any]:
    """A pin as commands print it."""
    return {
        "name": pin.name,
        "generation": pin.generation,
        "seq": pin.seq,
        "time": format_time(pin.time),
    }


def pin(
    url: str,
    name: str,
    *,
    at: When | None = None,
    seq: int | None = None,
    generation: str | None = None,
    meta: str | os.PathLike[str] | None = None,
    options: StoreOptions | None = None,
) -> PinReport:
    """Keeps a point exact under a name, until it is unpinned: the one at a time, at a seq, or the newest.

    name: 1 to 100 printable characters, without slash. at, seq, generation: as in `restore`. The same name on
    the same point is done already. When this returns the head that names the pin is known to be kept.

    Raises UnreachableError (the point is not offered exactly; nearest_before, nearest_after), ExistsError
    (`pin_exists`: the name is that of another point), InvalidError, NotFoundError (`no_namespace`,
    `no_generation`), FencedError (`two_lines`, `no_cas`, `other_host`), DamageError, RefusedError,
    TemporaryError.
    """
    wanted = Wanted.of(at=at, seq=seq, nearest_before=None)
    check_name(name)
    with open_session(url, meta, options) as session:
        return pin_session(session, name, wanted, generation)


def pin_session(
    session: Session,
    name: str,
    wanted: Wanted,
    generation: str | None = None,
    *,
    patience: Patience | None = None,
) -> PinReport:
    """As `pin`."""
    view, point = _find(session, wanted, generation)
    made = Pin(name=name, generation=point.generation, seq=point.seq, time=point.time)

    def change(at: View) -> Change:
        if at is not view:  # a lost race: the point may have gone with it
            _find(session, replace(wanted, seq=made.seq, time_max=None), made.generation)
        held = find_pin(at.head, name)
        if held is None:
            return Change(pins=(*at.head.pins, made))
        if (held.generation, held.seq) != (made.generation, made.seq):
            raise ExistsError(
                f"pin {name} is another point: seq {held.seq} of generation {held.generation}, "
                f"{format_time(held.time)} (use another name, or unpin that first)",
                kind="pin_exists",
                **pin_json(held),
            )
        return Change()  # what was only read is not yet kept: once more

    done = commit(session, view, change, patience)
    return _report(session, find_pin(done.head, name) or made, removed=False)


def unpin(
    url: str,
    name: str,
    *,
    meta: str | os.PathLike[str] | None = None,
    options: StoreOptions | None = None,
) -> PinReport:
    """Lets go of a pin: its point is kept only as long as the policy keeps it.

    Raises NotFoundError (`no_pin`, with the names there are; `no_namespace`), FencedError, DamageError,
    RefusedError, TemporaryError.
    """
    with open_session(url, meta, options) as session:
        return unpin_session(session, name)


def unpin_session(session: Session, name: str, *, patience: Patience | None = None) -> PinReport:
    """As `unpin`."""
    view = session.read()
    held = find_pin(view.head, name)
    if held is None:
        names = sorted(pin.name for pin in view.head.pins)
        raise NotFoundError(
            f"no pin {name} in {session.url} (there are: {', '.join(names) or 'none'})",
            kind="no_pin",
            pins=names,
        )

    def change(at: View) -> Change | None:
        now = find_pin(at.head, name)
        if now is None or (now.generation, now.seq) != (held.generation, held.seq):
            return None  # it is gone, and the name perhaps another's by now
        return Change(pins=tuple(pin for pin in at.head.pins if pin.name != name))

    commit(session, view, change, patience)
    return _report(session, held, removed=True)


def find_pin(head: Head, name: str) -> Pin | None:
    """The pin of this name."""
    return next((pin for pin in head.pins if pin.name == name), None)


def check_name(name: str) -> str:
    """The name of a pin; InvalidError if it is none."""
    if not 1 <= len(name) <= NAME_CHARACTERS_MAX or not name.isprintable() or "/" in name or name.isspace():
        raise InvalidError(
            f"name of a pin must be 1 to {NAME_CHARACTERS_MAX} printable characters without slash: {name!r}"
        )
    return name


def _find(session: Session, wanted: Wanted, generation: str | None) -> tuple[View, Point]:
    """The head as it is now, and the point that is meant."""

    def fetcher(uuid: str) -> SegmentFetcher:
        return SegmentFetcher(session.store, uuid)

    plan = Planner(session, wanted, generation, fetcher).persist(lambda plan: plan)
    if plan.point is None:
        raise UnreachableError(
            f"nothing was written yet, so there is no point to pin: {session.url}",
            nearest_before=None,
            nearest_after=None,
        )
    return plan.view, plan.point


def _report(session: Session, pin: Pin, *, removed: bool) -> PinReport:
    return PinReport(
        url=session.url,
        pin=pin,
        removed=removed,
        requests=session.store.requests.counts(),
        notes=session.notes,
    )
