"""The commit: how a new head comes to stand, and what happens to whoever dies on the way.

The truth is the head in the store and what it names; the meta index and the database directory only
remember. Everything but the head is written once, under a name that nobody else uses. A run

  1. reads the head (Namespace.read), or starts from the one of its last run (Namespace.remembered);
  2. uploads its segments under final names, which carry the revision that it had read (rule 4);
  3. computes the next head on it (follow): a value, nothing is sent;
  4. uploads the lists that this head names anew (here);
  5. puts the head with If-Match on the ETag of 1: this is the commit point. Nothing is reported before;
  6. remembers in the meta index that this head was acknowledged, and reports.

Died in 1 to 4: what was uploaded is garbage under names of its own, which nobody names by accident: it
is adopted if its acknowledgement was noted and rule 6 allows it, else prune finds it. Died in 5, or the
reply was lost: the put is in or not, or may come later. The next run reads the head. What it finds there
it puts once more before it reports, because what was only read may vanish again (rule 2); a put that
comes late fails on its ETag. Died in 6: the next run reads the head, sees a newer revision than it knows,
and goes on from there.

`publish` answers None when the head has to be read again: somebody else was first, or the reply was
lost. The caller then reads, looks whether its work is in the head, and if not computes all of it anew on
that head (never the same head with a new ETag: a pin may have appeared since). `Patience` bounds that.

Three commits differ:

- The first head has nothing to match. It is created only if a GET says that there is none, twice, the
  second time within a minute before the put; if nothing below the namespace was made by somebody who
  had read a head (rule 8: then the head was lost, exit 14); and if no namespace lies around or inside.
- A wedged head (rule 10): GET gives it, and If-Match on its ETag is refused again and again. After three
  refusals it is read once more and the very same bytes are put with If-None-Match: *, within a minute of
  that GET, once. A store that is not wedged refuses that. Then the caller reads and goes on.
- Without compare-and-swap (rule 9, --single-writer): under this machine's lock the head is read, must be
  the one that was followed, is replaced, and read back.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from compactor.entries import made_of
from compactor.follow import Change, Draft, Writer, follow
from compactor.namespace import Namespace, went_back
from compactor.store.base import NoAnswer, NoSuchKey, PreconditionFailed, Reply, Stat
from compactor.view import View, may_name
from ourdb.errors import DamageError, FencedError, InvalidError, TemporaryError
from ourdb.names import HEAD_KEY

PATIENCE_SECONDS = 120.0  # for which lost races are tried again, unless somebody says otherwise
FRESH_SECONDS = 60.0  # a put with If-None-Match: * on the head is sent within this time of its GET
REFUSALS = 3  # of one ETag that GET gives, and the head counts as wedged
_PUTS = 2  # of the same bytes on the same ETag, where the first was not answered

__all__ = ["Change", "Draft", "Patience", "Writer", "follow", "may_name", "publish"]


def publish(namespace: Namespace, draft: Draft) -> View | None:
    """Puts the head of the draft on the one that it follows. The new view, acknowledged, and kept in the
    meta index; or None: read the head again.

    Raises TemporaryError (the store is away: nothing was committed), DamageError (`store_lost_data`),
    InvalidError (`nested_namespace`), FencedError (`no_cas`).
    """
    namespace.ensure_trusted(draft.base, single_writer=draft.head.single_writer)
    if draft.base and not draft.anew and went_back(draft.base.head.known, namespace.known):
        return None  # a newer head was acknowledged since this one was read
    for key in draft.new:
        data = draft.stored[key].data
        namespace.store.put_stream(key, [data], size_hint=len(data))
    if namespace.single_writer:
        return _put_alone(namespace, draft)
    if draft.base is None:
        return _create(namespace, draft)
    return _replace(namespace, draft, draft.base)


class Patience:
    """Between a lost race and the next attempt: a pause that grows and is drawn at random, up to `seconds`
    in all, then TemporaryError. A lost race is always another's commit, so somebody gets on."""

    def __init__(
        self,
        seconds: float = PATIENCE_SECONDS,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._seconds = seconds
        self._sleep = sleep
        self._clock = clock
        self._jitter = jitter
        self._until: float | None = None
        self._pause = 0.05

    def wait(self) -> None:
        """Pauses. Raises TemporaryError (exit 75) when the time is over."""
        now = self._clock()
        self._until = self._until or now + self._seconds
        if now >= self._until:
            raise TemporaryError(
                f"others committed first for {self._seconds:.0f} s: nothing is lost, try again",
                kind="unavailable",
            )
        self._sleep(self._pause * self._jitter())
        self._pause = min(2 * self._pause, 5.0)


def _replace(namespace: Namespace, draft: Draft, base: View) -> View | None:
    for _ in range(_PUTS):
        try:
            stat = namespace.store.put_if_match(HEAD_KEY, draft.data, base.etag)
        except NoAnswer:
            continue  # at most one of the two can take effect: the ETag is gone then
        except PreconditionFailed:
            if namespace.count_refusal(base.etag) >= REFUSALS:
                _heal(namespace, base)
            return None
        return namespace.keep(_committed(draft, stat))
    return None


def _create(namespace: Namespace, draft: Draft) -> View | None:
    if not _may_create(namespace, draft):
        return None
    for _ in range(_PUTS):
        read_at = namespace.clock()
        if namespace.exists():
            return None
        if namespace.clock() - read_at > FRESH_SECONDS:
            continue  # this GET says nothing any more
        try:
            stat = namespace.store.put_if_absent(HEAD_KEY, draft.data)
        except (NoAnswer, PreconditionFailed):
            return None  # never again without another GET
        return namespace.keep(_committed(draft, stat))
    return None


def _may_create(namespace: Namespace, draft: Draft) -> bool:
    """Whether there never was a head; False: somebody has just made one. Raises DamageError if there was."""
    left = _find_traces(namespace)
    if left is not None and not draft.anew:
        if namespace.exists():
            return False
        raise DamageError(
            f"the store lost data: {namespace.store.url.display} has no head, and once had one, "
            f"because {left} is there (put the head back, or start anew with backup --new)",
            kind="store_lost_data",
            key=left,
        )
    if above := namespace.store.heads_above():
        raise _nested(namespace, f"it lies inside the namespace of {above}")
    return True


def _find_traces(namespace: Namespace) -> str | None:
    """An object whose name says that its writer had read a head: there was one. Refuses a namespace that has
    another one inside."""
    for page in namespace.store.list():
        for entry in page.entries:
            if entry.key != HEAD_KEY and entry.key.endswith(f"/{HEAD_KEY}"):
                raise _nested(namespace, f"another namespace lies inside it: {entry.key}")
            if made_of(entry.key):
                return entry.key
    return None


def _nested(namespace: Namespace, why: str) -> InvalidError:
    return InvalidError(
        f"namespaces cannot lie inside one another: {namespace.store.url.display}: {why} (use another URL)",
        kind="nested_namespace",
    )


def _heal(namespace: Namespace, base: View) -> None:
    """Rule 10. What is put is what was just read: bytes of an earlier run could be older than the head."""
    read_at = namespace.clock()
    reply = _get(namespace)
    if reply is None or reply.etag != base.etag or namespace.clock() - read_at > FRESH_SECONDS:
        return
    try:
        namespace.store.put_if_absent(HEAD_KEY, reply.data)
    except (NoAnswer, PreconditionFailed):
        return  # somebody else has healed it, or it is read again
    namespace.learn(base.head.known)
    namespace.note(
        "the store gave the head and refused to replace it, as if it were not there; it was put again as it "
        f"was: {namespace.store.url.display}"
    )


def _put_alone(namespace: Namespace, draft: Draft) -> View | None:
    """Under the lock of this machine, which takes the place of compare-and-swap (rule 9)."""
    with namespace.host.locked(namespace.identity):
        if draft.base is None and not _may_create(namespace, draft):
            return None
        now = _get(namespace)
        if (now and now.data) != (draft.base and draft.base.data):
            return None
        try:
            namespace.store.put_stream(HEAD_KEY, [draft.data], size_hint=len(draft.data))
        except NoAnswer:
            return None
        back = _get(namespace)
    if back is None or back.data != draft.data:
        raise FencedError(
            "what was written is not what is read back, and the store has no compare-and-swap: another "
            f"machine writes there, or the store is not consistent: {namespace.store.url.display}",
            kind="other_host",
        )
    return namespace.keep(_view(draft, back.etag, back.modified_ms, back.date_ms))


def _get(namespace: Namespace) -> Reply | None:
    try:
        return namespace.store.get(HEAD_KEY)
    except NoSuchKey:
        return None


def _committed(draft: Draft, stat: Stat) -> View:
    """Written when the store answered, which is later than it was: a delete waits the longer for it."""
    when = stat.date_ms or stat.modified_ms
    return _view(draft, stat.etag, when, when)


def _view(draft: Draft, etag: str, written_ms: int, read_ms: int) -> View:
    return View(
        head=draft.head,
        etag=etag,
        written_ms=written_ms,
        read_ms=read_ms,
        acknowledged=True,
        data=draft.data,
        stored=draft.stored,
    )
