"""What `items` and `values` give: views as a dictionary has them, read piece by piece."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView

Pairs = Callable[[], Iterator[tuple[int, bytes]]]


class Items(ItemsView[int, bytes]):
    """Ids and values of one state, or of the current one. pairs: walks them; count: how many there are."""

    def __init__(
        self, db: Mapping[int, bytes], pairs: Pairs, count: Callable[[], int], *, current: bool
    ) -> None:
        super().__init__(db)
        self._db, self._pairs, self._count, self._current = db, pairs, count, current

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        return self._pairs()

    def __len__(self) -> int:
        return self._count()

    def __contains__(self, item: object) -> bool:
        if not self._current:
            return any(pair == item for pair in self._pairs())
        if not isinstance(item, tuple) or len(item) != 2:
            return False
        return item[0] in self._db and self._db.get(item[0]) == item[1]


class Values(ValuesView[bytes]):
    """The values, in the order of `items`. What is deleted while they are walked is left out."""

    def __init__(self, db: Mapping[int, bytes]) -> None:
        super().__init__(db)
        self._db = db

    def __iter__(self) -> Iterator[bytes]:
        for _, value in self._db.items():
            yield value

    def __contains__(self, value: object) -> bool:
        return any(value == each for each in self)
