"""A disk below a page cache, as far as a crash can tell: what was written, in which order, and what of it a
sync has made durable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Union

PAGE_BYTES = 4096
Image = dict[str, Union[bytes, "Image"]]  # names of a directory, and what is in them


@dataclass(frozen=True)
class Write:
    """Bytes that were stored into a file. new: by a call (not through a mapping) where the disk had nothing
    yet, which a file system with ordered data writes before what comes later in its journal."""

    at: int
    offset: int
    data: bytes
    new: bool


@dataclass(frozen=True)
class Resize:
    """A file got this size."""

    at: int
    size: int


@dataclass(frozen=True)
class Link:
    """A name in a directory got another meaning; None: none."""

    at: int
    name: str
    node: Node | Folder | None


@dataclass(eq=False)
class Node:
    """A file. cached: what every process sees. durable: what is on the disk for certain. pending: the changes
    between the two, in order. dropped: pages that a failed sync has marked as clean, though they are not
    on the disk."""

    cached: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    pending: list[Write | Resize] = field(default_factory=list)
    dropped: set[int] = field(default_factory=set)

    def write(self, at: int, offset: int, data: bytes, *, mapped: bool = False) -> None:
        if offset + len(data) > len(self.cached):
            self.resize(at, offset + len(data))
        self.cached[offset : offset + len(data)] = data
        new = not mapped and offset >= len(self.durable)
        again = self.dropped & pages_of(offset, len(data))
        for page in again:  # the whole page is dirty again
            begin = page * PAGE_BYTES
            self.pending.append(Write(at, begin, bytes(self.cached[begin : begin + PAGE_BYTES]), new=False))
        self.dropped -= again
        self.pending.append(Write(at, offset, bytes(data), new))

    def resize(self, at: int, size: int) -> None:
        if size < len(self.cached):
            del self.cached[size:]
        self.cached += bytes(size - len(self.cached))
        self.pending.append(Resize(at, size))

    def sync(self) -> None:
        """All changes are on the disk, but for pages that were dropped before."""
        self.durable = replay(self.durable, self.pending) if self.dropped else bytes(self.cached)
        self.pending = []

    def fail_sync(self, written: set[int]) -> None:
        """A sync failed: of the dirty pages some were written, the others count as clean from now on."""
        whole = bytes(self.cached)
        writes = [change for change in self.pending if isinstance(change, Write)]
        for change in writes:
            self.dropped |= pages_of(change.offset, len(change.data))
        self.pending = [change for change in self.pending if isinstance(change, Resize)]
        durable = bytearray(replay(self.durable, []))
        for page in written & self.dropped:
            begin = page * PAGE_BYTES
            durable += bytes(max(0, begin - len(durable)))
            durable[begin : begin + PAGE_BYTES] = whole[begin : begin + PAGE_BYTES]
        self.dropped -= written
        self.durable = bytes(durable)

    def evicted(self) -> bytes:
        """What is read when the kernel needed memory and let go of the clean pages."""
        content, whole = bytearray(self.cached), self.durable.ljust(len(self.cached), b"\0")
        for page in self.dropped:
            begin = page * PAGE_BYTES
            content[begin : begin + PAGE_BYTES] = whole[begin : min(begin + PAGE_BYTES, len(content))]
        return bytes(content)


@dataclass(eq=False)
class Folder:
    """A directory, as a file of names."""

    cached: dict[str, Node | Folder] = field(default_factory=dict)
    durable: dict[str, Node | Folder] = field(default_factory=dict)
    pending: list[Link] = field(default_factory=list)

    def link(self, at: int, name: str, node: Node | Folder | None) -> None:
        if node is None:
            self.cached.pop(name, None)
        else:
            self.cached[name] = node
        self.pending.append(Link(at, name, node))

    def sync(self) -> None:
        self.durable, self.pending = dict(self.cached), []


class Disk:
    """Files and directories below `root`. clock: counts changes. synced_at: when the last sync was, of
    anything: a journal was written up to there."""

    def __init__(self, root: Path, image: Image | None = None) -> None:
        self.root = root
        self.clock = self.synced_at = 0
        self.top = _folder_of(image or {})

    def copy(self, root: Path) -> Disk:
        """The same files below another root."""
        other = Disk(root)
        other.clock, other.synced_at = self.clock, self.synced_at
        other.top = _copy_folder(self.top, {})
        return other

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def find(self, path: Path) -> Node | Folder | None:
        here: Node | Folder | None = self.top
        for name in path.relative_to(self.root).parts:
            here = here.cached.get(name) if isinstance(here, Folder) else None
        return here

    def folder(self, path: Path) -> Folder:
        found = self.find(path)
        assert isinstance(found, Folder), path
        return found

    def sync(self, node: Node | Folder) -> None:
        self.synced_at = self.tick()
        node.sync()

    def nodes(self) -> Iterator[Node]:
        """Files that are named now."""
        folders = [self.top]
        while folders:
            for node in folders.pop().cached.values():
                if isinstance(node, Folder):
                    folders.append(node)
                else:
                    yield node


def pages_of(offset: int, length: int) -> set[int]:
    return set(range(offset // PAGE_BYTES, (offset + length + PAGE_BYTES - 1) // PAGE_BYTES))


def replay(content: bytes, changes: list[Write | Resize]) -> bytes:
    """A file's content after some changes."""
    found = bytearray(content)
    for change in changes:
        if isinstance(change, Resize):
            del found[change.size :]
            found += bytes(change.size - len(found))
        else:
            found[change.offset : change.offset + len(change.data)] = change.data
    return bytes(found)


def _folder_of(image: Image) -> Folder:
    """A directory all of which is durable."""
    entries: dict[str, Node | Folder] = {
        name: _folder_of(found) if isinstance(found, dict) else Node(bytearray(found), found)
        for name, found in image.items()
    }
    return Folder(entries, dict(entries))


def _copy_folder(folder: Folder, done: dict[Node | Folder, Node | Folder]) -> Folder:
    def copied(node: Node | Folder) -> Node | Folder:
        if node not in done:
            if isinstance(node, Folder):
                done[node] = _copy_folder(node, done)
            else:
                done[node] = Node(bytearray(node.cached), node.durable, list(node.pending), set(node.dropped))
        return done[node]

    return Folder(
        {name: copied(node) for name, node in folder.cached.items()},
        {name: copied(node) for name, node in folder.durable.items()},
        [Link(link.at, link.name, link.node and copied(link.node)) for link in folder.pending],
    )


def read_image(path: Path) -> Image:
    """What is in a real directory."""
    return {
        entry.name: read_image(entry) if entry.is_dir() else entry.read_bytes() for entry in path.iterdir()
    }


def build(path: Path, image: Image) -> None:
    """Make a real directory of an image."""
    path.mkdir()
    for name, content in image.items():
        if isinstance(content, dict):
            build(path / name, content)
        else:
            (path / name).write_bytes(content)
