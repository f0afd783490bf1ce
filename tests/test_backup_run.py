"""A backup run from end to end: what it ships, notes, reports and asks of the store."""

from __future__ import annotations

from pathlib import Path

import pytest

import backup
import ourdb
from compactor.store import Reply
from ourdb.errors import (
    DamageError,
    FencedError,
    TemporaryError,
)
from ourdb.units import now_ms
from tests.backup_tools import Machine, Shop, shop

__all__ = ["shop"]


def total(report: backup.BackupReport) -> int:
    return sum(report.requests.values())


# -- what is shipped, and what it costs


def test_everything_that_was_written_is_in_the_store_alone(shop: Shop) -> None:
    machine = Machine(shop).write(30).write_batch(20).write(200, value=b"x" * 900, rotate=True).write(7)
    report = machine.run()
    assert report.last_seq == 257
    assert machine.stored() == machine.log


def test_first_backup_of_a_small_database_costs_twelve_requests_at_most(shop: Shop) -> None:
    report = Machine(shop).write(10).run()
    assert total(report) <= 12 + len(shop.url.prefix)


def test_idle_run_is_one_request_and_reports_the_same(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    first = machine.run()
    again = machine.run()
    assert total(again) == again.requests["GET"] == 1
    assert (again.last_seq, again.last_time, again.as_of) == (10, first.last_time, first.as_of)
    assert not again.committed


def test_new_writes_that_fit_one_put_are_three_requests(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    report = machine.write(5).run()
    assert {kind: n for kind, n in report.requests.items() if n} == {"GET": 1, "PUT": 2}
    assert [(s.first_seq, s.last_seq) for s in report.segments] == [(11, 15)]


def test_list_that_turns_over_costs_two_requests_more(shop: Shop) -> None:
    machine = Machine(shop)
    most = 0
    for _ in range(210):
        report = machine.write(1).run()
        most = max(most, total(report)) if report.last_seq > 1 else 0
    assert shop.view().head.lists
    assert most <= 5
    assert machine.stored() == machine.log


def test_single_writer_costs_two_requests_more(shop: Shop) -> None:
    def store() -> object:
        limited = shop.store()
        limited.ignores_conditions = True
        return limited

    machine = Machine(shop).write(3)
    machine.run(store(), single_writer=True)  # type: ignore[arg-type]
    report = machine.write(3).run(store())  # type: ignore[arg-type]
    assert total(report) <= 5
    assert shop.view().head.single_writer
    assert machine.stored() == machine.log


def test_store_without_compare_and_swap_is_refused(shop: Shop) -> None:
    limited = shop.store()
    limited.ignores_conditions = True
    with pytest.raises(FencedError, match="--single-writer") as refused:
        Machine(shop).write(3).run(limited)
    assert refused.value.kind == "no_cas"
    assert not shop.keep()


def test_as_of_is_put_by_itself_when_it_is_due(shop: Shop) -> None:
    machine = Machine(shop).write(3)
    first = machine.run()
    later = machine.run(clock_ms=lambda: now_ms() + 700_000)
    assert total(later) == 2
    assert later.as_of - first.as_of >= 699_000
    assert later.last_seq == 3


def test_as_of_lies_a_second_before_the_end_was_looked_for(shop: Shop) -> None:
    report = Machine(shop).write(3).run(clock_ms=lambda: 1_900_000_000_000)
    assert report.as_of == 1_899_999_999_000
    assert shop.view().head.generations[report.generation].as_of == report.as_of


def test_empty_database_is_known_to_the_store_afterwards(shop: Shop) -> None:
    machine = Machine(shop)
    report = machine.run()
    assert (report.last_seq, report.segments, report.committed) == (0, (), True)
    assert shop.view().head.generations[machine.line.generation].last_seq == 0
    assert total(machine.run()) == 1
    assert machine.write(4).run().last_seq == 4
    assert machine.stored() == machine.log


def test_dry_run_says_what_would_be_uploaded_and_writes_nothing(shop: Shop) -> None:
    machine = Machine(shop).write(9)
    before = {file: file.read_bytes() for file in machine.path.glob("*.json")}
    report = machine.run(dry_run=True)
    assert [(s.first_seq, s.last_seq, s.key) for s in report.segments] == [(1, 9, None)]
    assert report.dry_run
    assert not shop.bucket.objects
    assert {file: file.read_bytes() for file in machine.path.glob("*.json")} == before


def test_log_is_cut_at_batch_ends_into_segments_of_bounded_size(shop: Shop) -> None:
    machine = Machine(shop)
    for _ in range(10):
        machine.write_batch(20)
    report = machine.run(segment_bytes=2000)
    assert len(report.segments) > 3
    assert all(segment.last_seq % 20 == 0 for segment in report.segments)
    assert machine.stored() == machine.log


def test_long_run_commits_what_is_complete_before_it_ends(shop: Shop) -> None:
    machine = Machine(shop)
    for _ in range(6):
        machine.write_batch(20)
    store = shop.store()
    seen: list[int] = []
    generation = machine.line.generation
    for _ in range(20):
        store.interleave(
            "put_stream",
            "segments/",
            lambda: seen.append(shop.view().head.generations[generation].last_seq) if shop.keep() else None,
        )
    report = machine.run(store, segment_bytes=1000, commit_seconds=0, clock_ms=lambda: 1_900_000_000_000)
    assert report.last_seq == 120
    assert len(set(seen)) > 1
    assert store.sent("put_if_match", "head") >= 2
    assert machine.stored() == machine.log


def test_as_of_is_not_claimed_by_a_commit_that_is_not_whole(shop: Shop) -> None:
    machine = Machine(shop)
    for _ in range(6):
        machine.write_batch(20)
    store = shop.store()
    as_ofs: list[tuple[int, int]] = []

    def look() -> None:
        end = shop.view().head.generations[machine.line.generation]
        as_ofs.append((end.last_seq, end.as_of))

    for _ in range(10):
        store.interleave("put_if_match", "head", look)
    machine.run(store, segment_bytes=1000, commit_seconds=0)
    assert as_ofs
    assert all(as_of == 0 for last, as_of in as_ofs if last < 120)


def test_progress_reaches_the_raw_bytes_in_all(tmp_path: Path, file_url: str) -> None:
    told: list[tuple[int, int, str]] = []
    with ourdb.open(tmp_path / "db") as db:
        for number in range(300):
            db.set(b"x" * 1000, number)
    backup.backup(
        tmp_path / "db", file_url, meta=tmp_path / "meta.db", progress=lambda *done: told.append(done)
    )
    assert told[-1][0] == told[-1][1] == 300 * 1036
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)


def test_report_as_json_has_the_names_of_every_command(tmp_path: Path, file_url: str) -> None:
    with ourdb.open(tmp_path / "db") as db:
        db.set(b"value", 1)
    fields = backup.backup(tmp_path / "db", file_url, meta=tmp_path / "meta.db").as_json()
    assert fields["last_seq"] == 1
    assert fields["last_time"].endswith("Z")
    assert fields["segments"][0]["key"].startswith(f"segments/{fields['generation']}/")
    assert fields["bytes_uploaded"] == fields["segments"][0]["bytes"] > 0
    assert fields["requests"]["PUT"] >= 2


# -- what is durable and noted, and in which order


def test_local_records_are_durable_before_they_are_shipped(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ourdb.log import LogReader

    machine = Machine(shop).write(100, value=b"y" * 900, rotate=True).write(4)
    machine.run()
    machine.write(6)
    order: list[object] = []
    make_durable = LogReader.make_durable
    monkeypatch.setattr(
        LogReader,
        "make_durable",
        lambda self, first, last: (order.append((first, last)), make_durable(self, first, last))[1],
    )
    store = shop.store()
    store.interleave("put_stream", "segments/", lambda: order.append("put"))
    machine.run(store)
    assert order == [(105, 110), "put"]


@pytest.mark.parametrize("file", ["0.db", "1.db"], ids=["sealed", "active"])
def test_record_that_is_damaged_here_is_never_shipped(shop: Shop, file: str) -> None:
    machine = Machine(shop).write(20, value=b"needle", rotate=True).write(20, value=b"needle")
    content = bytearray((machine.path / file).read_bytes())
    content[content.index(b"needle", 1000)] ^= 1
    (machine.path / file).write_bytes(content)
    with pytest.raises(DamageError) as caught:
        machine.run()
    assert caught.value.kind == "corrupt"
    assert not shop.keep()


def test_mark_says_what_the_acknowledged_put_wrote(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    head, mark = shop.view().head, machine.mark
    assert mark is not None
    assert (mark.seq, mark.revision, mark.run) == (10, head.revision, head.run)
    assert mark.chain == head.generations[mark.generation].chain
    assert machine.line.uploads == ()


def test_upload_is_noted_before_the_commit_that_names_it(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    store = shop.store()
    noted: list[int] = []
    store.interleave("put_if_absent", "head", lambda: noted.append(len(machine.line.uploads)))
    machine.run(store)
    assert noted == [1]


def test_what_was_only_read_is_put_once_more_before_it_is_reported(shop: Shop) -> None:
    """The reply of the commit is lost: the records are in the head, and may vanish with it."""
    machine = Machine(shop).write(10)
    machine.run()
    machine.write(5)
    store = shop.store()
    store.fail("put_if_match", "head", "after", times=1)
    store.fail("put_if_match", "head", "before", times=1)
    report = machine.run(store)
    assert store.sent("put_if_match", "head") == 3
    assert report.last_seq == machine.mark.seq == 15  # type: ignore[union-attr]
    assert machine.mark.revision == shop.view().head.revision == 3  # type: ignore[union-attr]
    assert len(report.segments) == 1


def test_head_whose_records_vanished_again_is_shipped_anew(shop: Shop) -> None:
    """A commit was never acknowledged, and the store goes back to the head before: nothing was promised."""
    machine = Machine(shop).write(10)
    machine.run()
    kept = shop.keep()
    machine.write(5)
    store = shop.store()
    store.fail("put_if_match", "head", "after", times=2)
    store.interleave("get_if_changed", "head", lambda: None)
    store.fail("get_if_changed", "head", "before", times=9)
    with pytest.raises(TemporaryError):
        machine.run(store)
    assert shop.view().head.revision == 2
    shop.put_back(kept)
    report = machine.run()
    assert report.last_seq == 15
    assert machine.stored() == machine.log


def test_revision_that_was_only_read_is_not_known(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    store = shop.store()
    store.fail("put_if_match", "head", "after", times=2)
    store.interleave("get_if_changed", "head", lambda: None)
    store.fail("get_if_changed", "head", "before", times=9)
    with pytest.raises(TemporaryError):
        machine.write(5).run(store)
    assert shop.view().head.revision == 2
    reader = shop.store()
    reader.fail("put_stream", "segments/", "before", times=9)
    with pytest.raises(TemporaryError):
        machine.write(5).run(reader)
    assert machine.line.known[shop.url.identity].revision == 1


def test_idle_run_learns_what_another_writer_knew_to_be_kept(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    twin = machine.twin()
    twin.run(clock_ms=lambda: now_ms() + 700_000)
    twin.run(clock_ms=lambda: now_ms() + 1_400_000)
    assert shop.view().head.revision == 3
    machine.run()
    assert machine.line.known[shop.url.identity].revision == 2


# -- lost races


def test_lost_race_is_computed_again_on_the_head_of_the_winner(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    machine.write(5)
    twin = machine.twin()
    store = shop.store()
    store.interleave("put_if_match", "head", lambda: twin.run())
    report = machine.run(store)
    assert report.last_seq == 15
    assert shop.view().head.generations[report.generation].last_seq == 15
    assert machine.stored() == machine.log == twin.stored()


def test_own_upload_is_named_after_a_lost_race_and_not_uploaded_again(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    twin = machine.twin()
    machine.write(5)
    store = shop.store()
    store.interleave("put_if_match", "head", lambda: twin.run(clock_ms=lambda: now_ms() + 700_000))
    report = machine.run(store)
    assert len(report.segments) == 1
    assert store.sent("put_stream", "segments/") == 1
    assert machine.stored() == machine.log


def test_upload_below_the_floor_of_the_winners_head_is_made_anew(shop: Shop) -> None:
    """Rule 6: what prune may be deleting is never named."""
    from dataclasses import replace

    from compactor.head import encode_head

    machine = Machine(shop).write(10)
    machine.run()
    machine.write(5)
    store = shop.store()

    def raise_floor() -> None:
        view = shop.view()
        head = replace(view.head, revision=view.head.revision + 1, run="f" * 16, floor=view.head.revision + 1)
        shop.store().put_if_match("head", encode_head(head), view.etag)

    store.interleave("put_if_match", "head", raise_floor)
    report = machine.run(store)
    assert len(report.segments) == 2
    named = [entry.key for entry in shop.view().segments]
    assert report.segments[0].key not in named
    assert report.segments[1].key in named
    assert machine.stored() == machine.log


def test_races_lost_for_ever_end_as_temporary(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    store = shop.store()
    twin = machine.twin()
    later = iter(range(10_000))
    store.interleave(
        "put_if_match",
        "head",
        lambda: twin.run(clock_ms=lambda: now_ms() + 700_000 * (next(later) + 1)),
        times=10_000,
    )
    machine.write(1)
    with pytest.raises(TemporaryError, match="try again"):
        machine.run(store)
    assert machine.run().last_seq == 11


def test_run_beside_ours_that_shipped_more_is_no_loss_and_no_older_copy(shop: Shop) -> None:
    """Both the log's end and what is known are taken in the right order around the read."""
    machine = Machine(shop).write(10)
    machine.run()
    store = shop.store()

    def overtake() -> None:
        machine.write(5)
        machine.run(meta=machine.path.with_name("second-meta.db"))

    store.interleave("get_if_changed", "head", overtake)
    assert machine.run(store).last_seq == 15


def test_run_beside_ours_that_commits_while_our_read_is_answered_is_no_loss(shop: Shop) -> None:
    """What the directory knows counts as of before the read, the log's end as of after it."""
    machine = Machine(shop).write(10)
    machine.run()
    store = shop.store()
    read, times = store.get_if_changed, iter([True])

    def read_and_be_overtaken(key: str, etag: str) -> Reply | None:
        reply = read(key, etag)
        if next(times, False):
            machine.write(5)
            machine.run(meta=machine.path.with_name("second-meta.db"))
        return reply

    store.get_if_changed = read_and_be_overtaken  # type: ignore[method-assign]
    assert machine.run(store).last_seq == 15
    assert machine.stored() == machine.log
