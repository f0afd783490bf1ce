"""Records that stay when others of their blocks go: picked out, and gathered into new blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ourdb.record import Buffer
from ourdb.segment.block import BLOCK_RAW_TARGET
from ourdb.segment.columns import Columns


def pick_records(raw: Buffer, columns: Columns, mask: npt.NDArray[np.bool_]) -> bytes:
    """The bytes of some records of a block. columns: of all its records."""
    if mask.all():
        return bytes(raw)
    ends = np.cumsum(columns.raw_sizes)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    bounds: list[list[Any]] = np.concatenate(([0], ends))[edges].reshape(-1, 2).tolist()
    view = memoryview(raw)
    return b"".join([view[begin:end] for begin, end in bounds])


def gather_records(pieces: Iterable[tuple[Columns, bytes]]) -> Iterator[tuple[Columns, bytes]]:
    """The same records in blocks of about BLOCK_RAW_TARGET raw bytes. No piece is cut."""
    pending: list[Columns] = []
    taken: list[bytes] = []
    size = 0
    for columns, raw in pieces:
        if size and size + len(raw) > BLOCK_RAW_TARGET:
            yield Columns.concat(pending), b"".join(taken)
            pending, taken, size = [], [], 0
        pending.append(columns)
        taken.append(raw)
        size += len(raw)
    if pending:
        yield Columns.concat(pending), b"".join(taken)
