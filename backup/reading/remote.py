"""Reading without restoring: opens the database of a store as it was at a point."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from backup.reading.database import RemoteDatabase
from backup.reading.index_cache import CACHE_BYTES_MAX, IndexCache
from backup.restoring.target import Wanted
from compactor.session import Session, open_session
from compactor.store import StoreOptions
from compactor.store.base import check_threads
from ourdb.errors import InvalidError
from ourdb.units import When


@dataclass(frozen=True, kw_only=True)
class RemoteOptions:
    """threads: that fetch and decompress, 1 to 64. cache_bytes: of indexes that are kept as files, about.
    store: how requests are made."""

    threads: int = 4
    cache_bytes: int = CACHE_BYTES_MAX
    store: StoreOptions = StoreOptions()  # noqa: RUF009

    def validate(self) -> RemoteOptions:
        """Self, or InvalidError that names the option."""
        check_threads(self.threads)
        if self.cache_bytes < 0:
            raise InvalidError(f"cache_bytes must not be negative: {self.cache_bytes}")
        return self


def open_remote(
    url: str,
    *,
    at: When | None = None,
    seq: int | None = None,
    before: When | None = None,
    nearest_before: bool = False,
    generation: str | None = None,
    meta: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    options: RemoteOptions | None = None,
) -> RemoteDatabase:
    """Opens the database of a store for reading as it was at a point, exactly as a restore to there would
    make it, without making it. The point stays while it is open, whatever is backed up meanwhile.

    at: the last point up to this time, inclusive; before: exclusive; seq: this point; at most one of them,
    none: the newest. nearest_before: what cannot be met exactly is answered by the nearest point before.
    generation: the line that ends in this one, needed where two lines are open. meta: path of the meta index,
    None: the user's own. cache: folder for indexes, None: `indexes` beside the meta index; where there is no
    such place, or it cannot be written, they are fetched anew.

    Opening is one GET of the head (answered 304 if it is known), and for a target that the head does not tell
    the index of one segment. Raises as `restore` does: UnreachableError (with nearest_before and
    nearest_after), NotFoundError (`no_namespace`, `no_generation`), FencedError (`two_lines`), DamageError,
    InvalidError, StorageError, RefusedError, TemporaryError. Close it after use.
    """
    wanted = Wanted.of(at=at, seq=seq, before=before, nearest_before=nearest_before)
    options = (options or RemoteOptions()).validate()
    with ExitStack() as stack:
        session = stack.enter_context(open_session(url, meta, options.store))
        folder = Path(cache) if cache is not None else _beside(session)
        files = IndexCache(folder, bytes_max=options.cache_bytes)
        database = RemoteDatabase(session, wanted, generation, files, threads=options.threads)
        database.on_close(stack.pop_all().close)
        return database


def _beside(session: Session) -> Path | None:
    meta = session.namespace.meta
    return meta.folder / "indexes" if meta and meta.folder else None
