"""The engine's seam to the system, watched: every call and every store into a mapping is made for real, and
noted on a simulated disk. A hook sees each of them before it happens, and may make it fail, or kill."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ourdb.files import FileSystem
from tests.power.disk import PAGE_BYTES, Disk, Folder, Node

CALLS = {"open", "lock", "create", "preallocate", "write", "map", "truncate", "rename", "remove"}
CALLS |= {"fdatasync", "fsync"}


class Killed(BaseException):
    """The process was killed at this call: what comes after it in this process never happens."""


@dataclass(frozen=True)
class Fault:
    """How a call goes wrong. number: an errno. after: its effect takes place all the same. short: a write
    writes only so many bytes, and says so."""

    number: int = 0
    after: bool = False
    short: int = 0


@dataclass(frozen=True)
class Call:
    """what: as the seam names it, or "store" for a store into a mapping. size: bytes of a write."""

    what: str
    path: Path
    size: int = 0


Hook = Callable[[Call], Fault | None]


class WatchedMap(mmap.mmap):
    """A mapping whose slice stores are noted."""

    watch: Callable[[WatchedMap, slice, bytes], None]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.watch(self, key, bytes(value))

    def store(self, start: int, data: bytes) -> None:
        super().__setitem__(slice(start, start + len(data)), data)


class WatchedSystem(FileSystem):
    """One process's calls. Once killed, it makes none any more."""

    def __init__(self, disk: Disk, hook: Hook, seed: int = 0) -> None:
        self.disk, self.hook, self.dead = disk, hook, False
        self._rng = random.Random(seed)
        self._nodes: dict[int, Node | Folder] = {}
        self._mapped: dict[Node, int] = {}  # files that are mapped for writing, and a descriptor of ours

    def call(self, what: str, path: Path, function: Callable[..., Any], *args: Any) -> Any:
        if self.dead:
            raise Killed
        if what not in CALLS:
            return super().call(what, path, function, *args)
        return super().call(what, path, self._make, what, path, function, *args)

    def end(self) -> None:
        """The process is gone."""
        self.note_places()
        self.dead = True
        for fd in self._mapped.values():
            os.close(fd)
        self._mapped = {}

    def note_places(self) -> None:
        """Places are stored into plain memory: note what is new in it."""
        for node, fd in self._mapped.items():
            now, known = os.pread(fd, len(node.cached), 0), node.cached
            if now == known:
                continue
            slots = [at for at in range(0, len(now), 4) if now[at : at + 4] != known[at : at + 4]]
            node.write(self.disk.tick(), slots[0], now[slots[0] : slots[-1] + 4], mapped=True)

    def _make(self, what: str, path: Path, function: Callable[..., Any], *args: Any) -> Any:
        self.note_places()
        size = len(args[1]) if what == "write" else 0
        fault = self._ask(Call(what, path, size))
        if fault and fault.short and size > 1:
            args = (args[0], args[1][: 1 + fault.short % (size - 1)], args[2])
        elif fault and fault.number:
            if what in ("fdatasync", "fsync"):
                self._fail_sync(self._nodes[args[0]])
            elif fault.after:
                self._note(what, path, args, function(*args))
            raise OSError(fault.number, os.strerror(fault.number))
        if what == "map" and args[2] & mmap.MAP_SHARED and args[3] & mmap.PROT_WRITE:
            return self._map(*args)
        found = function(*args)
        self._note(what, path, args, found)
        return found

    def _ask(self, call: Call) -> Fault | None:
        try:
            return self.hook(call)
        except Killed:
            self.dead = True
            raise

    def _fail_sync(self, node: Node | Folder) -> None:
        if isinstance(node, Node):
            pages = range((len(node.cached) + PAGE_BYTES - 1) // PAGE_BYTES)
            node.fail_sync({page for page in pages if self._rng.random() < 0.3})

    def _note(self, what: str, path: Path, args: tuple[Any, ...], result: Any) -> None:
        disk = self.disk
        if what == "open":
            self._nodes[result] = self._opened(path, args[1])
        elif what == "write":
            self._file(args[0]).write(disk.tick(), args[2], bytes(args[1][:result]))
        elif what in ("fdatasync", "fsync"):
            disk.sync(self._nodes[args[0]])
        elif what == "truncate":
            self._resize(self._file(args[0]), args[1])
        elif what == "preallocate":
            node = self._file(args[0])
            if args[1] + args[2] > len(node.cached):
                node.resize(disk.tick(), args[1] + args[2])
        elif what == "rename":
            source, target = args
            node = disk.find(source)
            disk.folder(target.parent).link(disk.tick(), target.name, node)
            disk.folder(source.parent).link(disk.clock, source.name, None)
        elif what == "remove":
            disk.folder(path.parent).link(disk.tick(), path.name, None)
        elif what == "create":
            disk.folder(path.parent).link(disk.tick(), path.name, Folder())

    def _opened(self, path: Path, flags: int) -> Node | Folder:
        node = self.disk.find(path)
        if node is None:
            assert flags & os.O_CREAT, path
            node = Node()
            self.disk.folder(path.parent).link(self.disk.tick(), path.name, node)
        return node

    def _file(self, fd: int) -> Node:
        node = self._nodes[fd]
        assert isinstance(node, Node)
        return node

    def _resize(self, node: Node, size: int) -> None:
        if size < len(node.cached) and node in self._mapped:
            os.close(self._mapped.pop(node))  # a sealed file: nothing is stored through its mapping now
        node.resize(self.disk.tick(), size)

    def _map(self, fd: int, *args: Any) -> WatchedMap:
        node = self._file(fd)
        if node not in self._mapped:
            self._mapped[node] = os.dup(fd)
        mapping = WatchedMap(fd, *args)
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        mapping.watch = lambda where, key, data: self._stored(where, node, path, key, data)
        return mapping

    def _stored(self, mapping: WatchedMap, node: Node, path: Path, key: slice, data: bytes) -> None:
        if self.dead:
            raise Killed
        self.note_places()
        start = key.start
        try:
            self._ask(Call("store", path, len(data)))
        except Killed:
            data = bytes(mapping[key]) if len(data) < 2 else self.torn(bytes(mapping[key]), data)
            mapping.store(start, data)
            node.write(self.disk.tick(), start, data, mapped=True)
            raise
        mapping.store(start, data)
        node.write(self.disk.tick(), start, data, mapped=True)

    def torn(self, old: bytes, new: bytes) -> bytes:
        """A copy that did not come to its end: the first bytes, or any eight at a time."""
        if self._rng.random() < 0.5:
            done = self._rng.randrange(len(new))
            return new[:done] + old[done:]
        parts = range(0, len(new), 8)
        return b"".join((new if self._rng.random() < 0.5 else old)[at : at + 8] for at in parts)
