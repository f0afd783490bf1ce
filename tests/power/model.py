"""What the log of a database has to hold, and how much of it a crash may take away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Pair = tuple[int, bytes | None]  # id and value, None: deleted
Dropped = frozenset[int]  # seqs that condensing has dropped


@dataclass(frozen=True)
class Written:
    """One record; ends: the last one of its batch."""

    id: int
    value: bytes | None
    ends: bool


@dataclass
class Change:
    """What is being done: `dropped` is known when it has ended."""

    name: str
    dropped: Dropped = frozenset()


@dataclass(frozen=True)
class Expected:
    """What may be found after a crash. log: all that was begun. acknowledged: the last seq that has to be
    there after a kill, durable: after a power cut. created: the database was there for certain. before: seqs
    that were dropped by then; change: what was under way, which may drop more."""

    log: Sequence[Written]
    acknowledged: int
    durable: int
    created: bool
    before: Dropped
    change: Change

    def ends(self, seq: int) -> bool:
        """Whether a log may end there."""
        return seq == 0 or (0 < seq <= len(self.log) and self.log[seq - 1].ends)


@dataclass
class Model:
    """log: all that was begun. acknowledged: the last seq that the caller was told of. durable: the last that
    survives a power cut."""

    log: list[Written] = field(default_factory=list)
    acknowledged: int = 0
    durable: int = 0
    created: bool = False
    dropped: Dropped = frozenset()
    change: Change = field(default_factory=lambda: Change("create"))

    def begin(self, pairs: Sequence[Pair]) -> None:
        """A batch is about to be written."""
        last = len(pairs) - 1
        self.log += [Written(id_, value, at == last) for at, (id_, value) in enumerate(pairs)]

    def settle(self, seq: int) -> None:
        """A write failed, and the log was left to end there."""
        assert self.acknowledged <= seq <= len(self.log)
        del self.log[seq:]

    def cut(self, seq: int) -> None:
        """The log was found to end there."""
        del self.log[seq:]
        self.acknowledged = seq

    def expect(self) -> Expected:
        return Expected(
            log=tuple(self.log),
            acknowledged=self.acknowledged,
            durable=self.durable,
            created=self.created,
            before=self.dropped,
            change=self.change,
        )

    def state(self) -> dict[int, bytes]:
        return state_of(self.log)


def state_of(log: Sequence[Written]) -> dict[int, bytes]:
    """Ids and values after these records."""
    state: dict[int, bytes] = {}
    for record in log:
        if record.value is None:
            state.pop(record.id, None)
        else:
            state[record.id] = record.value
    return state


def histories_of(log: Sequence[Written], dropped: Dropped) -> dict[int, list[tuple[int, bytes | None]]]:
    """The versions of each id that were kept, newest first."""
    found: dict[int, list[tuple[int, bytes | None]]] = {record.id: [] for record in log}
    for seq in range(len(log), 0, -1):
        if seq not in dropped:
            record = log[seq - 1]
            found[record.id].append((seq, record.value))
    return found
