"""The line of a directory: kept whole, marks never lowered, one change at a time."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from ourdb import line, sealedjson
from ourdb.errors import DamageError, InvalidError, UnknownFormatError
from ourdb.files import FileSystem

GENERATION = "00000000000000a1"
STORE = "file:/srv/backup/notes"


def mark(seq: int, revision: int = 1, generation: str = GENERATION) -> line.Mark:
    return line.Mark(
        url="file:///srv/backup/notes",
        generation=generation,
        seq=seq,
        chain=7,
        revision=revision,
        run="0123456789abcdef",
    )


def full_line() -> line.Line:
    return line.Line(
        generation=GENERATION,
        start="fork",
        old="00000000000000a0",
        origin=line.Origin(
            store=STORE,
            generation="00000000000000a0",
            seq=5,
            chain=9,
            end_generation="00000000000000b0",
            end_last_seq=8,
            end_as_of=1_700_000_000_000,
            revision=3,
            run="0123456789abcdef",
        ),
        marks={STORE: mark(2**53 + 1)},
        known={STORE: line.Known(revision=2**62, run="0123456789abcdef")},
        uploads=(line.Upload(store=STORE, key="segments/a/b.seg", bytes=10),),
        multiparts=(line.Multipart(store=STORE, key="segments/a/c.seg", upload_id="é/+"),),
    )


def test_line_written_is_read_back_whole(tmp_path: Path) -> None:
    line.create(tmp_path, GENERATION)
    line.update(tmp_path, lambda _: full_line())
    assert line.load(tmp_path) == full_line()


def test_directory_without_line_loads_none_and_gets_a_generation_when_updated(tmp_path: Path) -> None:
    assert line.load(tmp_path) is None
    made = line.update(tmp_path, lambda old: old)
    assert made.start == "first"
    assert line.load(tmp_path) == made


def test_restored_copy_starts_plain_with_its_origin(tmp_path: Path) -> None:
    origin = full_line().origin
    made = line.create(tmp_path, GENERATION, origin=origin, marks={STORE: mark(5)})
    assert (made.start, made.origin) == ("plain", origin)
    assert line.load(tmp_path) == made


def test_flipped_byte_is_damage(tmp_path: Path) -> None:
    line.create(tmp_path, GENERATION)
    file = tmp_path / line.FILE_NAME
    content = bytearray(file.read_bytes())
    content[content.index(b"a1")] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamageError, match=r"line\.json"):
        line.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"start": "sideways"},
        {"generation": None, "more": 1},
        {"marks": {STORE: {"seq": 1}}},
        {"marks": []},
        {"uploads": [1]},
    ],
)
def test_sealed_line_of_wrong_shape_is_damage(tmp_path: Path, change: dict[str, object]) -> None:
    sealedjson.replace(tmp_path / line.FILE_NAME, full_line().as_json() | change, fs=FileSystem())
    with pytest.raises(DamageError, match="not the line of a database"):
        line.load(tmp_path)


def test_unknown_version_is_refused_as_such(tmp_path: Path) -> None:
    sealedjson.replace(tmp_path / line.FILE_NAME, full_line().as_json() | {"version": 2}, fs=FileSystem())
    with pytest.raises(UnknownFormatError, match="2"):
        line.load(tmp_path)


def test_mark_of_the_same_generation_is_never_lowered() -> None:
    high = line.raise_mark(full_line(), STORE, mark(2**53 + 9, revision=5))
    assert high.marks[STORE].seq == 2**53 + 9
    assert line.raise_mark(high, STORE, mark(4, revision=4)).marks[STORE].seq == 2**53 + 9


def test_mark_of_a_new_generation_replaces_the_old_one() -> None:
    forked = replace(full_line(), generation="00000000000000a2")
    assert forked.shipped(STORE) is None
    raised = line.raise_mark(forked, STORE, mark(4, generation="00000000000000a2"))
    assert raised.shipped(STORE) == mark(4, generation="00000000000000a2")


def test_known_revision_rises_with_the_mark_and_never_falls() -> None:
    fresh = line.raise_mark(line.Line(generation=GENERATION, start="first"), STORE, mark(1, revision=6))
    assert fresh.known[STORE].revision == 6
    lower = line.raise_known(fresh, STORE, line.Known(revision=5, run="ffffffffffffffff"))
    assert lower.known[STORE].revision == 6
    same = line.raise_known(fresh, STORE, line.Known(revision=6, run="ffffffffffffffff"))
    assert same.known[STORE].run == "0123456789abcdef"


def test_forgotten_store_has_no_mark_but_its_head_stays_known() -> None:
    forgotten = line.forget(full_line(), STORE)
    assert forgotten.marks == {}
    assert forgotten.known == full_line().known
    with pytest.raises(InvalidError, match="nothing was shipped"):
        line.forget(forgotten, STORE)


def test_updates_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    line.create(tmp_path, GENERATION)

    def note(number: int) -> None:
        for turn in range(10):
            upload = line.Upload(store=STORE, key=f"segments/{number}/{turn}.seg", bytes=turn)
            line.update(tmp_path, lambda old, new=upload: replace(old, uploads=(*old.uploads, new)))

    threads = [threading.Thread(target=note, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    noted = line.load(tmp_path)
    assert noted
    assert len({upload.key for upload in noted.uploads}) == 30


def test_unchanged_line_is_not_written_again(tmp_path: Path) -> None:
    line.create(tmp_path, GENERATION)
    inode = (tmp_path / line.FILE_NAME).stat().st_ino
    line.update(tmp_path, lambda old: old)
    assert (tmp_path / line.FILE_NAME).stat().st_ino == inode


def test_new_generations_are_sixteen_hex_digits_and_differ() -> None:
    made = {line.new_generation() for _ in range(20)}
    assert len(made) == 20
    assert all(len(one) == 16 and int(one, 16) > 0 for one in made)


def test_forgetting_a_store_forgets_its_uploads_and_no_others() -> None:
    mine, other = (line.Upload(store=store, key="k", bytes=1) for store in ("a", "b"))
    known = line.Line(generation="1" * 16, start="first", uploads=(mine, other))
    assert line.forget(known, "a").uploads == (other,)
    with pytest.raises(InvalidError):
        line.forget(known, "c")
