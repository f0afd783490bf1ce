"""Small JSON files that are replaced whole: a line of JSON, and a line with its CRC32C."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crc32c import crc32c

from ourdb.errors import DamageError
from ourdb.files import FileSystem

_BYTES_MAX = 64 << 20  # 65,536 files of some 250 bytes each are 16 MiB


def encode(fields: dict[str, Any]) -> bytes:
    body = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    return b"%s\n%08x\n" % (body, crc32c(body))


def decode(data: bytes, path: Path) -> dict[str, Any]:
    """The object, or DamageError if not every byte is as it was written."""
    body, _, rest = data.partition(b"\n")
    if len(data) > _BYTES_MAX or rest != b"%08x\n" % crc32c(body):
        raise DamageError(f"checksum does not match: {path}", file=path.name, path=str(path), offset=0)
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise DamageError(f"not JSON: {path}", file=path.name, path=str(path), offset=0) from error
    if not isinstance(fields, dict):
        raise DamageError(f"not a JSON object: {path}", file=path.name, path=str(path), offset=0)
    return fields


def read(path: Path, *, fs: FileSystem) -> dict[str, Any] | None:
    """The object, None if there is no such file. Raises DamageError if it is damaged."""
    try:
        data = fs.read(path, bytes_max=_BYTES_MAX)
    except FileNotFoundError:
        return None
    return decode(data, path)


def replace(path: Path, fields: dict[str, Any], *, fs: FileSystem) -> None:
    """Durable when it returns; whoever crashes finds the old object or the new one."""
    fs.replace(path, encode(fields))
