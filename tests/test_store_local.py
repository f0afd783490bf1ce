"""Local files: what is durable when, what a kill leaves, and what the file system refuses."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compactor.store import CopyRange, NoSuchKey, PreconditionFailed, Store, StoreOptions, open_store
from compactor.store.durable import ABANDONED_SECONDS, TemporaryFile
from ourdb.errors import StorageError, TemporaryError
from ourdb.units import KIB, MIB

SEGMENT = "segments/00000000000000aa/a.seg"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store" / "name"


@pytest.fixture
def store(root: Path) -> Store:
    options = StoreOptions(retry_seconds=0.05, put_bytes_max=KIB)
    return open_store(f"file://{root}", options=options)


def keys(store: Store) -> list[str]:
    return [entry.key for page in store.list() for entry in page.entries]


def temporary_files(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob(".tmp-*"))


def failing(number: int) -> Callable[..., Any]:
    def fail(*arguments: object, **named: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


class TestDurability:
    @pytest.mark.parametrize("method", ["put_if_absent", "put_stream"])
    def test_bytes_then_name_are_synced_and_new_directories_too(
        self, store: Store, root: Path, monkeypatch: pytest.MonkeyPatch, method: str
    ) -> None:
        calls: list[str] = []
        fsync, rename = os.fsync, os.rename

        def note_fsync(fd: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{fd}"))
            calls.append("sync " + ("temporary" if path.name.startswith(".tmp-") else path.name))
            fsync(fd)

        def note_rename(source: Path, target: Path) -> None:
            calls.append(f"rename {target.name}")
            rename(source, target)

        monkeypatch.setattr(os, "fsync", note_fsync)
        monkeypatch.setattr(os, "rename", note_rename)
        if method == "put_if_absent":
            store.put_if_absent("head", b"state")
            made, last = [root.parents[1].name, "store"], ["sync temporary", "rename head", "sync name"]
        else:
            store.put_stream(SEGMENT, [b"bytes"])
            made = [root.parents[1].name, "store", "name", "segments"]
            last = ["sync temporary", "rename a.seg", "sync 00000000000000aa"]
        assert calls == [f"sync {name}" for name in made] + last

    def test_deletes_are_synced(self, store: Store, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store.put_stream(SEGMENT, [b"bytes"])
        synced: list[str] = []
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
        store.delete_many([SEGMENT])
        assert synced == [str((root / SEGMENT).parent)]

    def test_kill_at_any_moment_leaves_a_whole_head(self, store: Store, root: Path) -> None:
        store.put_if_absent("head", b"0" * 50_000)
        code = (
            "import sys\nfrom compactor.store import open_store\n"
            "store = open_store(sys.argv[1]); reply = store.get('head'); print('ready', flush=True)\n"
            "etag, number = reply.etag, int(reply.data[:1])\n"
            "while True:\n"
            "    number = (number + 1) % 10\n"
            "    etag = store.put_if_match('head', b'%d' % number * 50_000, etag).etag\n"
        )
        for round_number in range(6):
            process = subprocess.Popen([sys.executable, "-c", code, str(store.url)], stdout=subprocess.PIPE)
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(0.013 * round_number)  # another moment of the loop each time
            process.kill()
            process.communicate()
            reply = store.get("head")
            assert len(reply.data) == 50_000
            assert len(set(reply.data)) == 1
            assert keys(store) == ["head"]
            store.put_if_match("head", reply.data, reply.etag)  # the lock went with its holder

    def test_abandoned_temporary_file_is_swept_and_one_in_use_is_not(self, store: Store, root: Path) -> None:
        directory = (root / SEGMENT).parent
        directory.mkdir(parents=True)
        long_ago = time.time() - ABANDONED_SECONDS - 5
        abandoned, young = directory / f".tmp-{1:016x}", directory / f".tmp-{2:016x}"
        with TemporaryFile(directory) as used:
            for path in (abandoned, young):
                path.write_bytes(b"left")
            for path in (abandoned, used.path):
                os.utime(path, (long_ago, long_ago))
            store.put_stream(SEGMENT, [b"bytes"])
            assert temporary_files(root) == sorted([young.name, used.path.name])

    def test_upload_that_was_killed_is_freed_by_its_id(self, store: Store, root: Path) -> None:
        code = (
            "import os, signal, sys\nfrom compactor.store import StoreOptions, open_store\n"
            "store = open_store(sys.argv[1], options=StoreOptions(put_bytes_max=10))\n"
            "store.put_stream(sys.argv[2], [bytes(100)] * 2, on_begin=lambda name: (print(name, flush=True),"
            " os.kill(os.getpid(), signal.SIGKILL)))\n"
        )
        killed = subprocess.run(
            [sys.executable, "-c", code, str(store.url), SEGMENT], capture_output=True, text=True, check=False
        )
        assert killed.returncode == -signal.SIGKILL
        upload_id = killed.stdout.strip()
        assert temporary_files(root) == [upload_id]
        assert keys(store) == []
        store.abort_upload(SEGMENT, upload_id)
        assert temporary_files(root) == []

    @pytest.mark.parametrize("upload_id", ["a.seg", "../a.seg", "", ".lock"])
    def test_abort_takes_nothing_but_temporary_files(self, store: Store, upload_id: str) -> None:
        store.put_stream(SEGMENT, [b"bytes"])
        store.abort_upload(SEGMENT, upload_id)
        assert store.get(SEGMENT).data == b"bytes"

    def test_failed_put_leaves_no_temporary_file(
        self, store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        etag = store.put_if_absent("head", b"old").etag
        monkeypatch.setattr(os, "fsync", failing(errno.EIO))
        with pytest.raises(StorageError) as caught:
            store.put_if_match("head", b"new", etag)
        assert caught.value.kind == "io_error"
        assert temporary_files(root) == []
        assert store.get("head").data == b"old"


class TestAssembling:
    SOURCE = b"".join(number.to_bytes(4, "big") * 256 for number in range(18 * KIB))

    @pytest.fixture
    def source(self, store: Store) -> CopyRange:
        etag = store.put_stream("segments/source.seg", [self.SOURCE]).etag
        return CopyRange("segments/source.seg", etag, 5, 17 * MIB)

    def assembled(self, store: Store, source: CopyRange) -> bytes:
        store.assemble(SEGMENT, [b"before", source, b"after"], size_hint=18 * MIB)
        return store.get(SEGMENT).data

    def test_bytes_go_from_file_to_file_in_the_kernel(
        self, store: Store, source: CopyRange, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "pread", failing(errno.EIO))
        store.assemble(SEGMENT, [b"before", source, b"after"], size_hint=18 * MIB)
        monkeypatch.undo()
        assert store.get(SEGMENT).data == b"before" + self.SOURCE[5 : 5 + 17 * MIB] + b"after"

    @pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
    def test_file_systems_between_which_the_kernel_does_not_copy_are_read_and_written(
        self, store: Store, source: CopyRange, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        monkeypatch.setattr(os, "copy_file_range", failing(number))
        assert self.assembled(store, source) == b"before" + self.SOURCE[5 : 5 + 17 * MIB] + b"after"

    def test_kernel_that_copies_a_little_at_a_time_is_asked_again(
        self, store: Store, source: CopyRange, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copy = os.copy_file_range

        def a_little(source: int, target: int, count: int, start: int) -> int:
            return copy(source, target, min(count, 3 * MIB + 1), start)

        monkeypatch.setattr(os, "copy_file_range", a_little)
        assert self.assembled(store, source) == b"before" + self.SOURCE[5 : 5 + 17 * MIB] + b"after"

    def test_kernel_that_copies_nothing_is_not_asked_for_ever(
        self, store: Store, source: CopyRange, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "copy_file_range", lambda *arguments: 0)
        assert self.assembled(store, source) == b"before" + self.SOURCE[5 : 5 + 17 * MIB] + b"after"

    def test_source_that_shrinks_meanwhile_is_an_error_and_leaves_nothing(
        self, store: Store, root: Path, source: CopyRange, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def shrink(fd: int, target: int, count: int, start: int) -> int:
            os.truncate(root / source.key, 1000)
            return 0

        monkeypatch.setattr(os, "copy_file_range", shrink)
        with pytest.raises(StorageError) as caught:
            self.assembled(store, source)
        assert caught.value.kind == "io_error"
        assert temporary_files(root) == []
        assert keys(store) == [source.key]

    def test_full_disk_leaves_nothing(
        self, store: Store, root: Path, source: CopyRange, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("copy_file_range", "write"):
            monkeypatch.setattr(os, name, failing(errno.ENOSPC))
        with pytest.raises(StorageError) as caught:
            store.assemble(SEGMENT, [source], size_hint=17 * MIB)
        assert caught.value.kind == "disk_full"
        assert temporary_files(root) == []

    def test_assembly_that_was_killed_is_listed_and_freed(self, store: Store, root: Path) -> None:
        code = (
            "import os, signal, sys\nfrom compactor.store import CopyRange, StoreOptions, open_store\n"
            "store = open_store(sys.argv[1])\n"
            "store.put_stream('a', [bytes(16 << 20)])\n"
            "store.assemble(sys.argv[2], [CopyRange('a', None, 0, 16 << 20)], size_hint=16 << 20,"
            " on_begin=lambda name: (print(name, flush=True), os.kill(os.getpid(), signal.SIGKILL)))\n"
        )
        killed = subprocess.run(
            [sys.executable, "-c", code, str(store.url), SEGMENT], capture_output=True, text=True, check=False
        )
        assert killed.returncode == -signal.SIGKILL
        (upload,) = store.list_uploads()
        assert upload.upload_id == killed.stdout.strip()
        assert abs(upload.initiated_ms - time.time() * 1000) < 60_000
        store.abort_upload(upload.key, upload.upload_id)
        assert temporary_files(root) == []
        assert keys(store) == ["a"]


class TestEtags:
    def test_same_bytes_put_again_and_again_never_have_the_same_etag(self, store: Store) -> None:
        etags = [store.put_if_absent("head", b"same").etag]
        for _ in range(100):
            etags.append(store.put_if_match("head", b"same", etags[-1]).etag)
        assert len(set(etags)) == len(etags)

    def test_stream_over_an_object_changes_its_etag(self, store: Store) -> None:
        etags = [store.put_stream(SEGMENT, [b"same"]).etag for _ in range(50)]
        assert len(set(etags)) == len(etags)

    def test_clock_that_was_set_back_brings_no_etag_back(self, store: Store, root: Path) -> None:
        store.put_if_absent("head", b"same")
        ahead = time.time_ns() + 3_600_000_000_000
        os.utime(root / "head", ns=(ahead, ahead))
        etag = store.get("head").etag
        put = store.put_if_match("head", b"same", etag)
        assert put.etag != etag
        assert (root / "head").stat().st_mtime_ns > ahead

    def test_file_system_with_whole_seconds_gives_another_etag_too(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        utime = os.utime

        def whole_seconds(path: int | Path, ns: tuple[int, int] | None = None) -> None:
            moment = (ns[1] if ns else time.time_ns()) // 1_000_000_000 * 1_000_000_000
            utime(path, ns=(moment, moment))

        monkeypatch.setattr(os, "utime", whole_seconds)
        etags = [store.put_if_absent("head", b"same").etag]
        for _ in range(5):
            etags.append(store.put_if_match("head", b"same", etags[-1]).etag)
        assert len(set(etags)) == len(etags)

    def test_date_is_the_file_systems_and_goes_on(self, store: Store, root: Path) -> None:
        store.put_if_absent("head", b"state")
        os.utime(root / ".lock", (1, 1))
        first = store.get("head")
        assert first.date_ms >= first.modified_ms - 1000
        assert store.get("head").date_ms >= first.date_ms

    def test_date_of_a_store_that_was_never_committed_to_is_unknown(self, store: Store) -> None:
        store.put_stream(SEGMENT, [b"bytes"])
        assert store.get(SEGMENT).date_ms == 0


class TestLock:
    def test_lock_of_another_process_is_temporary(self, store: Store, root: Path) -> None:
        etag = store.put_if_absent("head", b"old").etag
        with (root / ".lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(TemporaryError, match="locked by another process"):
                store.put_if_match("head", b"new", etag)
            store.put_stream(SEGMENT, [b"bytes"])  # needs no lock: nobody else has its name
        store.put_if_match("head", b"new", etag)

    def test_lock_file_stays_and_is_not_listed(self, store: Store, root: Path) -> None:
        store.put_if_absent("head", b"state")
        with pytest.raises(PreconditionFailed):
            store.put_if_absent("head", b"state")
        assert sorted(path.name for path in root.iterdir()) == [".lock", "head"]
        assert keys(store) == ["head"]


class TestFileSystem:
    @pytest.mark.parametrize(
        ("number", "kind"),
        [
            (errno.ENOSPC, "disk_full"),
            (errno.EDQUOT, "disk_full"),
            (errno.EROFS, "not_writable"),
            (errno.EACCES, "not_writable"),
            (errno.EIO, "io_error"),
        ],
    )
    def test_refusal_names_the_path_and_keeps_the_old(
        self, store: Store, root: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: str
    ) -> None:
        etag = store.put_if_absent("head", b"old").etag
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", failing(number))
            for put in (
                lambda: store.put_if_match("head", b"new", etag),
                lambda: store.put_stream(SEGMENT, [b"bytes"]),
            ):
                with pytest.raises(StorageError, match=str(root)) as caught:
                    put()
                assert caught.value.kind == kind
        assert store.get("head").data == b"old"
        assert keys(store) == ["head"]
        assert temporary_files(root) == []

    def test_place_that_is_a_file_is_not_writable(self, store: Store, root: Path) -> None:
        root.parent.write_bytes(b"in the way")
        assert keys(store) == []
        with pytest.raises(NoSuchKey):
            store.get("head")
        with pytest.raises(StorageError) as caught:
            store.put_if_absent("head", b"state")
        assert caught.value.kind == "not_writable"

    def test_directory_is_no_object(self, store: Store, root: Path) -> None:
        (root / "head").mkdir(parents=True)
        assert store.head("head") is None
        with pytest.raises(NoSuchKey):
            store.get("head")

    def test_foreign_files_are_listed_in_the_order_of_their_bytes(self, store: Store, root: Path) -> None:
        names = [b"a", b"a-b", b"a.d/x", b"a/b", b"a0", b"\xc3\xa4", b"\xff"]
        for name in (*names, b".hidden", b".dir/x"):
            path = os.path.join(os.fsencode(root), name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if name != b"a":  # a file and a directory of one name are for S3 only
                Path(os.fsdecode(path)).write_bytes(b"")
        assert keys(store) == ["a-b", "a.d/x", "a/b", "a0", "ä", "\\xff"]

    def test_directory_that_vanished_is_made_again(self, store: Store, root: Path) -> None:
        store.put_stream(SEGMENT, [b"bytes"])
        (root / SEGMENT).unlink()
        (root / SEGMENT).parent.rmdir()
        store.put_stream(SEGMENT, [b"bytes"])
        assert keys(store) == [SEGMENT]

    def test_file_that_cannot_be_deleted_is_told(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        store.put_stream(SEGMENT, [b"bytes"])
        monkeypatch.setattr(Path, "unlink", failing(errno.EACCES))
        (failure,) = store.delete_many([SEGMENT])
        assert (failure.key, failure.reason) == (SEGMENT, "Permission denied")
