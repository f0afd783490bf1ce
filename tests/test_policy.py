"""The policy of a head: its JSON, the boundaries of keep rules, the anchor that they are counted from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.body import Malformed
from compactor.head import Generation, Head
from compactor.policy import DAY_MS, HOUR_MS, KEEP_RULES, Anchor, Policy, boundaries, policy_for
from ourdb.errors import DamageError, InvalidError
from ourdb.units import parse_time

NOW = parse_time("2026-11-23T02:41:00.500Z")
COUNTS = st.integers(0, 40)


def head(*times: int, policy: Mapping[str, Any] | None = None) -> Head:
    generations = {
        f"{nr:016x}": Generation(
            id=f"{nr:016x}", parent=None, last_seq=1, last_time=time, chain=1, highest_id=1, as_of=time
        )
        for nr, time in enumerate(times)
    }
    return Head(
        uuid="0" * 32,
        namespace="name",
        revision=1,
        run="0" * 16,
        host="h",
        config={},
        generations=generations,
        policy=policy,
    )


def texts(found: list[int]) -> list[str]:
    return [f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] for ms in found]


def test_head_without_policy_keeps_everything() -> None:
    policy = Policy.of(head(NOW))
    assert policy == Policy()
    assert not policy.drops
    assert policy.as_json() == {}


@given(
    st.none() | st.integers(0, 10**12),
    st.tuples(COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS),
    st.integers(HOUR_MS, 10**12),
    st.integers(1, 50),
)
def test_policy_comes_back_from_its_json_with_what_is_not_known(
    window: int | None, counts: tuple[int, ...], grace: int, minimum: int
) -> None:
    names = (*KEEP_RULES, "keep_versions")
    rules: dict[str, Any] = dict(zip(names, counts, strict=True))
    policy = Policy(window_ms=window, grace_ms=grace, minimum=minimum, **rules)
    assert Policy.from_json(policy.as_json()) == policy
    known = Policy.from_json({**policy.as_json(), "of_tomorrow": {"a": [1]}})
    assert replace(known, extra={}) == policy
    assert known.as_json() == {**policy.as_json(), "of_tomorrow": {"a": [1]}}
    assert Policy.of(head(NOW, policy=known.as_json())) == known


def test_window_of_zero_is_a_policy_of_its_own() -> None:
    policy = Policy(window_ms=0).validate()
    assert policy.drops
    assert Policy.from_json(policy.as_json()) == policy


@pytest.mark.parametrize(
    "members",
    [
        {"window_ms": -1},
        {"daily": -1},
        {"daily": 10**9},
        {"grace_ms": HOUR_MS - 1},
        {"minimum": 0},
        {"keep_versions": True},
        {"last": 1.5},
    ],
)
def test_member_out_of_range_is_named(members: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match=next(iter(members))):
        Policy(**members).validate()


def test_policy_that_is_none_is_damage() -> None:
    broken: dict[str, Any]
    for broken in ({"daily": "x"}, {"grace_ms": 5}):
        with pytest.raises(DamageError, match="policy"):
            Policy.of(head(NOW, policy=broken))
    with pytest.raises(Malformed):
        Policy.from_json({"daily": [1]})


def test_boundaries_are_the_ends_of_what_is_over() -> None:
    policy = Policy(hourly=2, daily=2, weekly=2, monthly=2, yearly=2)
    assert texts(boundaries(policy, NOW)) == [
        "2024-12-31 23:59:59.999",
        "2025-12-31 23:59:59.999",
        "2026-09-30 23:59:59.999",
        "2026-10-31 23:59:59.999",
        "2026-11-15 23:59:59.999",  # a Sunday
        "2026-11-21 23:59:59.999",
        "2026-11-22 23:59:59.999",  # a Sunday too: it counts for day and week
        "2026-11-23 00:59:59.999",
        "2026-11-23 01:59:59.999",
    ]
    assert boundaries(Policy(last=5, window_ms=0), NOW) == []


def test_span_is_over_with_the_first_millisecond_of_the_next() -> None:
    midnight = parse_time("2026-11-23T00:00:00Z")
    assert boundaries(Policy(daily=1), midnight) == [midnight - 1]
    assert boundaries(Policy(daily=1), midnight - 1) == [midnight - 1 - DAY_MS]


def test_boundaries_end_at_the_epoch_and_do_not_fail_beyond_the_calendar() -> None:
    assert boundaries(Policy(hourly=9, daily=9, weekly=9, monthly=9, yearly=9), 0) == []
    assert boundaries(Policy(daily=9), 2 * DAY_MS) == [DAY_MS - 1, 2 * DAY_MS - 1]
    assert len(boundaries(Policy(monthly=3, yearly=3), (1 << 48) - 1)) in (5, 6)


@given(st.integers(0, 4_000_000_000_000), st.integers(1, 30))
def test_months_and_years_are_those_of_the_calendar(anchor: int, count: int) -> None:
    now = datetime.fromtimestamp(anchor // 1000, UTC)
    months = sorted(
        datetime(index // 12, index % 12 + 1, 1, tzinfo=UTC)
        for index in range(now.year * 12 + now.month - count, now.year * 12 + now.month)
        if index > 1970 * 12
    )
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    expected = [(month - epoch) // timedelta(milliseconds=1) - 1 for month in months]
    assert boundaries(Policy(monthly=count), anchor) == expected
    years = range(max(1971, now.year - count + 1), now.year + 1)
    ends = [(datetime(year, 1, 1, tzinfo=UTC) - epoch) // timedelta(milliseconds=1) - 1 for year in years]
    assert boundaries(Policy(yearly=count), anchor) == ends


def test_anchor_is_the_earliest_of_the_clocks_and_the_newest_record() -> None:
    both = head(NOW - DAY_MS, NOW)
    assert Anchor.of(both, local_ms=NOW + 5, store_ms=NOW + 9) == Anchor(time_ms=NOW, trusted=True)
    assert Anchor.of(both, local_ms=NOW - 5, store_ms=NOW + 9).time_ms == NOW - 5
    assert Anchor.of(both, local_ms=NOW + 5, store_ms=NOW - 9).time_ms == NOW - 9
    assert Anchor.of(both, local_ms=NOW - 5, store_ms=0) == Anchor(time_ms=NOW - 5, trusted=True)


def test_clocks_more_than_five_minutes_apart_are_not_trusted() -> None:
    five = 5 * 60_000
    assert Anchor.of(head(NOW), local_ms=NOW + five, store_ms=NOW).trusted
    ahead = Anchor.of(head(NOW), local_ms=NOW + five + 1, store_ms=NOW)
    assert not ahead.trusted
    assert "2026-11-23T02:41:00.500Z there" in ahead.why
    assert not Anchor.of(head(NOW), local_ms=NOW, store_ms=NOW + 365 * DAY_MS).trusted


def test_run_may_ask_for_more_than_the_policy_and_not_for_less() -> None:
    week = head(NOW, policy={"window_ms": 7 * DAY_MS, "daily": 3})
    assert policy_for(week) == Policy(window_ms=7 * DAY_MS, daily=3)
    assert policy_for(week, 8 * DAY_MS) == Policy(window_ms=8 * DAY_MS, daily=3)
    for less in (0, 7 * DAY_MS - 1):
        with pytest.raises(InvalidError, match="change the policy first") as caught:
            policy_for(week, less)
        assert caught.value.kind == "below_policy"
    assert policy_for(head(NOW), 0) == Policy(window_ms=0)


def test_policy_without_window_keeps_all_whatever_a_run_is_told() -> None:
    with pytest.raises(InvalidError, match="every point"):
        policy_for(head(NOW, policy={}), 365 * DAY_MS)
