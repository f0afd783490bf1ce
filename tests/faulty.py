"""A store that fails as real ones do, around any other: for tests of whoever must survive that.

Requests may be lost before or after their effect, or in the middle of an upload, which then stays
unfinished; they may take effect late or twice. The head may be wedged, or old and new in turn; conditions
may be ignored. `interleave` lets somebody else act just before a request.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from compactor.store.base import (
    Failures,
    ListPage,
    NoAnswer,
    NoSuchKey,
    NotSupported,
    Piece,
    PreconditionFailed,
    Reply,
    Stat,
    Store,
    Tail,
    Upload,
)
from compactor.store.memory import MemoryStore
from compactor.store.requests import RequestCounter
from compactor.url import StoreUrl

How = Literal["before", "middle", "after", "late", "twice"]
UPLOADS = ("put_stream", "assemble")
WRITES = ("put_if_absent", "put_if_match", "put_stream", "assemble", "delete_many")


@dataclass
class _Plan:
    method: str
    key: str
    act: Callable[[Callable[[], Any]], Any]
    left: int


@dataclass
class _Upload:
    """A request that sends. begin: what it does before it is broken off in the middle."""

    send: Callable[[], Any]
    begin: Callable[[], Any]

    def __call__(self) -> Any:
        return self.send()


def begin(send: Callable[[], Any]) -> None:
    """What is done of a request that is broken off in the middle: an upload is begun, nothing of others."""
    if isinstance(send, _Upload):
        send.begin()


class FaultyStore:
    """log: every request as (method, key). landing: writes that are on their way (`late`)."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.log: list[tuple[str, str]] = []
        self.landing: list[Callable[[], Any]] = []
        self.ignores_conditions = False
        self.lacks_conditions = False
        self.wedged = False
        self.torn: list[Reply] = []
        self._plans: list[_Plan] = []
        self._random = random.Random(7)

    # -- what is to go wrong

    def fail(self, method: str, key: str = "", how: How = "before", *, times: int = 1) -> None:
        """The next `times` requests of this method on keys that begin so are not answered."""
        assert how != "middle" or method in UPLOADS

        def act(send: Callable[[], Any]) -> Any:
            if how == "middle":
                begin(send)
            if how in ("after", "twice"):
                send()
            if how in ("late", "twice"):
                self.landing.append(send)
            raise NoAnswer(f"no answer to {method} {key}")

        self._plans.append(_Plan(method, key, act, times))

    def interleave(self, method: str, key: str, action: Callable[[], Any], *, times: int = 1) -> None:
        """The action is carried out just before the next such request, which then goes on."""

        def act(send: Callable[[], Any]) -> Any:
            action()
            return send()

        self._plans.append(_Plan(method, key, act, times))

    def land(self) -> None:
        """What is late takes effect, or is refused, unseen by whoever sent it."""
        while self.landing:
            try:
                self.landing.pop(0)()
            except (PreconditionFailed, NoSuchKey):  # another was first, or what it copies from is gone
                continue

    def tear(self, *replies: Reply) -> None:
        """Each request meets any of these heads, until a put is taken. None: all is well again."""
        self.torn = list(replies)

    def sent(self, method: str, key: str = "") -> int:
        """How many requests of this method were sent for keys that begin so."""
        return sum(name == method and at.startswith(key) for name, at in self.log)

    # -- the store

    @property
    def url(self) -> StoreUrl:
        return self.inner.url

    @property
    def requests(self) -> RequestCounter:
        return self.inner.requests

    def get(self, key: str) -> Reply:
        return self._send("get", key, lambda: self._get(key))

    def get_if_changed(self, key: str, etag: str) -> Reply | None:
        def send() -> Reply | None:
            if key == "head" and self.torn:
                reply = self._get(key)
                return None if reply.etag == etag else reply
            return self.inner.get_if_changed(key, etag)

        return self._send("get_if_changed", key, send)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self._send("get_range", key, lambda: self.inner.get_range(key, start, length))

    def get_tail(self, key: str, length: int) -> Tail:
        return self._send("get_tail", key, lambda: self.inner.get_tail(key, length))

    def put_if_absent(self, key: str, data: bytes) -> Stat:
        def send() -> Stat:
            if self.lacks_conditions:
                raise NotSupported("501")
            if self.ignores_conditions or (self.wedged and key == "head"):
                self.wedged = False
                return self.inner.put_stream(key, [data])
            return self.inner.put_if_absent(key, data)

        return self._send("put_if_absent", key, send)

    def put_if_match(self, key: str, data: bytes, etag: str) -> Stat:
        def send() -> Stat:
            if self.lacks_conditions:
                raise NotSupported("501")
            if self.ignores_conditions:
                return self.inner.put_stream(key, [data])
            if self.wedged and key == "head":
                raise PreconditionFailed("wedged", status=404, key=key)
            if self.torn and key == "head" and etag != self._random.choice(self.torn).etag:
                raise PreconditionFailed("torn", status=412, key=key)
            if self.torn and key == "head":
                self.torn = []
                return self.inner.put_stream(key, [data])
            return self.inner.put_if_match(key, data, etag)

        return self._send("put_if_match", key, send)

    def put_stream(
        self,
        key: str,
        chunks: Iterable[bytes],
        *,
        size_hint: int | None = None,
        on_begin: Callable[[str], None] | None = None,
    ) -> Stat:
        data = b"".join(chunks)
        return self._send(
            "put_stream",
            key,
            _Upload(
                lambda: self.inner.put_stream(key, [data], size_hint=size_hint, on_begin=on_begin),
                lambda: self._begin(key, on_begin),
            ),
        )

    def assemble(
        self,
        key: str,
        pieces: Iterable[Piece],
        *,
        size_hint: int,
        on_begin: Callable[[str], None] | None = None,
    ) -> Stat:
        given = list(pieces)
        return self._send(
            "assemble",
            key,
            _Upload(
                lambda: self.inner.assemble(key, given, size_hint=size_hint, on_begin=on_begin),
                lambda: self._begin(key, on_begin),
            ),
        )

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ListPage]:
        return self._send("list", prefix, lambda: self.inner.list(prefix, start_after))

    def head(self, key: str) -> Stat | None:
        return self._send("head", key, lambda: self.inner.head(key))

    def delete_many(self, keys: Iterable[str]) -> Failures:
        names = list(keys)
        return self._send("delete_many", names[0] if names else "", lambda: self.inner.delete_many(names))

    def abort_upload(self, key: str, upload_id: str) -> None:
        self._send("abort_upload", key, lambda: self.inner.abort_upload(key, upload_id))

    def list_uploads(self) -> Iterator[Upload]:
        return self._send("list_uploads", "", self.inner.list_uploads)

    def heads_above(self) -> str | None:
        return self._send("heads_above", "", self.inner.heads_above)

    def close(self) -> None:
        self.inner.close()

    def _send(self, method: str, key: str, send: Callable[[], Any]) -> Any:
        self.log.append((method, key))
        for plan in self._plans:
            if plan.left and plan.method == method and key.startswith(plan.key):
                plan.left -= 1
                return plan.act(send)
        return send()

    def _begin(self, key: str, on_begin: Callable[[str], None] | None) -> None:
        """Begins an upload that nobody goes on with."""
        inner = self.inner
        while isinstance(inner, FaultyStore):
            inner = inner.inner
        assert isinstance(inner, MemoryStore), "no other store can be left with an unfinished upload"
        upload_id = inner.begin_upload(key)
        if on_begin is not None:
            on_begin(upload_id)

    def _get(self, key: str) -> Reply:
        if key == "head" and self.torn:
            return self._random.choice(self.torn)
        return self.inner.get(key)
