"""From the log into the store: pieces become segments, several at a time, in bounded memory.

A piece is read in blocks of about 128 KiB, each byte verified again; a task of the pool compresses some
of them; the writer puts them in order, and the store takes the bytes as they come.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import zstandard

from backup.notebook import Notebook
from compactor.head import SegmentEntry
from compactor.store import Store
from ourdb.log import LogReader, Piece
from ourdb.names import SegmentName, parse_generation, segment_key
from ourdb.record import Buffer
from ourdb.segment.block import ZSTD_LEVEL, Block, BlockTable, encode_block
from ourdb.segment.columns import Columns
from ourdb.segment.footer import Footer
from ourdb.segment.writer import FooterPlan, SegmentWriter
from ourdb.units import MIB

STREAMS_MAX = 2  # segments that are uploaded at a time
TASK_BLOCKS, TASK_BYTES = 8, MIB  # what one task compresses
WAITING_BYTES = 2 * MIB  # raw bytes of one stream that are being compressed
LARGE_VALUE = MIB  # where values may be larger, one segment at a time: its copies are what memory holds

_local = threading.local()


class _Stopped(Exception):
    """The run has ended with an error; its other uploads end too."""


Advance = Callable[[int], None]
_Blocks = list[tuple[Columns, Buffer]]


@dataclass(frozen=True)
class Task:
    """A piece to be uploaded, for a generation. made: the revision of the head that the run follows."""

    piece: Piece
    generation: str
    made: int


class Uploader:
    """Uploads pieces of one log to one store. threads: that compress. advance: is told raw bytes done, from
    any thread. A context manager."""

    def __init__(
        self,
        log: LogReader,
        store: Store,
        notebook: Notebook,
        *,
        threads: int | None = None,
        advance: Advance = lambda raw_bytes: None,
    ) -> None:
        self._log, self._store, self._notebook, self._advance = log, store, notebook, advance
        streams = 1 if log.config.record_size_max > LARGE_VALUE else STREAMS_MAX
        self._streams = ThreadPoolExecutor(streams, thread_name_prefix="segment")
        self._width = streams
        self._pool = ThreadPoolExecutor(threads or os.cpu_count() or 2, thread_name_prefix="compress")
        self._stop = threading.Event()

    def __enter__(self) -> Uploader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stop.set()  # uploads under way end, and leave nothing
        self._streams.shutdown(cancel_futures=True)
        self._pool.shutdown()

    def upload(self, tasks: Iterable[Task]) -> Iterator[SegmentEntry]:
        """The entries of the segments, in the order of the tasks, each as soon as the store has acknowledged
        it and that is noted. The first error ends it; what was acknowledged before stays noted."""
        waiting: deque[Future[SegmentEntry]] = deque()
        try:
            for task in tasks:
                waiting.append(self._streams.submit(self._upload_one, task))
                if len(waiting) >= self._width:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _upload_one(self, task: Task) -> SegmentEntry:
        summary, random = task.piece.summary, secrets.randbits(64)
        name = SegmentName(
            last_seq=summary.last_seq,
            first_seq=summary.first_seq,
            last_time=summary.last_time,
            first_time=summary.first_time,
            horizon=summary.horizon,
            chain_before=summary.chain_before,
            chain_after=summary.chain_after,
            made=task.made,
            random=random,
        )
        key = segment_key(task.generation, name)
        plan = FooterPlan(
            summary=summary, generation=parse_generation(task.generation), made=task.made, random=random
        )
        body = _Body(self, task.piece, plan)
        stat = self._store.put_stream(
            key, body.chunks(), on_begin=lambda upload_id: self._notebook.began(key, upload_id)
        )
        self._notebook.acknowledged(key, stat.bytes)
        assert body.footer is not None
        return SegmentEntry.of(
            task.generation, name, summary, size=stat.bytes, index_bytes=body.footer.index_bytes
        )

    def compressed(self, piece: Piece) -> Iterator[tuple[list[Block], Columns]]:
        """The blocks of a piece in order, compressed, some at a time, with the columns of their records."""
        waiting: deque[tuple[int, Future[list[Block]], _Blocks]] = deque()
        waiting_bytes = 0
        try:
            for raw_bytes, blocks in _grouped(self._log.blocks(piece)):
                self._check_stopped()
                waiting.append((raw_bytes, self._pool.submit(_compress, blocks), blocks))
                waiting_bytes += raw_bytes
                del blocks
                while waiting_bytes > WAITING_BYTES:
                    done_bytes, future, taken = waiting.popleft()
                    waiting_bytes -= done_bytes
                    yield future.result(), Columns.concat([columns for columns, _ in taken])
                    self._advance(done_bytes)
            for done_bytes, future, taken in waiting:
                yield future.result(), Columns.concat([columns for columns, _ in taken])
                self._advance(done_bytes)
        finally:
            for _, future, _ in waiting:
                future.cancel()

    def header(self, piece: Piece) -> bytes:
        return self._log.header(piece).encode()

    def _check_stopped(self) -> None:
        if self._stop.is_set():
            raise _Stopped


class _Body:
    """The bytes of one segment as a stream. footer: once all of them were taken."""

    def __init__(self, uploader: Uploader, piece: Piece, plan: FooterPlan) -> None:
        self._uploader, self._piece, self._plan = uploader, piece, plan
        self.footer: Footer | None = None

    def chunks(self) -> Iterator[bytes]:
        ready: list[bytes] = []

        def take(data: Buffer) -> None:
            ready.append(bytes(data))  # no copy of what is bytes already

        with SegmentWriter(self._uploader.header(self._piece), self._plan, take) as writer:
            for blocks, columns in self._uploader.compressed(self._piece):
                stored = b"".join([block.stored for block in blocks])
                writer.add_blocks(BlockTable.of(blocks), columns, stored)
                del blocks, columns, stored
                while ready:
                    yield ready.pop(0)
            self.footer = writer.finish()
            yield from ready


def _grouped(blocks: Iterable[tuple[Columns, Buffer]]) -> Iterator[tuple[int, _Blocks]]:
    """Blocks in groups for one task each, with their raw bytes; a large block is a group of its own."""
    group: _Blocks = []
    size = 0
    for columns, raw in blocks:
        group.append((columns, raw))
        size += len(raw)
        if len(group) == TASK_BLOCKS or size >= TASK_BYTES:
            yield size, group
            group, size = [], 0
    if group:
        yield size, group


def _compress(blocks: _Blocks) -> list[Block]:
    compressor: zstandard.ZstdCompressor | None = getattr(_local, "compressor", None)
    if compressor is None:
        compressor = _local.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    return [encode_block(raw, len(columns), compressor) for columns, raw in blocks]
