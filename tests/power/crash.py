"""What a crash may leave: of each change that no sync has made durable, all, nothing, or torn pieces.

- `killed`: the process ends, the page cache stays: everything up to this call.
- `cut_ordered`: the power fails below a file system that journals its metadata in order, and writes what is
  appended to files before it; stores into what is there already reach the disk in any order.
- `cut_careless`: the power fails below one that promises nothing: each name, each size, each sector of each
  file is as it was after any number of its changes.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.power.disk import PAGE_BYTES, Disk, Folder, Image, Node, Resize, Write

SECTOR_BYTES = 512
Cut = Callable[[int], int]  # a sector's number: the time up to which its stores are on the disk


def killed(disk: Disk) -> Image:
    return _image(disk.top.cached, lambda folder: folder.cached, lambda node: bytes(node.cached))


def evicted(disk: Disk) -> Image:
    """As `killed`, after the kernel let go of pages that it takes for clean."""
    return _image(disk.top.cached, lambda folder: folder.cached, Node.evicted)


def unsynced_lost(disk: Disk) -> Image:
    """The worst power cut: nothing is left but what a sync has made durable."""
    return _image(disk.top.durable, lambda folder: folder.durable, lambda node: node.durable)


def cut_ordered(disk: Disk, rng: random.Random) -> Image:
    journal = rng.choice((disk.clock, disk.synced_at, rng.randint(disk.synced_at, disk.clock)))

    def names(folder: Folder) -> dict[str, Node | Folder]:
        return _names(folder, lambda _: journal)

    def content(node: Node) -> bytes:
        return _content(node, journal, _cuts(node, disk, rng), journal)

    return _image(names(disk.top), names, content)


def cut_careless(disk: Disk, rng: random.Random) -> Image:
    favour = rng.choice((0.0, 0.5, 0.5, 1.0))  # how much of the names and sizes comes through

    def moment(_: str = "") -> int:
        early, late = rng.random() >= favour, rng.random() < favour
        return disk.clock if late else 0 if early else rng.randint(0, disk.clock)

    def names(folder: Folder) -> dict[str, Node | Folder]:
        moments: dict[str, int] = {}
        return _names(folder, lambda name: moments.setdefault(name, moment()))

    def content(node: Node) -> bytes:
        return _content(node, moment(), _cuts(node, disk, rng), -1)

    return _image(names(disk.top), names, content)


def _image(
    entries: dict[str, Node | Folder],
    names: Callable[[Folder], dict[str, Node | Folder]],
    content: Callable[[Node], bytes],
) -> Image:
    return {
        name: _image(names(node), names, content) if isinstance(node, Folder) else content(node)
        for name, node in entries.items()
    }


def _names(folder: Folder, until: Callable[[str], int]) -> dict[str, Node | Folder]:
    found = dict(folder.durable)
    for link in folder.pending:
        if link.at <= until(link.name):
            if link.node is None:
                found.pop(link.name, None)
            else:
                found[link.name] = link.node
    return found


def _cuts(node: Node, disk: Disk, rng: random.Random) -> Cut:
    """How the stores into one file reach the disk: all, none, up to a moment, or in any order by page or by
    sector, most of them there or few."""
    if not node.pending:
        return lambda _: 0
    first, last = node.pending[0].at - 1, disk.clock
    some = rng.randint(first, last)
    share = rng.choice((0.1, 0.5, 0.9))
    sectors = rng.choice((1, PAGE_BYTES // SECTOR_BYTES))
    drawn: dict[int, int] = {}

    def scattered(sector: int) -> int:
        return drawn.setdefault(sector // sectors, last if rng.random() < share else first)

    def torn(sector: int) -> int:
        return drawn.setdefault(sector // sectors, rng.randint(first, last))

    return rng.choice((lambda _: last, lambda _: first, lambda _: some, scattered, torn))


def _content(node: Node, sized_at: int, cut: Cut, new_until: int) -> bytes:
    """new_until: stores of new data are kept up to this moment, whatever `cut` says."""
    found, size = bytearray(node.durable), len(node.durable)
    for change in node.pending:
        if isinstance(change, Resize):
            if change.at <= sized_at:
                del found[change.size :]
                size = change.size
        else:
            found += bytes(max(0, change.offset + len(change.data) - len(found)))
            _store(found, change, cut, keep=change.new and change.at < new_until)
    del found[size:]
    return bytes(found) + bytes(size - len(found))


def _store(found: bytearray, write: Write, cut: Cut, *, keep: bool) -> None:
    end = write.offset + len(write.data)
    begin = write.offset
    while begin < end:
        stop = min(end, (begin // SECTOR_BYTES + 1) * SECTOR_BYTES)
        if keep or write.at <= cut(begin // SECTOR_BYTES):
            found[begin:stop] = write.data[begin - write.offset : stop - write.offset]
        begin = stop
