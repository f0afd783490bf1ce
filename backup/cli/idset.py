"""A set of ids in little memory: one bit an id, in pages of 65,536 that are made when touched."""

from __future__ import annotations

_PAGE_BITS = 16
_IN_PAGE = (1 << _PAGE_BITS) - 1


class IdSet:
    """Ids are u32. All of them take 512 MiB, a dense million 128 KiB."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def add(self, record_id: int) -> None:
        page = self._pages.get(record_id >> _PAGE_BITS)
        if page is None:
            page = self._pages[record_id >> _PAGE_BITS] = bytearray(1 << (_PAGE_BITS - 3))
        page[(record_id & _IN_PAGE) >> 3] |= 1 << (record_id & 7)

    def discard(self, record_id: int) -> None:
        page = self._pages.get(record_id >> _PAGE_BITS)
        if page is not None:
            page[(record_id & _IN_PAGE) >> 3] &= ~(1 << (record_id & 7))

    def __contains__(self, record_id: int) -> bool:
        page = self._pages.get(record_id >> _PAGE_BITS)
        return page is not None and bool(page[(record_id & _IN_PAGE) >> 3] & 1 << (record_id & 7))
