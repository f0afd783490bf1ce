"""The lookup table's checkpoint: a cache, written only after the records that it covers are durable.

```
header   magic 8, version u16, width u16, chunks u32, uuid 16, seq u64, file_id u64 (of the file that
         holds this seq), highest id + 1 u64 (0: none), crc32c u32
chunk    number u32, bytes u32, crc32c u32 (of what follows, from the number on), seqs, a byte each: live
```
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

import numpy as np
from crc32c import crc32c

from ourdb.directory import Directory
from ourdb.lookup import CHUNK_IDS, Lookup, width_for

NAME = "lookup.ckpt"
MAGIC = b"\x89OurCKP\n"
VERSION = 1
_HEADER = Struct("<8sHHI16sQQQ")
_CHUNK = Struct("<II")
_SHAPES = {2: "<u2", 3: "u1", 4: "<u4", 6: "u1"}


@dataclass(frozen=True, kw_only=True)
class Covered:
    """Up to which seq a checkpoint reaches, and the id of the data file that holds it."""

    seq: int
    file_id: int


def write_checkpoint(directory: Directory, lookup: Lookup, uuid: bytes, covered: Covered) -> int:
    """Replaces the checkpoint; returns its size. It needs no sync: a torn one is no checkpoint."""
    path = directory.cache / NAME
    beside = path.with_name(NAME + ".tmp")
    chunks = lookup.used_chunks()
    width = width_for(covered.seq)
    highest = 0 if lookup.highest is None else lookup.highest + 1
    head = _HEADER.pack(MAGIC, VERSION, width, len(chunks), uuid, covered.seq, covered.file_id, highest)
    with directory.fs.open(beside, write=True, create=True) as file:
        file.ftruncate(0)
        file.pwrite(head + crc32c(head).to_bytes(4, "little"), 0)
        offset = _HEADER.size + 4
        for number in chunks:
            seqs, live = lookup.chunk(number)
            body = _narrow(seqs, width) + live.tobytes()
            covering = _CHUNK.pack(number, len(body))
            data = covering + crc32c(body, crc32c(covering)).to_bytes(4, "little") + body
            file.pwrite(data, offset)
            offset += len(data)
    directory.fs.rename(beside, path)
    return offset


def load_checkpoint(
    directory: Directory, uuid: bytes, id_max: int, file_ids: set[int]
) -> tuple[Lookup, Covered] | None:
    """The table, or None: there is none, or it is not whole, or of files that are not there any more."""
    try:
        with directory.fs.open(directory.cache / NAME) as file:
            data = memoryview(file.map(file.size())) if file.size() else memoryview(b"")
    except FileNotFoundError:
        return None
    head = bytes(data[: _HEADER.size])
    offset = _HEADER.size + 4
    if len(data) < offset or crc32c(head) != int.from_bytes(data[_HEADER.size : offset], "little"):
        return None
    magic, version, width, chunks, its_uuid, seq, file_id, highest = _HEADER.unpack(head)
    if (
        (magic, version, its_uuid) != (MAGIC, VERSION, uuid)
        or file_id not in file_ids
        or width not in _SHAPES
    ):
        return None
    lookup = Lookup(id_max, seq=seq)
    for _ in range(chunks):
        end = _load_chunk(lookup, data, offset, width)
        if end is None:
            return None
        offset = end
    lookup.highest = highest - 1 if highest else None
    return lookup, Covered(seq=seq, file_id=file_id)


def _load_chunk(lookup: Lookup, data: memoryview, offset: int, width: int) -> int | None:
    """Where the chunk ends, None if it is damaged."""
    if len(data) < offset + _CHUNK.size + 4:
        return None
    covering = bytes(data[offset : offset + _CHUNK.size])
    number, size = _CHUNK.unpack(covering)
    offset += _CHUNK.size + 4
    body = data[offset : offset + size]
    ids = min(CHUNK_IDS, lookup.id_max + 1 - number * CHUNK_IDS)
    if len(body) != size or size != ids * (width + 1):
        return None
    if crc32c(body, crc32c(covering)) != int.from_bytes(data[offset - 4 : offset], "little"):
        return None
    live = np.frombuffer(body, np.uint8, ids, ids * width)
    lookup.put_chunk(number, _widen(body[: ids * width], width), live)
    return int(offset + size)


def _narrow(seqs: np.ndarray[tuple[int], np.dtype[np.uint64]], width: int) -> bytes:
    """The low `width` bytes of each seq."""
    if width in (2, 4):
        return seqs.astype(_SHAPES[width]).tobytes()
    return np.ascontiguousarray(seqs.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :width]).tobytes()


def _widen(data: memoryview, width: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    if width in (2, 4):
        return np.frombuffer(data, _SHAPES[width]).astype(np.uint64)
    whole = np.zeros((len(data) // width, 8), np.uint8)
    whole[:, :width] = np.frombuffer(data, np.uint8).reshape(-1, width)
    return whole.view("<u8").reshape(-1)
