"""Which segments a compaction merges: strategies, each with one method `partition` (docs/decisions)."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from compactor.strategies.auto import Auto
from compactor.strategies.plain import All, Levels, Log
from compactor.strategies.units import Segment, Strategy
from ourdb.errors import InvalidError

__all__ = ["STRATEGIES", "All", "Auto", "Levels", "Log", "Segment", "Strategy", "strategy"]

STRATEGIES: dict[str, type[Strategy]] = {kind.name: kind for kind in (Auto, Levels, Log, All)}


def strategy(name: str, **options: Any) -> Strategy:
    """The strategy of that name.

    options: `threshold` (auto, levels: segments, at least 2), `segment_bytes_max` (auto: bytes); what is not
    given has its default. InvalidError for an unknown name, an option that this strategy does not have, or a
    value out of range.
    """
    kind = STRATEGIES.get(name)
    if kind is None:
        raise InvalidError(f"unknown strategy: {name!r} (there are {', '.join(STRATEGIES)})")
    known = [field.name for field in fields(kind)]
    for option in options:
        if option not in known:
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise InvalidError(f"strategy {name} does not have this option: {option!r} ({there})")
    return kind(**options)
