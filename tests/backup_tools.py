"""A machine with a database, a store that can fail, and a reader of what is really in the store."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ourdb
from backup.common import open_segment
from backup.context import Context, Gauge
from backup.notebook import Notebook
from backup.options import BackupOptions
from backup.report import BackupReport
from backup.run import BackupRun
from compactor.lineage import owner_of
from compactor.meta.index import MetaIndex
from compactor.namespace import Namespace
from compactor.path import route
from compactor.store import StoreOptions
from compactor.store.memory import Bucket, MemoryStore
from compactor.url import parse_url
from compactor.view import View
from ourdb import line as lines
from ourdb.line import Line, Mark, Origin
from ourdb.log import LogReader
from ourdb.record import TOMBSTONE, decode_record
from ourdb.segment.columns import extend_chain
from ourdb.units import MIB, now_ms
from tests.faulty import FaultyStore

QUICK = BackupOptions(wait_seconds=0.5, store=StoreOptions(retry_seconds=0, threads=2), threads=2)
_names = itertools.count()
Write = tuple[int, bytes | None]


class Shop:
    """A bucket, and machines that back up into one namespace of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bucket = Bucket()
        self.later_ms = 0
        self.url = parse_url("memory://bucket/shelf/notes")

    def store(self) -> FaultyStore:
        return FaultyStore(MemoryStore(self.url, QUICK.store, bucket=self.bucket))

    def view(self) -> View:
        """The head as anybody finds it."""
        view = Namespace(self.store()).read()
        assert view is not None
        return view

    def wipe(self) -> None:
        self.bucket.objects.clear()

    def keep(self) -> dict[str, Any]:
        """The head as it is now, for `put_back`."""
        return {key: value for key, value in self.bucket.objects.items() if key.endswith("/head")}

    def put_back(self, kept: dict[str, Any]) -> None:
        """An older head is put back by hand: a new object with the old bytes."""
        for key, value in kept.items():
            self.bucket.objects[key] = replace(value, etag=f'"put back {next(_names)}"')


class Machine:
    """A database directory and a meta index. Writes are remembered: what every restore has to equal."""

    def __init__(self, shop: Shop, name: str = "") -> None:
        self.shop = shop
        self.path = shop.folder / (name or f"machine-{next(_names)}")
        self.meta = self.path.with_name(self.path.name + "-meta.db")
        self.log: list[Write] = []
        if not self.path.exists():
            ourdb.open(self.path, file_size=64 * 1024, record_size_max=2048).close()

    def write(self, count: int, *, value: bytes = b"value", rotate: bool = False) -> Machine:
        with ourdb.open(self.path) as db:
            for _ in range(count):
                number = len(self.log)
                content = value + b"-%d-%s" % (number, self.path.name.encode())
                db.set(content, number % 50)
                self.log.append((number % 50, content))
            if rotate:
                db.rotate()
        return self

    def write_batch(self, count: int) -> Machine:
        with ourdb.open(self.path) as db, db.batch() as batch:
            for _ in range(count):
                number = len(self.log)
                batch.set(b"batch-%d" % number, number % 50)
                self.log.append((number % 50, b"batch-%d" % number))
        return self

    def run(self, store: FaultyStore | None = None, **options: Any) -> BackupReport:
        """A backup run; options: of BackupOptions, and clock_ms and monotonic of its Context."""
        clock_ms: Callable[[], int] = options.pop("clock_ms", now_ms)
        monotonic: Callable[[], float] = options.pop("monotonic", time.monotonic)
        meta = options.pop("meta", self.meta)
        used = store or self.shop.store()
        with LogReader(self.path) as log, MetaIndex.open(meta) as index:
            context = Context(
                path=self.path,
                log=log,
                store=used,
                namespace=Namespace(used, index),
                notebook=Notebook(self.path, used),
                options=replace(QUICK, **options).validate(),
                gauge=Gauge(None),
                clock_ms=clock_ms,
                monotonic=monotonic,
            )
            return BackupRun(context).run()

    @property
    def line(self) -> Line:
        found = lines.load(self.path)
        assert found is not None
        return found

    @property
    def mark(self) -> Mark | None:
        return self.line.marks.get(self.shop.url.identity)

    def twin(self) -> Machine:
        """A copy of the directory, as `cp -a` makes it, on another machine."""
        name = f"machine-{next(_names)}"
        shutil.copytree(self.path, self.shop.folder / name)
        other = Machine(self.shop, name)
        other.log = list(self.log)
        return other

    def restored(self) -> Machine:
        """A copy at its present end, with the line that a restore from the store writes."""
        other, view = self.twin(), self.shop.view()
        seq, head = len(self.log), view.head
        with LogReader(other.path) as log:
            assert log.find_end().seq == seq
            chain = log.chain_at(seq)
        assert chain is not None
        line, mark = self.line, self.mark
        assert mark is not None
        begun = line.generation in head.generations
        owner = owner_of(head, line.generation if begun else mark.generation, seq)
        end = owner
        while end.successor:
            end = head.generations[end.successor]
        store = self.shop.url.identity
        left = Mark(
            url=self.shop.url.display, generation=owner.id, seq=seq, chain=chain, revision=0, run="0" * 16
        )
        lines.create(
            other.path,
            lines.new_generation(),
            origin=Origin(
                store=store,
                generation=owner.id,
                seq=seq,
                chain=chain,
                end_generation=end.id,
                end_last_seq=end.last_seq,
                end_as_of=end.as_of,
                revision=head.kept.revision,
                run=head.kept.run,
            ),
            marks={store: left},
        )
        return other

    def stored(self, generation: str | None = None, seq: int | None = None) -> list[Write]:
        """What the store alone restores for our generation, up to our mark."""
        mark = self.mark
        assert mark is not None
        return records(
            self.shop.store(),
            self.shop.view(),
            generation or mark.generation,
            mark.seq if seq is None else seq,
        )


def records(store: FaultyStore, view: View, generation: str, seq: int) -> list[Write]:
    """Every record from 1 to seq, along the restore path, with the chain checked from its start."""
    steps = route(view, generation, seq)
    assert steps is not None, f"no path to seq {seq} of {generation}"
    found: list[Write] = []
    chain, uuid = 0, bytes.fromhex(view.head.uuid)
    for step in steps:
        for columns, raw in open_segment(store, step.segment, uuid).blocks():
            offset = 0
            for at, length in enumerate(columns.raw_sizes.tolist()):
                record = decode_record(raw, offset)
                offset += length
                if step.after < record.seq <= step.upto:
                    assert record.seq == len(found) + 1
                    found.append((record.id, None if record.flags & TOMBSTONE else record.value))
                    chain = extend_chain(chain, columns.crc[at : at + 1])
    assert len(found) == seq
    last = steps[-1].segment if steps else None
    if last and last.last_seq == seq:
        assert last.name.chain_after == chain
    return found


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


__all__ = ["MIB", "QUICK", "Machine", "Shop", "records", "shop"]
