"""Database directories made from outside, as a restore makes them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import ourdb
from ourdb import line
from ourdb.build import DirectoryBuilder
from ourdb.check import check
from ourdb.errors import DamageError, ExistsError, InvalidError, NotFoundError
from ourdb.log import LogReader
from ourdb.segment.columns import Columns


def copy(source: Path, target: Path, harm: bool = False) -> None:
    """Copy a database by its log, blocks in any order."""
    rng = random.Random(1)
    with (
        LogReader(source) as log,
        DirectoryBuilder(target, uuid=log.uuid, config=log.config, generation=0xA1) as builder,
    ):
        end = log.find_end()
        for piece in log.pieces(1, end.seq) if end.seq else []:
            file = builder.file(piece.summary, piece.raw_bytes)
            parts: list[tuple[int, bytes]] = []
            columns: list[Columns] = []
            offset = 0
            for some, raw in log.blocks(piece):
                parts.append((offset, bytes(raw)))
                columns.append(some)
                offset += len(raw)
            rng.shuffle(parts)
            for at, raw in parts:
                file.put(at, raw[:-1] + b"#" if harm else raw)
            file.finish(columns)
        with pytest.raises(NotFoundError):
            ourdb.open(target, readonly=True)
        builder.finish()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    with ourdb.open(tmp_path / "db", file_size=64 * 1024, mode="incremental") as db:
        for number in range(300):
            db.set(b"%d" % number * (number % 100))
        db.set_many({7: b"seven", 8: b"eight"})
        db.delete(300)
    return tmp_path / "db"


def test_built_directory_equals_its_source_and_goes_on(source: Path, tmp_path: Path) -> None:
    copy(source, tmp_path / "copy")
    with ourdb.open(source) as db, ourdb.open(tmp_path / "copy") as made:
        assert (dict(made), made.last_seq, made.uuid, made.config) == (
            dict(db),
            db.last_seq,
            db.uuid,
            db.config,
        )
        assert made.get_history(7) == db.get_history(7)
        assert made.get_history(300) == db.get_history(300)
        assert dict(made.items(seq=100)) == dict(db.items(seq=100))
        assert made.get_next_id() == 301
        assert made.set(b"new") == 301
        made.rotate()
    assert check(tmp_path / "copy").problems == []
    known = line.load(tmp_path / "copy")
    assert known is not None
    assert known.generation == "00000000000000a1"


def test_line_that_is_there_already_is_kept(source: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    line.create(tmp_path / "copy", "00000000000000b2")
    copy(source, tmp_path / "copy")
    known = line.load(tmp_path / "copy")
    assert known is not None
    assert known.generation == "00000000000000b2"


def test_empty_database_is_built(tmp_path: Path) -> None:
    ourdb.open(tmp_path / "db").close()
    copy(tmp_path / "db", tmp_path / "copy")
    with ourdb.open(tmp_path / "copy") as made:
        assert made.last_seq == 0
        assert made.set(b"x", 0) == 0


def test_bytes_that_are_not_what_the_columns_say_are_found(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DamageError):
        copy(source, tmp_path / "copy", harm=True)
    with pytest.raises(NotFoundError):
        ourdb.open(tmp_path / "copy", create=False)


def test_directory_that_is_not_empty_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ExistsError):
        copy(source, source)


def test_unfinished_file_and_bytes_outside_are_refused(source: Path, tmp_path: Path) -> None:
    with LogReader(source) as log:
        [piece, *_] = log.pieces(1, log.find_end().seq)
        with DirectoryBuilder(tmp_path / "copy", uuid=log.uuid, config=log.config, generation=1) as builder:
            file = builder.file(piece.summary, piece.raw_bytes)
            with pytest.raises(InvalidError):
                file.put(piece.raw_bytes - 3, b"1234")
            with pytest.raises(InvalidError):
                builder.finish()
