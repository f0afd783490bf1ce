"""The log as a backup reads it: ends, chains, pieces, beside a writer, damaged, condensed."""

from __future__ import annotations

import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from crc32c import crc32c

import ourdb
from ourdb import line
from ourdb.errors import DamageError, InvalidError
from ourdb.log import LogReader, Piece
from ourdb.record import decode_record
from ourdb.segment.header import HEADER_BYTES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db"


def fill(db: ourdb.OurDB, rounds: int, seed: int = 1) -> list[int]:
    """Random writes; the batch ends."""
    rng = random.Random(seed)
    ends = []
    for _ in range(rounds):
        if rng.random() < 0.3:
            db.set_many([(rng.randrange(99), bytes(rng.randrange(300))) for _ in range(rng.randrange(1, 30))])
        else:
            db.set(bytes(rng.randrange(300)), rng.randrange(99))
        ends.append(db.last_seq)
    return ends


def read(log: LogReader, pieces: list[Piece]) -> list[tuple[int, int, bytes]]:
    """seq, crc and value of each record, by its own bytes."""
    found = []
    for piece in pieces:
        size = 0
        for columns, raw in log.blocks(piece):
            offset = 0
            for length, crc in zip(columns.length.tolist(), columns.crc.tolist(), strict=True):
                record = decode_record(bytes(raw), offset)
                assert (record.crc, len(record.value)) == (crc, length)
                found.append((record.seq, record.crc, record.value))
                offset += 36 + length
            size += offset
        assert size == piece.raw_bytes
    return found


def test_empty_log_ends_at_zero(path: Path) -> None:
    ourdb.open(path).close()
    with LogReader(path) as log:
        end = log.find_end()
        assert (end.seq, end.chain, end.highest_id, log.chain_at(0), log.chain_at(1)) == (0, 0, None, 0, None)
        with pytest.raises(InvalidError):
            log.pieces(1, 1)


def test_end_chain_and_batch_ends_are_those_of_the_records(path: Path) -> None:
    with ourdb.open(path, file_size=64 * 1024) as db, LogReader(path) as log:
        ends = fill(db, 300)
        end = log.find_end()
        records = read(log, log.pieces(1, end.seq))
        assert [seq for seq, _, _ in records] == list(range(1, db.last_seq + 1))
        chain, chains = 0, [0]
        for _, crc, _ in records:
            chain = crc32c(crc.to_bytes(4, "little"), chain)
            chains.append(chain)
        assert (end.seq, end.time_ms, end.chain) == (db.last_seq, db.last_time, chain)
        assert end.highest_id == max(db)
        for seq in [*range(0, end.seq, 37), end.seq]:
            assert log.chain_at(seq) == chains[seq]
            assert log.batch_end_at_or_before(seq) == max((e for e in ends if e <= seq), default=0)
        assert log.chain_at(end.seq + 1) is None
        assert log.batch_end_at_or_before(end.seq + 99) == end.seq


@pytest.mark.parametrize("raw_bytes_max", [1, 5000, 40_000, 1 << 30])
def test_pieces_cover_a_range_at_batch_ends_and_keep_to_their_size(path: Path, raw_bytes_max: int) -> None:
    with ourdb.open(path, file_size=64 * 1024) as db, LogReader(path) as log:
        ends = fill(db, 200)
        log.find_end()
        first = ends[50] + 1
        pieces = log.pieces(first, ends[-20], raw_bytes_max=raw_bytes_max)
        before = first - 1
        for piece in pieces:
            summary = piece.summary
            assert summary.first_seq == before + 1
            assert summary.last_seq in ends
            assert summary.exact
            assert log.chain_at(before) == summary.chain_before
            one_batch = not any(summary.first_seq <= end < summary.last_seq for end in ends)
            assert piece.raw_bytes <= raw_bytes_max or one_batch
            before = summary.last_seq
            assert log.header(piece).uuid == db.uuid
        assert before == ends[-20]
        assert [seq for seq, _, _ in read(log, pieces)] == list(range(first, before + 1))
        log.make_durable(first, before)


def test_pieces_outlive_sealing_and_merging_of_their_file(path: Path) -> None:
    with ourdb.open(path, file_size=256 * 1024) as db, LogReader(path) as log:
        fill(db, 50)
        db.rotate()
        fill(db, 50, seed=2)
        pieces = log.pieces(1, log.find_end().seq)
        expected = read(log, pieces)
        db.rotate()
        db.condense()
        assert len(db._list.files) == 2
        assert read(log, pieces) == expected
        assert log.pieces(1, log.find_end().seq)[0].summary.records == len(expected)


def test_condensed_file_is_a_piece_with_the_exactness_that_it_has(path: Path) -> None:
    with ourdb.open(path) as db, LogReader(path) as log:
        fill(db, 100)
        db.condense(keep_versions=1)
        middle = db.last_seq
        fill(db, 10, seed=2)
        end = log.find_end()
        pieces = log.pieces(1, end.seq)
        assert [piece.summary.exact for piece in pieces] == [False, True]
        assert log.chain_at(middle - 1) is None
        assert log.chain_at(middle) == pieces[0].summary.chain_after == pieces[1].summary.chain_before
        assert len(read(log, pieces)) == sum(piece.summary.records for piece in pieces)


def test_known_mark_spares_reading_values_and_a_wrong_one_is_not_believed(path: Path) -> None:
    with ourdb.open(path) as db:
        fill(db, 100)
        with LogReader(path) as log:
            middle = log.find_end()
        fill(db, 100, seed=2)
        with LogReader(path) as log:
            end = log.find_end()
        for known in [(middle.seq, middle.chain), (middle.seq, middle.chain ^ 1), (end.seq + 5, 7)]:
            with LogReader(path) as log:
                assert log.find_end(known=known) == end
                assert log.chain_at(middle.seq) == middle.chain
                assert len(read(log, log.pieces(1, end.seq))) == end.seq


def test_value_that_was_damaged_is_not_shipped(path: Path) -> None:
    with ourdb.open(path) as db:
        db.set(b"value", 1)
        db.rotate()
        db.set(b"value", 2)
        db.sync()
    with LogReader(path) as log:
        pieces = log.pieces(1, log.find_end().seq)
        for name in ("0.db", "1.db"):
            with (path / name).open("r+b") as file:
                file.seek(HEADER_BYTES + 38)
                file.write(b"#")
        for piece, name in zip(pieces, ("0.db", "1.db"), strict=True):
            with pytest.raises(DamageError) as caught:
                list(log.blocks(piece))
            assert caught.value.fields["file"] == name
    with LogReader(path) as log, pytest.raises(DamageError, match="durable"):
        log.find_end()


def test_log_that_ends_before_its_shipped_mark_is_damage(path: Path) -> None:
    with ourdb.open(path, sync="never") as db:
        db.set(b"one", 1)
    mark = line.Mark(url="file:///x", generation="1" * 16, seq=2, chain=1, revision=1, run="0" * 16)
    line.update(path, lambda known: line.raise_mark(known, "x", mark))
    with LogReader(path) as log, pytest.raises(DamageError):
        log.find_end()


WRITER = """
import sys, ourdb
with ourdb.open(sys.argv[1], file_size=64 * 1024, sync="never") as db:
    number = 0
    while True:
        number += 1
        db.set_many([(id, b"%d" % number) for id in range(10)])
        if number % 200 == 0:
            db.condense()
        if number == 20:
            print("ready", flush=True)
"""


def test_log_is_read_beside_a_process_that_writes_rotates_and_condenses(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(Path(ourdb.__file__).parents[1])},
    ) as writer:
        try:
            assert writer.stdout is not None
            writer.stdout.readline()
            done = 0
            with LogReader(path) as log:
                for _ in range(15):
                    end = log.find_end()
                    assert end.seq % 10 == 0
                    pieces = log.pieces(done + 1, end.seq) if end.seq > done else []
                    assert [seq for seq, _, _ in read(log, pieces)] == list(range(done + 1, end.seq + 1))
                    done = end.seq
        finally:
            writer.kill()
    assert done > 0


def test_memory_does_not_grow_with_the_log(path: Path) -> None:
    with ourdb.open(path, sync="never") as db:
        for _ in range(60):
            db.set_many([(id_, bytes(1000)) for id_ in range(1000)])
    tracemalloc.start()
    try:
        with LogReader(path) as log:
            pieces = log.pieces(1, log.find_end().seq)
            assert sum(len(raw) for piece in pieces for _, raw in log.blocks(piece)) == 60_000 * 1036
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()
