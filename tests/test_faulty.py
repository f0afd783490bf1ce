"""The stores that fail, which other tests rely on: what is there after each way to fail an upload."""

from __future__ import annotations

import pytest

from compactor.store import CopyRange, NoAnswer, Piece
from compactor.store.memory import Bucket, MemoryStore
from compactor.url import parse_url
from tests.faulty import FaultyStore, How
from tests.interleaving import Run

PIECES: list[Piece] = [b"some ", CopyRange("a", None, 1, 3)]


@pytest.fixture
def inner() -> MemoryStore:
    store = MemoryStore(parse_url("memory://bucket/name"), bucket=Bucket())
    store.put_stream("a", [b"12345"])
    return store


@pytest.mark.parametrize(
    ("how", "there", "unfinished"),
    [("before", False, 0), ("middle", False, 1), ("after", True, 0), ("late", False, 0), ("twice", True, 0)],
)
@pytest.mark.parametrize("method", ["assemble", "put_stream"])
def test_upload_that_fails_leaves_what_a_real_one_would(
    inner: MemoryStore, method: str, how: How, there: bool, unfinished: int
) -> None:
    store = FaultyStore(FaultyStore(inner))
    began: list[str] = []
    store.fail(method, "out", how)
    given = PIECES if method == "assemble" else [b"some ", b"234"]
    with pytest.raises(NoAnswer):
        getattr(store, method)("out", given, size_hint=8, on_begin=began.append)
    assert (inner.head("out") is not None) == there
    assert [upload.upload_id for upload in store.list_uploads()] == began
    assert len(began) == unfinished
    store.land()
    assert (inner.head("out") is not None) == (there or how == "late")


def test_late_assembly_whose_source_is_gone_has_no_effect(inner: MemoryStore) -> None:
    store = FaultyStore(inner)
    store.fail("assemble", "out", "late")
    with pytest.raises(NoAnswer):
        store.assemble("out", PIECES, size_hint=8)
    inner.delete_many(["a"])
    store.land()
    assert inner.head("out") is None


def test_run_that_dies_in_the_middle_leaves_its_upload(inner: MemoryStore) -> None:
    run = Run(inner, lambda store: store.assemble("out", PIECES, size_hint=8), [])
    run.step("die middle")
    run.kill()
    assert [upload.key for upload in inner.list_uploads()] == ["out"]
    assert inner.head("out") is None
