"""Runs that were killed: what the next one adopts, uploads anew, and cleans away."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import backup
import ourdb
from compactor.head import encode_head
from compactor.store import NoAnswer, StoreOptions, open_store
from ourdb import line as lines
from ourdb.errors import Error, TemporaryError
from ourdb.line import Line, Multipart, Upload
from ourdb.units import MIB
from tests.backup_tools import Machine, Shop, records, shop
from tests.faulty import WRITES, FaultyStore

__all__ = ["shop"]


class Killed(BaseException):
    """The process ends here."""


def kill_at(store: FaultyStore, method: str, key: str, nth: int = 1) -> FaultyStore:
    """The run dies just before its nth such request."""

    def die() -> None:
        raise Killed

    store.interleave(method, key, lambda: None, times=nth - 1)
    store.interleave(method, key, die)
    return store


def killed_before_commit(shop: Shop, machine: Machine, **options: Any) -> list[Upload]:
    """A run of which the uploads were acknowledged, and no commit was made."""
    method = "put_if_match" if shop.keep() else "put_if_absent"
    with pytest.raises(Killed):
        machine.run(kill_at(shop.store(), method, "head"), **options)
    return list(machine.line.uploads)


def make_batches(shop: Shop, count: int) -> Machine:
    machine = Machine(shop)
    for _ in range(count):
        machine.write_batch(20)
    return machine


def test_acknowledged_uploads_of_a_killed_run_are_adopted(shop: Shop) -> None:
    machine = make_batches(shop, 6)
    noted = killed_before_commit(shop, machine, segment_bytes=1500)
    assert len(noted) > 2
    report = machine.run()
    assert report.segments == ()
    assert {segment.key for segment in report.adopted} == {upload.key for upload in noted}
    assert machine.stored() == machine.log
    assert machine.line.uploads == ()


def test_gaps_between_adopted_uploads_are_uploaded_and_nothing_else(shop: Shop) -> None:
    machine = make_batches(shop, 6)
    noted = killed_before_commit(shop, machine, segment_bytes=1500)
    lost = noted[1]
    lines.update(machine.path, lambda line: replace(line, uploads=tuple(one for one in noted if one != lost)))
    report = machine.run(segment_bytes=1500)
    assert len(report.segments) == 1
    assert report.segments[0].key != lost.key
    assert len(report.adopted) == len(noted) - 1
    assert machine.stored() == machine.log


def test_records_written_since_the_kill_are_uploaded_behind_what_is_adopted(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    killed_before_commit(shop, machine)
    report = machine.write(5).run()
    assert [(s.first_seq, s.last_seq) for s in report.adopted] == [(1, 10)]
    assert [(s.first_seq, s.last_seq) for s in report.segments] == [(11, 15)]


def test_upload_that_was_never_acknowledged_is_not_adopted(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    store = shop.store()
    store.fail("put_stream", "segments/", "after")
    with pytest.raises(NoAnswer):
        machine.run(store)
    assert any("/segments/" in key for key in shop.bucket.objects)
    assert machine.line.uploads == ()
    report = machine.run()
    assert len(report.segments) == 1
    assert len(shop.view().segments) == 1


def test_upload_below_the_floor_is_not_adopted(shop: Shop) -> None:
    refuse_adoption(shop, lambda head, key: replace(head, floor=head.revision + 1))


def test_upload_that_was_let_go_of_is_not_adopted(shop: Shop) -> None:
    from compactor.entries import Gone

    refuse_adoption(shop, lambda head, key: replace(head, gone=(Gone(key, 1),)))


def refuse_adoption(shop: Shop, change: Callable[[Any, str], Any]) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    machine.write(5)
    (left,) = killed_before_commit(shop, machine)
    view = shop.view()
    head = replace(change(view.head, left.key), revision=view.head.revision + 1, run="f" * 16)
    shop.store().put_if_match("head", encode_head(head), view.etag)
    report = machine.run()
    assert report.adopted == ()
    assert len(report.segments) == 1
    assert left.key not in [entry.key for entry in shop.view().segments]


@pytest.mark.parametrize("harm", ["cut", "altered", "swapped", "missing"])
def test_upload_whose_footer_or_size_is_wrong_is_not_adopted(shop: Shop, harm: str) -> None:
    machine = Machine(shop).write(10)
    (left,) = killed_before_commit(shop, machine)
    (place,) = [key for key in shop.bucket.objects if key.endswith(left.key)]
    found = shop.bucket.objects[place]
    if harm == "cut":
        shop.bucket.objects[place] = replace(found, data=found.data[:-10])
    elif harm == "altered":
        shop.bucket.objects[place] = replace(found, data=found.data[:-20] + b"?" + found.data[-19:])
    elif harm == "swapped":
        other = Machine(shop).write(10)
        shop.wipe()
        (mine,) = killed_before_commit(shop, other)
        shop.bucket.objects[place] = next(o for k, o in shop.bucket.objects.items() if k.endswith(mine.key))
    else:
        del shop.bucket.objects[place]
    report = machine.run()
    assert report.adopted == ()
    assert len(report.segments) == 1
    assert machine.stored() == machine.log


def test_upload_of_records_that_a_power_cut_took_is_not_adopted(shop: Shop) -> None:
    """Its range is ours, and its chain is not."""
    machine = Machine(shop)
    twin = machine.twin()
    machine.write(10)
    noted = killed_before_commit(shop, machine)
    twin.write(10)
    lines.update(twin.path, lambda line: replace(line, uploads=tuple(noted)))
    report = twin.run()
    assert report.adopted == ()
    assert twin.stored() == twin.log


def test_upload_of_another_generation_is_not_adopted(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    killed_before_commit(shop, machine)
    lines.update(machine.path, lambda line: replace(line, generation=lines.new_generation()))
    report = machine.run()
    assert report.adopted == ()
    assert machine.stored() == machine.log


def test_multipart_upload_is_noted_before_its_first_part_and_forgotten_after_it(
    tmp_path: Path, file_url: str
) -> None:
    path = tmp_path / "db"
    with ourdb.open(path, record_size_max=2 * MIB, file_size=8 * MIB) as db:
        for number in range(3):
            db.set(os.urandom(MIB), number)
    noted: list[tuple[Multipart, ...]] = []
    begin = lines.update

    def watch(path: Path, change: lines.Change, **more: Any) -> Line:
        done = begin(path, change, **more)
        noted.append(done.multiparts)
        return done

    store = StoreOptions(put_bytes_max=MIB)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "update", watch)
        backup.backup(path, file_url, meta=tmp_path / "m", options=backup.BackupOptions(store=store))
    assert [len(each) for each in noted] == [1, 0, 0]
    assert noted[0][0].key.endswith(".seg")
    assert noted[0][0].upload_id


def test_multipart_upload_of_a_killed_run_is_aborted_by_the_next(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    left = Multipart(store=shop.url.identity, key="segments/" + "a" * 16 + "/x.seg", upload_id="id-1")
    elsewhere = replace(left, store="s3:another")
    lines.update(machine.path, lambda line: replace(line, multiparts=(left, elsewhere)))
    store = shop.store()
    machine.run(store)
    assert store.sent("abort_upload", left.key) == 1
    assert machine.line.multiparts == (elsewhere,)


def test_multipart_upload_of_a_run_that_is_alive_is_left_alone(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    machine.write(1)
    left = Multipart(store=shop.url.identity, key="segments/" + "a" * 16 + "/x.seg", upload_id="id-1")
    inner = shop.store()

    def second_run() -> None:
        lines.update(machine.path, lambda line: replace(line, multiparts=(left,)))
        machine.run(inner, meta=machine.path.with_name("second-meta.db"))

    store = shop.store()
    store.interleave("put_if_match", "head", second_run)
    machine.run(store)
    assert inner.sent("abort_upload") == 0
    assert left in machine.line.multiparts


# -- a kill at each request in turn


class Counting(FaultyStore):
    """Dies, or gets no answer, at one request of all."""

    def __init__(self, inner: Any, at: int, how: str) -> None:
        super().__init__(inner)
        self.at, self.how = at, how

    def _send(self, method: str, key: str, send: Callable[[], Any]) -> Any:
        self.log.append((method, key))
        if len(self.log) != self.at + 1:
            return send()
        if self.how in ("die after", "no answer after"):
            send()
        if self.how.startswith("die"):
            raise Killed
        if method in WRITES:
            raise NoAnswer("no answer")
        raise TemporaryError("the store is away")


@pytest.mark.parametrize("how", ["die before", "die after", "no answer before", "no answer after"])
def test_whatever_request_a_run_dies_in_the_next_repairs_it(tmp_path: Path, how: str) -> None:
    at = 0
    while True:
        folder = tmp_path / str(at)
        folder.mkdir()
        shop = Shop(folder)
        machine = Machine(shop).write(10)
        machine.run()
        copy = machine.restored().write(3)
        store = Counting(shop.store().inner, at, how)
        try:
            report = copy.run(store, segment_bytes=60)
            assert report.last_seq == 13
        except (Killed, Error):
            pass
        if len(store.log) <= at:
            break
        mark = copy.mark
        assert mark is not None
        if mark.generation == copy.line.generation:  # what was reported is there, whatever comes
            assert copy.stored() == copy.log[: mark.seq]
        assert copy.write(1).run(segment_bytes=60).last_seq == 14
        assert copy.stored() == copy.log
        assert copy.line.uploads == ()
        at += 1
    assert at > 4


@pytest.mark.parametrize("how", ["die before", "die after", "no answer before", "no answer after"])
def test_whatever_request_a_first_run_dies_in_the_next_repairs_it(tmp_path: Path, how: str) -> None:
    at = 0
    while True:
        folder = tmp_path / str(at)
        folder.mkdir()
        shop = Shop(folder)
        machine = Machine(shop).write(5)
        store = Counting(shop.store().inner, at, how)
        with contextlib.suppress(Killed, Error):
            machine.run(store, segment_bytes=100, commit_seconds=0)
        if len(store.log) <= at:
            break
        assert machine.write(1).run().last_seq == 6
        assert machine.stored() == machine.log
        at += 1
    assert at > 8


# -- kill -9 of a process


RUN = """
import sys, backup
from compactor.store import StoreOptions
store = StoreOptions(put_bytes_max=50_000)
options = backup.BackupOptions(segment_bytes=200_000, commit_seconds=0.02, store=store)
while True:
    backup.backup(sys.argv[1], sys.argv[2], meta=sys.argv[3], options=options)
    print("done", flush=True)
"""


def test_process_killed_at_random_moments_leaves_nothing_to_repair_by_hand(
    tmp_path: Path, file_url: str
) -> None:
    path, meta = tmp_path / "db", tmp_path / "meta.db"
    model: list[tuple[int, bytes | None]] = []

    def write(db: ourdb.OurDB, count: int) -> None:
        for _ in range(count):
            value = os.urandom(500)
            db.set(value, len(model) % 100)
            model.append((len(model) % 100, value))

    with ourdb.open(path, file_size=MIB) as db:
        for round_ in range(5):
            write(db, 1500)
            process = subprocess.Popen(
                [sys.executable, "-c", RUN, str(path), file_url, str(meta)],
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            wait_for_objects(file_url)
            time.sleep(0.03 * round_)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        write(db, 10)
        report = backup.backup(path, file_url, meta=meta)
    assert report.last_seq == len(model)
    line = lines.load(path)
    assert line is not None
    assert line.multiparts == ()
    store = FaultyStore(open_store(file_url))
    from compactor.namespace import Namespace

    view = Namespace(store).read()
    assert view is not None
    assert records(store, view, report.generation, report.last_seq) == model
    assert backup.backup(path, file_url, meta=meta).segments == ()


def wait_for_objects(url: str) -> None:
    """Until the process has uploaded something new, so that the kill meets it at work."""
    store = open_store(url)

    def count() -> int:
        return sum(len(page.entries) for page in store.list("segments/"))

    before, deadline = count(), time.monotonic() + 20
    while count() == before and time.monotonic() < deadline:
        time.sleep(0.005)
