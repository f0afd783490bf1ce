"""A namespace in a store, as one process knows it: reads the head, sees a store that lost data.

Rule 7 (a list that is missing), rule 8 (going back is seen) and the asking part of rule 9 are here;
publish.py has the commit. One Namespace serves one run at a time; its store may be used by threads.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from compactor.follow import check_database
from compactor.head import NOTHING_KNOWN, Known, decode_head
from compactor.host import Host
from compactor.lists import StoredList
from compactor.meta.index import MetaIndex
from compactor.store.base import NoSuchKey, Reply, Store
from compactor.store.probe import probe
from compactor.view import View
from ourdb.errors import DamageError, FencedError, NotFoundError, TemporaryError
from ourdb.names import HEAD_KEY

READS_MAX = 20  # heads read in a row, each of which named a list that was gone


def boottime() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Namespace:
    """meta: None, or one that cannot be used, costs requests only. host: this machine. clock: seconds that
    go on while the machine sleeps.

    single_writer: after `ensure_trusted`, whether
    commits rest on a local lock instead of compare-and-swap.
    """

    def __init__(
        self,
        store: Store,
        meta: MetaIndex | None = None,
        *,
        host: Host | None = None,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self.store = store
        self.meta = meta
        self.host = host or Host(meta.folder if meta else None)
        self.clock = clock
        self._notes: list[str] = []
        self.single_writer: bool | None = None
        self._known = NOTHING_KNOWN
        self._view: View | None = None
        self._lists: Mapping[str, StoredList] = {}
        self._refusals: Counter[str] = Counter()

    @property
    def name(self) -> str:
        """As in the URL, decoded."""
        return self.store.url.namespace

    @property
    def identity(self) -> str:
        """The same for every spelling of the URL."""
        return self.store.url.identity

    @property
    def notes(self) -> list[str]:
        """What people should be told at the end of the run."""
        of_meta = [self.meta.note] if self.meta and self.meta.note else []
        return [*of_meta, *self._notes]

    def note(self, text: str) -> None:
        """One more of the notes."""
        self._notes.append(text)

    @property
    def known(self) -> Known:
        """The newest head that is known here to be acknowledged."""
        return max(self._known, self.meta.known(self.identity) if self.meta else NOTHING_KNOWN)

    def remembered(self) -> View | None:
        """The head of the last run, without a request: acknowledged or only read, and no newer one is known
        since. A run may start from it; nothing may be refused, called idle or deleted on its word."""
        view = self._view or (self.meta.recall(self.identity, self.name) if self.meta else None)
        if view is None or went_back(view.head.known, self.known):
            return None
        self._view = view
        return self._adopt(view)

    def read(
        self,
        *,
        required: bool = True,
        known: Known = NOTHING_KNOWN,
        uuid: str | None = None,
        accept_loss: bool = False,
    ) -> View | None:
        """The head as the store has it now, with its lists: one GET, and one for each list not seen before.

        known: what the database directory knows of this store. uuid: of the database that it has to belong
        to. accept_loss: `backup --new` takes what it finds. None only if there is no head, none was known,
        and it is not `required`.

        Raises NotFoundError (`no_namespace`), DamageError (`store_damaged`; `store_lost_data`: the head is
        missing or older than one that was acknowledged), FencedError (`other_database`).
        """
        before = self.known, known  # before the head is asked for: an overlapping run may commit meanwhile
        view = self._fetch()
        if not accept_loss:
            for one in before:
                self._check_lost(view, one)
        if view is None:
            self._view = None
            if required:
                raise NotFoundError(f"no such namespace: {self.store.url.display}", kind="no_namespace")
            return None
        if uuid is not None:
            check_database(view.head, uuid)
        self.learn(view.head.kept)
        acknowledged = view.acknowledged or view.head.known in (*before, self.known)
        return self.keep(replace(view, acknowledged=acknowledged))

    def exists(self) -> bool:
        """Whether a GET finds a head."""
        try:
            self.store.get(HEAD_KEY)
        except NoSuchKey:
            return False
        return True

    def ensure_trusted(self, view: View | None = None, *, single_writer: bool = False) -> None:
        """Finds out, once for each namespace, whether the store's compare-and-swap holds (six requests; the
        result is kept in the meta index). Sets `single_writer`.

        single_writer: the operator accepts a store without it. A head that says so already decides.
        Raises FencedError (`no_cas`) if it does not hold and nobody accepted that.
        """
        if self.single_writer is not None and (self.single_writer is False or single_writer):
            return
        if view is not None and view.head.single_writer:
            self.single_writer = True
            return
        result = self.meta.probe_result(self.identity) if self.meta else None
        if result is None or not (result[0] or single_writer):
            found = probe(self.store)
            result = found.cas, found.why
            if self.meta:
                self.meta.remember_probe(self.identity, self.store.url.display, *result)
        if not result[0] and not single_writer:
            raise FencedError(
                f"the store's compare-and-swap does not hold: {result[1]}: {self.store.url.display} "
                "(use another store, or if only one machine ever writes there, backup --single-writer)",
                kind="no_cas",
                reason=result[1],
            )
        self.single_writer = not result[0]

    def learn(self, known: Known) -> None:
        """Remembers that this head was acknowledged."""
        if known > self.known:
            self._known = known
            if self.meta:
                self.meta.learn(self.identity, self.store.url.display, known)

    def keep(self, view: View) -> View:
        """Remembers this view for the next run, and returns it."""
        view = self._adopt(view)
        if view.acknowledged:
            self._known = max(self._known, view.head.known)
        if self.meta and not _same(view, self._view):
            self.meta.remember(self.identity, self.store.url.display, view)
        self._view = view
        return view

    def count_refusal(self, etag: str) -> int:
        """How often a put on this ETag was refused; a head that changes starts anew."""
        self._refusals = Counter({etag: self._refusals[etag] + 1})
        return self._refusals[etag]

    def _adopt(self, view: View) -> View:
        self._lists = {**view.stored}
        return view

    def _check_lost(self, view: View | None, before: Known) -> None:
        now = view.head.known if view else NOTHING_KNOWN
        if not went_back(now, before):
            return
        found = f"revision {now.revision} of run {now.run}" if view else "no head"
        raise DamageError(
            f"the store lost data: {self.store.url.display} has {found}, and revision {before.revision} "
            f"of run {before.run} was acknowledged (put back what was lost, or start anew with backup --new)",
            kind="store_lost_data",
            key=HEAD_KEY,
            revision=now.revision,
            known_revision=before.revision,
        )

    def _fetch(self) -> View | None:
        """The head and every list that it names. A list that is gone was let go of since: the head is read
        again; if that one names it still, it is damage (rule 7)."""
        missing = None
        for _ in range(READS_MAX):
            view = self._fetch_head(conditional=missing is None)
            if view is None:
                return None
            stored, gone = self._fetch_lists(view)
            if gone is None:
                return replace(view, stored=stored)
            if gone == missing:
                raise DamageError(
                    f"the head names a list that is missing: {self.store.url.display} {gone}",
                    kind="store_damaged",
                    key=gone,
                )
            missing = gone
        raise TemporaryError(f"the head changes faster than it can be read: {self.store.url.display}")

    def _fetch_head(self, *, conditional: bool) -> View | None:
        cached = self.remembered() if conditional else None
        try:
            if cached:
                reply = self.store.get_if_changed(HEAD_KEY, cached.etag)
                return cached if reply is None else self._view_of(reply)
            return self._view_of(self.store.get(HEAD_KEY))
        except NoSuchKey:
            return None

    def _view_of(self, reply: Reply) -> View:
        where = f"{self.store.url.display} {HEAD_KEY}"
        return View(
            head=decode_head(reply.data, self.name, where=where),
            etag=reply.etag,
            written_ms=reply.modified_ms,
            read_ms=reply.date_ms,
            acknowledged=False,
            data=reply.data,
            stored={},
        )

    def _fetch_lists(self, view: View) -> tuple[Mapping[str, StoredList], str | None]:
        """The lists by key; and the first that is not in the store any more, if any."""
        found: dict[str, StoredList] = {}
        for key in view.head.list_keys:
            stored = view.stored.get(key) or self._lists.get(key)
            if stored is None and self.meta:
                stored = self.meta.stored_list(self.identity, view.head, key)
            if stored is None:
                try:
                    stored = StoredList(key, self.store.get(key).data, view.head.uuid, self.name)
                except NoSuchKey:
                    return found, key
            found[key] = stored
        return found, None


def went_back(now: Known, before: Known) -> bool:
    """Whether a store that has this head lost the one that was known before: an older revision, or the same
    one of another run."""
    return now.revision < before.revision or (now.revision == before.revision and now.run != before.run)


def _same(view: View, other: View | None) -> bool:
    return other is not None and (view.etag, view.acknowledged) == (other.etag, other.acknowledged)
