"""CRC32C as S3 writes it: base64 of four big-endian bytes, with `-N` for the checksum of N parts' ones."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

import crc32c


def encode_crc32c(value: int) -> str:
    return base64.b64encode(value.to_bytes(4, "big")).decode()


def decode_crc32c(text: str | None) -> int | None:
    """The checksum of a whole object; None for one of parts, none at all, or something unreadable."""
    try:
        raw = base64.b64decode(text or "", validate=True)
    except (binascii.Error, ValueError):
        return None
    return int.from_bytes(raw, "big") if len(raw) == 4 else None


def encode_composite(parts: Sequence[int]) -> str:
    """What a store says of an upload in parts if it does not know the checksum of the whole."""
    together = b"".join(value.to_bytes(4, "big") for value in parts)
    return f"{encode_crc32c(crc32c.crc32c(together))}-{len(parts)}"
