"""Making a database directory from outside, as a restore does: sealed files from blocks in any order, an
empty active file, and what makes it a database last of all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from crc32c import crc32c

from ourdb import line
from ourdb.active import ActiveFile
from ourdb.config import Config
from ourdb.directory import TORN, Directory, FileEntry, FileList, random_u64
from ourdb.errors import ExistsError, InvalidError
from ourdb.files import File, FileSystem, require_linux
from ourdb.logtail import verify_block
from ourdb.names import format_generation
from ourdb.record import Buffer
from ourdb.segment.block import BlockTable, cut_blocks
from ourdb.segment.columns import Columns
from ourdb.segment.header import HEADER_BYTES, Header
from ourdb.segment.summary import Summary
from ourdb.segment.writer import FooterPlan, IndexBuilder
from ourdb.units import GIB


class SealedFileBuilder:
    """One sealed file. `put` may be called from several threads, `finish` once all have returned."""

    def __init__(self, file: File, header: Header, summary: Summary, raw_bytes: int) -> None:
        self._file, self._header, self._summary = file, header, summary
        self._raw_bytes = raw_bytes
        self.entry: FileEntry | None = None

    def put(self, offset: int, raw: Buffer) -> None:
        """Records, raw, at an offset within the record area (0: the first record)."""
        if offset < 0 or offset + len(raw) > self._raw_bytes:
            raise InvalidError(
                f"outside of the record area: {offset} and {len(raw)} bytes, it has {self._raw_bytes}"
            )
        self._file.pwrite(memoryview(raw), HEADER_BYTES + offset)

    def finish(self, columns: Iterable[Columns], *, verify: bool = True) -> FileEntry:
        """Append index and footer, and make the file durable. columns: of all records in order, in pieces.

        The records are read back; with `verify` each is compared with its column and its checksum, and in any
        case columns and summary with one another. DamageError: file, offset, seq.
        """
        place = HEADER_BYTES + self._raw_bytes

        def write(piece: Buffer) -> None:
            nonlocal place
            self._file.pwrite(memoryview(piece), place)
            place += len(piece)

        header, at = self._header, HEADER_BYTES
        plan = FooterPlan(summary=self._summary, generation=header.generation, made=0, random=header.file_id)
        index = IndexBuilder(header.encode(), plan, write)
        for piece in columns:
            if len(piece):
                at = self._add(index, piece, at, verify)
        if at != HEADER_BYTES + self._raw_bytes:
            raise InvalidError(f"records have {at - HEADER_BYTES} bytes, not {self._raw_bytes}")
        index.finish()
        self._file.fsync()
        self._file.close()
        self.entry = FileEntry(
            nr=header.file_nr,
            file_id=header.file_id,
            first_seq=self._summary.first_seq,
            sealed=True,
            exact=self._summary.exact,
            bytes=place,
            last_seq=self._summary.last_seq,
            records=self._summary.records,
            first_time=self._summary.first_time,
            last_time=self._summary.last_time,
        )
        return self.entry

    def _add(self, index: IndexBuilder, columns: Columns, at: int, verify: bool) -> int:
        counts, sizes, crcs = cut_blocks(columns.length).tolist(), [], []
        start = 0
        for count in counts:
            block = columns[start : start + count]
            size = int(block.raw_sizes.sum())
            raw = self._file.pread(size, at)
            if verify:
                verify_block(raw, block, at, self._file.path.name)
            sizes.append(size)
            crcs.append(crc32c(raw))
            start, at = start + count, at + size
        index.add(columns, BlockTable.raw(counts, sizes, crcs))
        return at

    def close(self) -> None:
        """Let go of a file that is not finished."""
        self._file.close()


class DirectoryBuilder:
    """Writes a new database directory: files in order of their ranges, then `finish`. Until then it is no
    database. A context manager; files that were not finished are closed."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        uuid: bytes,
        config: Config,
        generation: int,
        fs: FileSystem | None = None,
    ) -> None:
        """path: a directory that does not exist, or is empty but for line.json. ExistsError otherwise."""
        require_linux()
        self._fs = fs or FileSystem()
        self._directory = Directory(Path(path), self._fs)
        self._uuid, self._config, self._generation = uuid, config.validate(), generation
        self._files: list[SealedFileBuilder] = []
        self._fs.make_directory(self._directory.path)
        foreign = set(self._fs.names(self._directory.path)) - {line.FILE_NAME, line.LOCK_NAME}
        if foreign:
            raise ExistsError(f"not empty: {path} (it has {sorted(foreign)[0]})", path=str(path))
        for folder in (self._directory.cache, self._directory.path / TORN):
            self._fs.make_directory(folder)

    def __enter__(self) -> DirectoryBuilder:
        return self

    def __exit__(self, *_: object) -> None:
        for builder in self._files:
            builder.close()

    def file(self, summary: Summary, raw_bytes: int) -> SealedFileBuilder:
        """The next sealed file, preallocated. raw_bytes: of its records, below 4 GiB with the header."""
        if HEADER_BYTES + raw_bytes >= 4 * GIB:
            raise InvalidError(f"a data file is below 4 GiB: {raw_bytes} bytes of records")
        header = Header(
            uuid=self._uuid,
            generation=self._generation,
            file_nr=len(self._files),
            file_id=random_u64(),
            first_seq=summary.first_seq,
            config=self._config,
        )
        path = self._directory.path / f"{header.file_nr}.db"
        file = self._fs.open(path, write=True, create=True, exclusive=True)
        try:
            file.fallocate(0, HEADER_BYTES + raw_bytes)
            file.pwrite(header.encode(), 0)
        except BaseException:
            file.close()
            raise
        builder = SealedFileBuilder(file, header, summary.validate(), raw_bytes)
        self._files.append(builder)
        return builder

    def finish(self) -> None:
        """The empty active file, the list of files, the line if there is none yet, and the identity, which
        makes it a database. All of it is durable when this returns."""
        entries = [builder.entry for builder in self._files]
        sealed = tuple(entry for entry in entries if entry is not None)
        if len(sealed) != len(entries):
            raise InvalidError("a file of the new directory was not finished")
        directory = self._directory
        if line.load(directory.path, fs=self._fs) is None:
            line.create(directory.path, format_generation(self._generation), fs=self._fs)
        nr = len(sealed)
        header = Header(
            uuid=self._uuid,
            generation=self._generation,
            file_nr=nr,
            file_id=random_u64(),
            first_seq=sealed[-1].last_seq + 1 if sealed else 1,
            config=self._config,
        )
        active = ActiveFile.create(directory, header)
        active.close()
        files = FileList(files=(*sealed, active.entry), next_nr=(nr + 1) % 65_536)
        directory.replace_list(FileList.from_json(files.as_json(), directory.path / "files.json"))
        directory.write_identity(self._uuid, self._config)
        self._fs.sync_directory(directory.path)
