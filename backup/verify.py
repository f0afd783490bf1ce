"""Verification: does the store hold what its head says? Structure from one listing, or every byte."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

from backup.gauge import Meter
from backup.options import Progress
from backup.restoring.download import IN_FLIGHT_BYTES_MAX
from compactor.entries import SegmentEntry
from compactor.fetch import SegmentFetcher
from compactor.generations import Generation
from compactor.lineage import open_lines, segments_of
from compactor.path import route
from compactor.session import Session, open_session
from compactor.store import NoSuchKey, Store, StoreOptions
from compactor.view import View
from compactor.windows import gaps_of, reaches, windows_of
from ourdb.config import Config
from ourdb.errors import DamageError
from ourdb.names import HEAD_KEY, is_ours
from ourdb.segment.footer import FOOTER_BYTES
from ourdb.units import MIB

Kind = Literal["missing", "damaged", "wrong_size", "wrong_name", "chain"]
READ_AHEAD_BYTES = 4 * MIB


@dataclass(frozen=True, kw_only=True)
class Problem:
    """key: the object, or the head where that does not fit together. first_seq, last_seq: what is concerned,
    None: no range of seq is (a list, for instance)."""

    key: str
    kind: Kind
    first_seq: int | None
    last_seq: int | None
    message: str

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """ok: no problem was found; the command exits 14 otherwise. segments_checked, bytes_checked: of objects
    that the head names; with `data` their bytes were read, else their sizes compared. foreign: keys that are
    not ours. unnamed: how many objects are ours and not named: uploads in progress, or left by killed runs,
    or let go of and not yet deleted. Neither is a problem."""

    namespace: str
    generation: str | None
    data: bool
    generations: int
    segments_checked: int
    bytes_checked: int
    problems: tuple[Problem, ...]
    foreign: tuple[str, ...]
    unnamed: int
    requests: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        return (
            {"ok": self.ok}
            | vars(self)
            | {
                "problems": [problem.as_json() for problem in self.problems],
                "foreign": list(self.foreign),
                "requests": dict(self.requests),
                "notes": list(self.notes),
            }
        )


def verify(
    url: str,
    *,
    data: bool = False,
    meta: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    options: StoreOptions | None = None,
    threads: int = 4,
) -> VerifyReport:
    """Compares the store with its head: names, lists, chains of all generations, pins, and by one listing
    that every object is there with its size. data: also reads every byte, a few segments at a time.

    Problems are in the report, which says `ok`; what is raised is what keeps it from being made:
    NotFoundError (`no_namespace`), DamageError (`store_damaged`: head or list cannot be read;
    `store_lost_data`), RefusedError, TemporaryError. progress: bytes read, bytes in all, what is done.
    """
    with open_session(url, meta, options) as session:
        view = session.read()
        listed = _list_all(session.store)
        problems = [*_check_objects(view, listed), *_check_lines(view)]
        if data:
            broken = {problem.key for problem in problems}
            whole = [entry for entry in view.segments if entry.key not in broken]
            problems += _check_data(session, view, whole, progress, threads)
        problems = _still_named(session, problems)
        lines = open_lines(view.head)
        known = _named(view)
        return VerifyReport(
            namespace=view.head.namespace,
            generation=lines[0].id if len(lines) == 1 else None,
            data=data,
            generations=len(view.head.generations),
            segments_checked=len(view.segments),
            bytes_checked=sum(entry.bytes for entry in view.segments),
            problems=tuple(sorted(problems, key=lambda p: (p.first_seq or 0, p.key))),
            foreign=tuple(sorted(key for key in listed if not is_ours(key))),
            unnamed=sum(is_ours(key) and key not in known for key in listed),
            requests=session.store.requests.counts(),
            notes=session.notes,
        )


def _list_all(store: Store) -> dict[str, int]:
    listed: dict[str, int] = {}
    for page in store.list():
        listed.update((stat.key, stat.bytes) for stat in page.entries)
    return listed


def _named(view: View) -> dict[str, int | None]:
    """Every object of the head with the size that it should have, None: it says nothing of that."""
    lists = {ref.key: ref.bytes for ref in view.head.lists}
    gone_lists = {ref.key: ref.bytes for ref in view.head.gone_lists}
    return {HEAD_KEY: None} | lists | gone_lists | {entry.key: entry.bytes for entry in view.segments}


def _check_objects(view: View, listed: Mapping[str, int]) -> Iterator[Problem]:
    ranges = {entry.key: (entry.first_seq, entry.last_seq) for entry in view.segments}
    for key, size in _named(view).items():
        first, last = ranges.get(key, (None, None))
        if key not in listed:
            yield Problem(key=key, kind="missing", first_seq=first, last_seq=last, message=f"missing: {key}")
        elif size is not None and listed[key] != size:
            message = f"has {listed[key]} bytes, not {size}: {key}"
            yield Problem(key=key, kind="wrong_size", first_seq=first, last_seq=last, message=message)
    for entry in view.segments:
        owner = view.head.generations.get(entry.generation)
        if owner is None or not owner.first_seq <= entry.first_seq <= entry.last_seq <= owner.last_seq:
            yield _problem(entry, "wrong_name", f"not within a generation of the head: {entry.key}")
        else:
            try:
                entry.summary().validate()
            except DamageError as error:
                yield _problem(entry, "wrong_name", f"{error.message}: {entry.key}")


def _check_lines(view: View) -> Iterator[Problem]:
    """Each generation joins its parent, and a path leads to its end, its pins and its branch points."""
    head = view.head
    for generation in head.generations.values():
        parent = generation.parent
        if parent and not _offered(view, parent.generation, parent.seq):
            why = f"it left {parent.generation} at a seq that is lost"
            yield _head_problem(generation, parent.seq, parent.seq, why)
        elif generation.end_seq >= generation.first_seq:
            yield from _check_end(view, generation)
    for pin in head.pins:
        if pin.generation not in head.generations or not _offered(view, pin.generation, pin.seq):
            message = f"pin {pin.name} is not restorable: seq {pin.seq} of generation {pin.generation}"
            yield Problem(key=HEAD_KEY, kind="chain", first_seq=pin.seq, last_seq=pin.seq, message=message)


def _check_end(view: View, generation: Generation) -> Iterator[Problem]:
    steps = route(view, generation.id, generation.end_seq)
    if steps is None:
        lost = gaps_of(generation, windows_of(reaches(view, generation), generation.id))[-1]
        yield _head_problem(generation, lost.first_seq, lost.last_seq, "no path leads to its end")
        return
    last = [s for s in segments_of(view, generation.id) if s.last_seq == generation.last_seq]
    for entry in last:
        if entry.name.chain_after != generation.chain:
            yield _problem(
                entry, "chain", f"its chain is not the one at the end of its generation: {entry.key}"
            )
        if entry.name.last_time != generation.last_time:
            yield _problem(entry, "chain", f"its time is not that of its generation's end: {entry.key}")


def _offered(view: View, generation: str, seq: int) -> bool:
    return seq == 0 or route(view, generation, seq) is not None


def _check_data(
    session: Session, view: View, entries: list[SegmentEntry], progress: Progress | None, threads: int
) -> list[Problem]:
    meter = Meter(progress, "verifying")
    meter.all_bytes = sum(entry.bytes for entry in entries)
    fetcher = SegmentFetcher(session.store, view.head.uuid, meter.add)

    def check(entry: SegmentEntry) -> Problem | None:
        try:
            reader = fetcher.open(entry, fetch=_read_ahead(fetcher, entry))
            if (reader.summary.records, reader.footer.index_bytes) != (entry.records, entry.index_bytes):
                return _problem(entry, "damaged", f"the head says other counts than the segment: {entry.key}")
            reader.check_all()
        except NoSuchKey:
            return _problem(entry, "missing", f"missing: {entry.key}")
        except DamageError as error:
            problem = _problem(entry, "damaged", error.message)
            seq = error.fields.get("seq")
            return problem if seq is None else replace(problem, message=f"{error.message} (seq {seq})")
        return None

    largest = Config.from_json(
        dict(view.head.config)
    ).record_size_max  # a thread has one such block in memory
    with ThreadPoolExecutor(max(1, min(threads, IN_FLIGHT_BYTES_MAX // max(1, largest))), "verify") as pool:
        return [problem for problem in pool.map(check, entries) if problem]


def _read_ahead(fetcher: SegmentFetcher, entry: SegmentEntry) -> Callable[[int, int], bytes]:
    """Reads that go forward through the blocks, and by turns through the index, with fewer requests. For one
    thread."""
    index_place = entry.bytes - FOOTER_BYTES - entry.index_bytes
    windows = {False: (0, b""), True: (0, b"")}  # of blocks, of the index: where it begins, and what is there

    def fetch(offset: int, length: int) -> bytes:
        side = offset >= index_place
        start, ahead = windows[side]
        if not start <= offset <= offset + length <= start + len(ahead):
            windows[side], ahead = (0, b""), b""  # not both in memory
            end = entry.bytes if side else max(index_place, offset + length)
            start, ahead = (
                offset,
                fetcher.read(entry, offset, max(length, min(READ_AHEAD_BYTES, end - offset))),
            )
            windows[side] = start, ahead
        return ahead[offset - start : offset - start + length]

    return fetch


def _still_named(session: Session, problems: list[Problem]) -> list[Problem]:
    """Without what is no problem because the head was replaced meanwhile, and names it no more (rule 7)."""
    if all(problem.key == HEAD_KEY for problem in problems):
        return problems
    named = {*_named(session.read())}
    return [problem for problem in problems if problem.key in named]


def _problem(entry: SegmentEntry, kind: Kind, message: str) -> Problem:
    return Problem(
        key=entry.key, kind=kind, first_seq=entry.first_seq, last_seq=entry.last_seq, message=message
    )


def _head_problem(generation: Generation, first: int, last: int, why: str) -> Problem:
    return Problem(
        key=HEAD_KEY,
        kind="chain",
        first_seq=first,
        last_seq=last,
        message=f"generation {generation.id} does not hold together: {why}",
    )
