"""What is asked of a compaction, and how it goes about it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from compactor import strategies
from compactor.publish import PATIENCE_SECONDS
from compactor.store import StoreOptions
from compactor.store.base import check_threads
from ourdb.errors import InvalidError

Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, what is being done


@dataclass(frozen=True, kw_only=True)
class CompactOptions:
    """threads: that fetch, decode and compress, 1 to 64. folder: for temporary files, None: the system's.
    wait_seconds: how long lost races are tried again, for each set."""

    threads: int = 4
    folder: Path | None = None
    wait_seconds: float = PATIENCE_SECONDS
    store: StoreOptions = field(default_factory=StoreOptions)

    def validate(self) -> CompactOptions:
        """Self, or InvalidError that names the option."""
        check_threads(self.threads)
        if self.wait_seconds < 0:
            raise InvalidError("wait_seconds must not be negative")
        return self


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked of a compaction, as in `compactor.compact`; `of` checks it."""

    strategy: strategies.Strategy
    window_ms: int | None = None
    dry_run: bool = False
    out: Path | None = None
    force: bool = False

    @property
    def publishes(self) -> bool:
        return not self.dry_run and self.out is None

    @classmethod
    def of(
        cls,
        *,
        strategy: str = "auto",
        threshold: int | None = None,
        window: int | None = None,
        dry_run: bool = False,
        out: str | os.PathLike[str] | None = None,
        force: bool = False,
    ) -> Wish:
        """Raises InvalidError."""
        if window is not None and (isinstance(window, bool) or window < 0):
            raise InvalidError(f"window must not be negative: {window} ms")
        if dry_run and out is not None:
            raise InvalidError("dry_run and out exclude each other")
        given = {} if threshold is None else {"threshold": threshold}
        return cls(
            strategy=strategies.strategy(strategy, **given),
            window_ms=window,
            dry_run=dry_run,
            out=None if out is None else Path(out),
            force=force,
        )
