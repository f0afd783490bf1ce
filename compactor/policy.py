"""What a namespace keeps: the window, keep rules and grace time of its head, and the time they are counted
from. Pure.

A keep rule keeps boundaries: `daily 7` is the ends of the last 7 days (UTC), and what a boundary keeps is the
last point at or before it (docs/decisions/keep-rules-are-boundaries.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from compactor.body import Json, Malformed, Members, damaged, no_extra
from compactor.head import Head
from ourdb.errors import InvalidError
from ourdb.record import TIME_MAX
from ourdb.units import format_span, format_time

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
GRACE_MS = DAY_MS
GRACE_MS_MIN = HOUR_MS
CLOCKS_APART_MS_MAX = 5 * 60_000
KEEP_MAX = 1_000_000
KEEP_RULES = ("hourly", "daily", "weekly", "monthly", "yearly", "last")
_MONDAY_MS = 4 * DAY_MS  # the first one of the epoch


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What compaction and prune keep. The one without arguments keeps everything.

    window_ms: every point of this span before now stays exact, 0: the newest only; None: every point there
    is, and the keep rules have nothing to do. hourly, daily, weekly, monthly, yearly: so many hours, days,
    ISO weeks, months and years (UTC) that are over keep the state at their end. last: so many of the newest
    points. keep_versions: so many versions of each id beside what points need. grace_ms: how long what was
    let go of is kept, at least an hour. minimum: points that each open line keeps whatever else is said, at
    least 1. extra: members that this program does not know, written back as they were.
    """

    window_ms: int | None = None
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    last: int = 0
    keep_versions: int = 0
    grace_ms: int = GRACE_MS
    minimum: int = 1
    extra: Json = field(default_factory=no_extra)

    @property
    def drops(self) -> bool:
        """Whether anything may go at all."""
        return self.window_ms is not None

    @property
    def newest(self) -> int:
        """How many of the newest points of a line are kept."""
        return max(self.last, self.minimum)

    def validate(self) -> Policy:
        """Self, or InvalidError that names the member."""
        if self.window_ms is not None:
            _check("window_ms", self.window_ms, 0, TIME_MAX)
        for name in (*KEEP_RULES, "keep_versions"):
            _check(name, getattr(self, name), 0, KEEP_MAX)
        _check("grace_ms", self.grace_ms, GRACE_MS_MIN, TIME_MAX)
        _check("minimum", self.minimum, 1, KEEP_MAX)
        return self

    @classmethod
    def of(cls, head: Head) -> Policy:
        """The policy of a namespace. Raises DamageError (`store_damaged`) if it is none."""
        try:
            return cls() if head.policy is None else cls.from_json(head.policy)
        except (Malformed, InvalidError) as error:
            raise damaged("head", f"policy: {error}") from error

    @classmethod
    def from_json(cls, value: Json) -> Policy:
        """Raises Malformed or InvalidError."""
        take = Members(dict(value), "policy")
        known = {name: found for name in _DEFAULTS if (found := take.maybe_number(name)) is not None}
        return cls(**known, extra=take.extra()).validate()

    def as_json(self) -> dict[str, Any]:
        """What the head keeps: what is not as it would be anyway."""
        members = {name: getattr(self, name) for name in _DEFAULTS}
        return {**self.extra, **{name: it for name, it in members.items() if it != _DEFAULTS[name]}}


_DEFAULTS: Mapping[str, int | None] = {
    "window_ms": None,
    **dict.fromkeys((*KEEP_RULES, "keep_versions"), 0),
    "grace_ms": GRACE_MS,
    "minimum": 1,
}


def policy_for(head: Head, window_ms: int | None = None) -> Policy:
    """The policy that a run follows. window_ms: what it was told, None: nothing.

    Raises InvalidError (`below_policy`) for a window that is less than the policy of the head says; one that
    says none keeps every point. Where the head has no policy, any window counts.
    """
    policy = Policy.of(head)
    if window_ms is None:
        return policy
    if head.policy is not None and (policy.window_ms is None or window_ms < policy.window_ms):
        said = "every point" if policy.window_ms is None else format_span(policy.window_ms)
        raise InvalidError(
            f"the policy of this namespace keeps {said}, more than this window: {format_span(window_ms)} "
            "(change the policy first: ourdb policy URL --window)",
            kind="below_policy",
            window_ms=window_ms,
            policy_window_ms=policy.window_ms,
        )
    return replace(policy, window_ms=window_ms).validate()


def _check(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        spans = f" ({format_span(least)} to {most // DAY_MS}d)" if name.endswith("_ms") else ""
        raise InvalidError(f"policy: {name} must be {least} to {most}{spans}: {value!r}", name=name)


def boundaries(policy: Policy, anchor_ms: int) -> list[int]:
    """The times (ms, ascending) at which keep rules keep the state: the last millisecond of each hour, day,
    ISO week, month and year (UTC) that they name and that was over at anchor_ms. What a record at that very
    millisecond wrote still counts."""
    found: set[int] = set()
    for count, ends in (
        (policy.hourly, _ends_every(HOUR_MS, 0, anchor_ms)),
        (policy.daily, _ends_every(DAY_MS, 0, anchor_ms)),
        (policy.weekly, _ends_every(7 * DAY_MS, _MONDAY_MS, anchor_ms)),
        (policy.monthly, _ends_by_month(1, anchor_ms)),
        (policy.yearly, _ends_by_month(12, anchor_ms)),
    ):
        found.update(end for _, end in zip(range(count), ends, strict=False))
    return sorted(found)


def _ends_every(span_ms: int, offset_ms: int, anchor_ms: int) -> Iterator[int]:
    """The ends of spans of equal length that were over, newest first, back to the epoch."""
    begin = (anchor_ms - offset_ms) // span_ms * span_ms + offset_ms
    return iter(range(begin - 1, -1, -span_ms))


def _ends_by_month(months: int, anchor_ms: int) -> Iterator[int]:
    """The same for so many months of the Gregorian calendar, of any year."""
    now = int(np.datetime64(anchor_ms, "ms").astype("datetime64[M]").astype(np.int64))
    for begin in range(now // months * months, 0, -months):
        yield int(np.datetime64(begin, "M").astype("datetime64[ms]").astype(np.int64)) - 1


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """The time that windows and keep rules are counted back from, in ms, and whether the clocks agree."""

    time_ms: int
    trusted: bool
    why: str = ""

    @classmethod
    def of(cls, head: Head, *, local_ms: int, store_ms: int) -> Anchor:
        """The earliest of the local clock, the store's (0: unknown) and the namespace's newest record, so
        that no clock that is ahead makes anything old. Clocks that differ by more than five minutes are not
        to be trusted: `why` says so, and nothing may be dropped unless somebody insists."""
        newest = max((generation.last_time for generation in head.generations.values()), default=0)
        time_ms = min(local_ms, newest, store_ms or local_ms)
        if not store_ms or abs(local_ms - store_ms) <= CLOCKS_APART_MS_MAX:
            return cls(time_ms=time_ms, trusted=True)
        why = (
            f"the clocks of this machine and of the store differ: {format_time(local_ms)} here, "
            f"{format_time(store_ms)} there"
        )
        return cls(time_ms=time_ms, trusted=False, why=why)
