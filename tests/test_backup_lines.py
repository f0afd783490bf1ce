"""Two writers, old copies, restored copies and a store that lost data: who is refused, and every way out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import backup
import ourdb
from compactor.head import Parent
from compactor.store.base import Reply
from ourdb import line as lines
from ourdb.errors import DamageError, FencedError, InvalidError, NotFoundError, TemporaryError
from ourdb.units import now_ms
from tests.backup_tools import Machine, Shop, shop
from tests.faulty import FaultyStore

__all__ = ["shop"]

LATER: Callable[[], int] = lambda: now_ms() + 700_000  # noqa: E731


def refused(machine: Machine, kind: str, **options: Any) -> FencedError:
    """The error of a run that is refused, and writes nothing, neither there nor here."""
    before, line = dict(machine.shop.bucket.objects), machine.line
    with pytest.raises(FencedError) as caught:
        machine.run(**options)
    assert caught.value.kind == kind
    assert machine.shop.bucket.objects == before
    if not options:
        assert machine.line == line
    return caught.value


# -- two writers of one generation


def test_copy_of_a_directory_that_went_on_is_a_fork(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    twin = machine.twin()
    machine.write(5).run()
    twin.write(7)
    assert "--fork" in str(refused(twin, "fork"))
    assert machine.stored() == machine.log


def test_fork_of_a_twin_goes_on_from_what_is_common_beside_the_other(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    twin = machine.twin()
    machine.write(5).run()
    report = twin.write(7).run(how="fork")
    assert [(s.first_seq, s.last_seq) for s in report.segments] == [(11, 17)]
    assert twin.stored() == twin.log
    assert machine.write(3).run().last_seq == 18
    assert machine.stored() == machine.log
    assert twin.write(1).run().last_seq == 18


def test_fork_leaves_at_the_newest_batch_end_that_is_common_inside_a_segment(shop: Shop) -> None:
    """The index of the segment tells where the histories part."""
    machine = Machine(shop).write(10)
    machine.run()
    machine.write(6)
    twin = machine.twin()
    machine.write(5).run()
    report = twin.write(7).run(how="fork")
    generation = shop.view().head.generations[report.generation]
    assert generation.parent == Parent(machine.line.generation, 16, machine_chain(machine, 16))
    assert [(s.first_seq, s.last_seq) for s in report.segments] == [(17, 23)]
    assert twin.stored() == twin.log


def test_fork_of_an_older_copy_leaves_at_its_own_end(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    machine.write(3)
    older = machine.twin()
    machine.write(9).run()
    assert "restore" in str(refused(older, "behind"))
    report = older.run(how="fork")
    assert (report.last_seq, report.segments, report.committed) == (13, (), False)
    report = older.write(2).run()
    assert [(s.first_seq, s.last_seq) for s in report.segments] == [(14, 15)]
    assert older.stored() == older.log


def test_fork_of_a_history_with_nothing_in_common_ships_everything(shop: Shop) -> None:
    machine = Machine(shop)
    twin = machine.twin()
    machine.write(10).run()
    twin.write(4)
    refused(twin, "behind")
    report = twin.run(how="fork")
    assert shop.view().head.generations[report.generation].parent is None
    assert twin.stored() == twin.log


def test_fork_left_in_a_script_starts_one_generation_only(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    twin = machine.twin()
    machine.write(5).run()
    for _ in range(3):
        twin.write(2).run(how="fork")
    assert len(shop.view().head.generations) == 2


def test_old_copy_of_a_directory_is_behind_until_it_is_looked_at_again(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    older = machine.twin()
    machine.write(5).run()
    refused(older, "behind")
    kept = machine.path
    shutil.rmtree(older.path)
    shutil.copytree(kept, older.path)
    assert older.run().last_seq == 15  # no refusal is noted


def test_line_json_that_was_lost_is_a_fork_and_overwrites_nothing(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    (machine.path / lines.FILE_NAME).unlink()
    with pytest.raises(FencedError, match="other generations") as caught:
        machine.run()
    assert caught.value.kind == "fork"


def test_another_database_on_the_same_url_is_refused(shop: Shop) -> None:
    Machine(shop).write(10).run()
    other = Machine(shop).write(3)
    for options in ({}, {"how": "fork"}, {"how": "new"}):
        error = refused(other, "other_database", **options)
        assert "another name" in str(error)
    assert (error.exit_code, error.fields["uuid"]) == (16, shop.view().head.uuid)


def test_only_one_way_out_at_a_time(tmp_path: Path, file_url: str) -> None:
    ourdb.open(tmp_path / "db").close()
    with pytest.raises(InvalidError, match="fork, new"):
        backup.backup(tmp_path / "db", file_url, fork=True, new=True)


def test_directory_that_is_no_database_is_not_found(tmp_path: Path, file_url: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        backup.backup(tmp_path / "nothing", file_url, meta=tmp_path / "meta.db")
    assert (caught.value.kind, caught.value.exit_code) == ("no_database", 10)


def test_namespace_inside_another_is_refused(tmp_path: Path, file_url: str) -> None:
    meta = tmp_path / "meta.db"
    for name in ("one", "two"):
        ourdb.open(tmp_path / name).close()
    backup.backup(tmp_path / "one", file_url, meta=meta)
    with pytest.raises(InvalidError) as caught:
        backup.backup(tmp_path / "two", file_url + "/inside", meta=meta)
    assert caught.value.kind == "nested_namespace"


# -- a restored copy


def test_restored_copy_takes_over_and_uploads_only_what_is_new(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    copy = machine.restored()
    report = copy.write(4).run()
    head = shop.view().head
    assert [(s.first_seq, s.last_seq) for s in report.segments] == [(11, 14)]
    assert head.generations[machine.line.generation].successor == report.generation
    assert copy.stored() == copy.log
    assert copy.write(2).run().last_seq == 16
    error = refused(machine, "superseded")
    assert error.fields["other"] == report.generation
    assert "--fork" in str(error)


def test_restored_copy_without_new_records_is_idle_and_changes_nothing(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    copy = machine.restored()
    before = dict(shop.bucket.objects)
    report = copy.run()
    assert (report.last_seq, report.generation, report.committed) == (10, machine.line.generation, False)
    assert sum(report.requests.values()) == 1
    assert shop.bucket.objects == before
    assert machine.write(1).run().last_seq == 11


def test_copy_restored_to_an_older_point_leaves_there(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    older = machine.write(3).twin()
    machine.write(5).run()
    copy = older.restored()
    copy.write(4).run()
    generation = shop.view().head.generations[copy.line.generation]
    assert generation.parent == Parent(machine.line.generation, 13, machine_chain(machine, 13))
    assert copy.stored() == copy.log


@pytest.mark.parametrize("step", ["records", "as_of"])
def test_copy_whose_line_moved_since_is_told_so_and_both_ways_out(shop: Shop, step: str) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    copy = machine.restored().write(4)
    if step == "records":
        machine.write(1).run()
    else:
        machine.run(clock_ms=LATER)
    message = str(refused(copy, "moved"))
    assert "--take-over" in message
    assert "--fork" in message


def test_line_that_moves_between_read_and_put_is_seen(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    copy = machine.restored().write(4)
    store = shop.store()
    store.interleave("put_if_match", "head", lambda: machine.write(1).run())
    with pytest.raises(FencedError) as caught:
        copy.run(store)
    assert caught.value.kind == "moved"
    assert shop.view().head.generations[machine.line.generation].successor is None


def test_fork_is_no_loss_where_somebody_commits_between_its_look_and_its_choice(shop: Shop) -> None:
    """Both share a meta index: what it learned after the head was read says nothing of that head."""
    machine = Machine(shop).write(10)
    machine.run()
    twin = machine.twin().write(1)
    machine.write(2).run()

    class Slow(FaultyStore):
        def get_if_changed(self, key: str, etag: str) -> Reply | None:
            reply = super().get_if_changed(key, etag)
            if not committed:
                committed.append(machine.write(1).run().last_seq)
            return reply

    committed: list[int] = []
    report = twin.run(Slow(shop.store().inner), how="fork", meta=machine.meta)
    assert committed == [13]
    assert report.last_seq == 11
    assert twin.stored() == twin.log
    assert machine.stored() == machine.log


def test_take_over_stops_the_other_writer(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    copy = machine.restored().write(4)
    machine.write(2).run()
    report = copy.run(how="take-over")
    head = shop.view().head
    assert head.generations[machine.line.generation].successor == report.generation
    assert copy.stored() == copy.log
    assert machine.stored(machine.line.generation) == machine.log
    refused(machine.write(1), "superseded")
    assert copy.write(1).run().last_seq == 15


def test_second_copy_takes_over_from_the_end_of_the_line_not_from_its_parent(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    first, second = machine.restored().write(4), machine.restored().write(6)
    first.run()
    refused(second, "moved")
    report = second.run(how="take-over")
    generations = shop.view().head.generations
    assert generations[first.line.generation].successor == report.generation
    assert generations[machine.line.generation].successor == first.line.generation
    assert generations[report.generation].parent == Parent(
        machine.line.generation, 10, machine_chain(machine, 10)
    )
    assert second.stored() == second.log


def test_copy_restored_behind_a_take_over_takes_over_the_end_that_it_read(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    copy = machine.restored()
    copy.write(4).run()
    third = machine.restored().write(2)  # of a point of the first generation, when the line ended in copy's
    report = third.run()
    assert shop.view().head.generations[copy.line.generation].successor == report.generation
    assert third.stored() == third.log


def test_fork_of_a_copy_stands_beside_the_line_that_moved(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    copy = machine.restored().write(4)
    machine.write(2).run()
    report = copy.run(how="fork")
    generations = shop.view().head.generations
    assert generations[report.generation].parent == Parent(
        machine.line.generation, 10, machine_chain(machine, 10)
    )
    assert generations[machine.line.generation].successor is None
    assert machine.write(1).run().last_seq == 13
    assert copy.stored() == copy.log


def test_copy_told_to_fork_before_it_wrote_remembers_it(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    copy = machine.restored()
    assert copy.run(how="fork").committed is False
    copy.write(2).run()
    assert shop.view().head.generations[machine.line.generation].successor is None
    assert machine.write(1).run().last_seq == 11


def test_new_generation_is_noted_before_its_first_put(shop: Shop) -> None:
    """Its reply is lost: the next run must know its own generation again, and is not told to fork."""
    machine = Machine(shop).write(10)
    machine.run()
    twin = machine.twin()
    machine.write(5).run()
    twin.write(7)
    store = shop.store()
    store.fail("put_if_match", "head", "after", times=2)
    store.fail("get_if_changed", "head", "before", times=9)
    with pytest.raises(TemporaryError):
        twin.run(store, how="fork")
    assert len(shop.view().head.generations) == 2
    report = twin.run()
    assert report.generation in shop.view().head.generations
    assert len(shop.view().head.generations) == 2
    assert twin.stored() == twin.log


def test_copy_whose_parent_vanished_with_a_head_nobody_kept_is_a_fork_not_a_loss(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    kept = shop.keep()
    copy = machine.restored()
    copy.write(4)
    store = shop.store()
    store.fail("put_if_match", "head", "after", times=2)
    store.fail("get_if_changed", "head", "before", times=9)
    with pytest.raises(TemporaryError):
        copy.run(store)
    grandchild = copy.restored().write(2)  # restored from a head that was never acknowledged
    shop.put_back(kept)
    refused(grandchild, "fork")
    assert grandchild.run(how="fork").last_seq == 16
    assert grandchild.stored() == grandchild.log


def test_branch_point_that_compaction_gave_up_makes_the_copy_ship_everything(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    copy = machine.restored().write(4)
    forget_point(shop, machine.line.generation)
    report = copy.run()
    assert shop.view().head.generations[report.generation].parent is None
    assert [(s.first_seq, s.last_seq) for s in report.segments] == [(1, 14)]
    assert copy.stored() == copy.log


def test_copy_begins_anew_in_a_store_that_it_was_not_restored_from(shop: Shop, tmp_path: Path) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    copy = machine.restored().write(4)
    other = Shop(tmp_path / "elsewhere")
    from compactor.url import parse_url

    other.url = parse_url("memory://bucket/elsewhere/notes")
    copy.shop = other
    assert copy.run().last_seq == 14
    assert copy.stored() == copy.log


# -- a store that lost data


def test_emptied_store_is_never_quietly_begun_again(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    shop.wipe()
    with pytest.raises(DamageError, match="--new") as caught:
        machine.write(1).run()
    assert (caught.value.kind, caught.value.exit_code) == ("store_lost_data", 14)
    assert not shop.bucket.objects


def test_new_start_ships_everything_above_every_revision_that_was_known(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    shop.wipe()
    report = machine.write(2).run(how="new")
    head = shop.view().head
    assert machine.stored() == machine.log
    assert report.last_seq == 12
    assert head.revision > 10**15
    assert head.floor == head.revision
    assert machine.write(1).run().last_seq == 13
    assert machine.stored() == machine.log


def test_new_start_is_the_way_out_for_whoever_never_knew_the_head_that_was_lost(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    twin = machine.twin()
    machine.run()
    machine.write(1).run()
    for key in shop.keep():
        del shop.bucket.objects[key]
    with pytest.raises(DamageError, match="--new"):
        twin.run()
    report = twin.write(1).run(how="new")
    assert report.last_seq == 11
    assert twin.stored() == twin.log
    assert twin.write(1).run(how="new").generation == report.generation


def test_new_start_that_commits_on_the_way_names_nothing_below_its_own_floor(shop: Shop) -> None:
    machine = Machine(shop)
    for _ in range(6):
        machine.write_batch(10)
    kept = None
    for hour in (0, 1):
        machine.run(clock_ms=lambda hour=hour: now_ms() + hour * 3_600_000)
        kept = kept or shop.keep()
    shop.put_back(kept)
    report = machine.run(how="new", segment_bytes=600, commit_seconds=0)
    view = shop.view()
    assert report.last_seq == 60
    assert machine.stored() == machine.log
    named = [entry for entry in view.segments if entry.generation == report.generation]
    assert len(named) > 2
    assert all(entry.name.made >= view.head.floor for entry in named[1:])


def test_new_start_whose_reply_was_lost_goes_on(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    shop.wipe()
    store = shop.store()
    store.fail("put_if_absent", "head", "before", times=9)
    with pytest.raises(TemporaryError):
        machine.run(store, how="new")
    assert machine.run().last_seq == 10
    assert machine.stored() == machine.log


def test_what_a_restore_read_to_be_kept_is_known_to_its_copy(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    kept = shop.keep()
    for hour in (1, 2):
        machine.run(clock_ms=lambda hour=hour: now_ms() + hour * 3_600_000)
    copy = machine.restored()
    shop.put_back(kept)
    with pytest.raises(DamageError) as caught:
        copy.write(1).run()
    assert caught.value.kind == "store_lost_data"


@pytest.mark.parametrize("knows", ["directory", "meta index"])
def test_head_that_was_put_back_is_seen_by_directory_and_by_meta_index(shop: Shop, knows: str) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    kept = shop.keep()
    machine.run(clock_ms=LATER)
    shop.put_back(kept)
    if knows == "directory":
        machine.meta.unlink()
    else:
        lines.update(machine.path, lambda old: lines.Line(generation=old.generation, start=old.start))
    with pytest.raises(DamageError) as caught:
        machine.write(1).run()
    assert caught.value.kind == "store_lost_data"


def test_new_start_succeeds_the_line_that_an_old_head_still_has(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    kept = shop.keep()
    machine.write(4).run()
    shop.put_back(kept)
    old = machine.line.generation
    report = machine.run(how="new")
    assert shop.view().head.generations[old].successor == report.generation
    assert [(s.first_seq, s.last_seq) for s in report.segments] == [(1, 14)]
    assert machine.stored() == machine.log


def test_same_revision_of_another_run_is_a_loss(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    kept = shop.keep()
    machine.write(1).run()
    mine = machine.twin()
    shop.put_back(kept)
    stranger = machine.twin()
    lines.update(stranger.path, lambda old: lines.Line(generation=old.generation, start=old.start))
    stranger.run()  # commits the same revision as another run
    assert shop.view().head.revision == mine.line.known[shop.url.identity].revision
    with pytest.raises(DamageError):
        mine.write(1).run()


def test_damaged_head_is_damage_and_nothing_older_is_taken(shop: Shop) -> None:
    from dataclasses import replace

    machine = Machine(shop).write(10)
    machine.run()
    for key, found in shop.keep().items():
        shop.bucket.objects[key] = replace(found, data=found.data[:-1] + b"?", etag='"bad"')
    with pytest.raises(DamageError) as caught:
        machine.write(1).run()
    assert caught.value.kind == "store_damaged"


def test_meta_index_that_was_deleted_is_rebuilt_from_the_store(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    machine.meta.unlink()
    assert sum(machine.run().requests.values()) == 1
    assert sum(machine.run().requests.values()) == 1
    machine.meta.unlink()
    machine.write(3).run()
    assert machine.stored() == machine.log


def machine_chain(machine: Machine, seq: int) -> int:
    from ourdb.log import LogReader

    with LogReader(machine.path) as log:
        log.find_end()
        chain = log.chain_at(seq)
    assert chain is not None
    return chain


def forget_point(shop: Shop, generation: str) -> None:
    """As compaction with a window of 0 does: only the end of the segment stays exact, and it is another."""
    from dataclasses import replace

    from compactor.head import encode_head

    view = shop.view()
    other = {**view.head.generations}
    kept = [entry for entry in view.head.added if entry.generation != generation]
    head = replace(
        view.head, revision=view.head.revision + 1, run="e" * 16, generations=other, added=tuple(kept)
    )
    shop.store().put_if_match("head", encode_head(head), view.etag)
