"""What becomes of each object and unfinished upload of a namespace: kept, let go of, deleted, or not ours.

Pure. An object that no head names is first let go of (`gone`), and deleted when it was there for the grace
time, which is told by the store's clock alone (protocol rules 5 to 7).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from compactor.store import Stat, Upload
from compactor.view import View
from ourdb.names import HEAD_KEY, is_ours

State = Literal["live", "young", "let_go", "waiting", "deleted", "absent", "foreign"]


@dataclass(frozen=True, kw_only=True)
class ObjectVerdict:
    """What becomes of an object. bytes: None where the listing does not have it. after_ms: it is deleted (of
    `young`: let go of) by a run after this time of the store, None: that is not what it waits for."""

    key: str
    bytes: int | None
    state: State
    reason: str
    after_ms: int | None = None


@dataclass(frozen=True, kw_only=True)
class UploadVerdict:
    """What becomes of an upload that was begun and did not end."""

    key: str
    upload_id: str
    state: Literal["aborted", "young", "foreign"]
    after_ms: int


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """How long is waited. now_ms: the store's clock, 0: it tells none, and nothing is old. wait_ms: the grace
    time, and what the store's times may be off."""

    now_ms: int
    wait_ms: int

    def over(self, since_ms: int) -> bool:
        """Whether what was so since then waited long enough."""
        return self.wait_ms == 0 or (self.now_ms > 0 and self.now_ms - since_ms >= self.wait_ms)


def judge_objects(
    view: View, leaving: Mapping[str, str], listed: Mapping[str, Stat], waiting: Waiting
) -> list[ObjectVerdict]:
    """One verdict for each object that is listed, or that the head has let go of. leaving: keys that this
    run takes out of the head, with the reason."""
    live = {HEAD_KEY, *view.head.list_keys, *(entry.key for entry in view.segments)}
    since = let_go_since(view)
    found = [_judge(stat, live, leaving, since, waiting) for key, stat in listed.items()]
    absent = (key for key in since if key not in listed)
    return found + [
        ObjectVerdict(key=key, bytes=None, state="absent", reason="was deleted: leaves the head's `gone`")
        for key in absent
    ]


def let_go_since(view: View) -> dict[str, int]:
    """What the head has let go of, and since when (ms). An entry that does not say is as old as the head."""
    head, when = view.head, view.written_ms
    found: dict[str, int] = {}
    for ref in head.gone_lists:
        for key in view.stored[ref.key].keys:
            found[key] = max(found.get(key, 0), when if ref.since is None else ref.since)
    for gone in head.gone:
        found[gone.key] = max(found.get(gone.key, 0), when if gone.since is None else gone.since)
    return found


def judge_uploads(uploads: Iterable[Upload], waiting: Waiting, *, all_ours: bool) -> list[UploadVerdict]:
    """all_ours: whatever is listed was begun by a store of ours (local files)."""
    found = {}
    for upload in uploads:
        ours = all_ours or is_ours(upload.key)
        old = waiting.over(upload.initiated_ms)
        found[upload.key, upload.upload_id] = UploadVerdict(
            key=upload.key,
            upload_id=upload.upload_id,
            state="foreign" if not ours else "aborted" if old else "young",
            after_ms=upload.initiated_ms + waiting.wait_ms,
        )
    return list(found.values())


def _judge(
    stat: Stat, live: set[str], leaving: Mapping[str, str], since: Mapping[str, int], waiting: Waiting
) -> ObjectVerdict:
    key = stat.key
    state: State
    after: int | None = None
    if key in leaving:
        state, reason = "let_go", leaving[key]
    elif key in live:
        state, reason = "live", "the head names it"
    elif key in since:
        after = since[key] + waiting.wait_ms
        ripe = waiting.over(since[key])
        state = "deleted" if ripe else "waiting"
        reason = "was let go of, and the grace time is over" if ripe else "was let go of; the grace time runs"
    elif not is_ours(key):
        state, reason = "foreign", "not ours: left alone"
    else:
        after = stat.modified_ms + waiting.wait_ms
        old = waiting.over(stat.modified_ms)
        state = "let_go" if old else "young"
        reason = "no head names it" if old else "no head names it; perhaps its run goes on"
    return ObjectVerdict(key=key, bytes=stat.bytes, state=state, reason=reason, after_ms=after)
