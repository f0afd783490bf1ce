"""Whether a store's compare-and-swap can be trusted: tried out before the first commit (protocol rule 9)."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from compactor.store.base import NotSupported, PreconditionFailed, Store
from ourdb.names import probe_key


@dataclass(frozen=True)
class ProbeResult:
    """cas: each condition was honoured. why: the first one that was not, empty if none."""

    cas: bool
    why: str


def probe(store: Store) -> ProbeResult:
    """Five conditional puts of two keys of its own, `probe-{random}`, and their deletion; what fails is tried
    once more.

    Creates twice, replaces with the ETag that is current, with one that is not any more, and with one
    on a key that is not there. What a store fails to refuse is a commit that it would lose. Raises what
    a put may raise (NoAnswer: nothing is known, probe again).
    """
    found = _try_out(store)
    # Whoever slept in the middle for longer than the grace time may have lost its key to a prune.
    return found if found.cas else _try_out(store)


def _try_out(store: Store) -> ProbeResult:
    key, missing = (probe_key(secrets.randbits(64)) for _ in range(2))
    try:
        return ProbeResult(*_verdict(store, key, missing))
    finally:
        store.delete_many([key, missing])


def _verdict(store: Store, key: str, missing: str) -> tuple[bool, str]:
    try:
        old = store.put_if_absent(key, secrets.token_bytes(16)).etag
        if not _refuses_create(store, key):
            return False, "If-None-Match: * does not keep it from overwriting an object"
        try:
            store.put_if_match(key, secrets.token_bytes(16), old)
        except PreconditionFailed:
            return False, "If-Match with the current ETag is refused"
        if not _refuses_match(store, key, old):
            return False, "If-Match with an old ETag does not keep it from overwriting an object"
        if not _refuses_match(store, missing, old):
            return False, "If-Match on a missing key does not keep it from creating an object"
    except NotSupported as error:
        return False, f"it does not know conditional puts: {error}"
    return True, ""


def _refuses_create(store: Store, key: str) -> bool:
    try:
        store.put_if_absent(key, secrets.token_bytes(16))
    except PreconditionFailed:
        return True
    return False


def _refuses_match(store: Store, key: str, etag: str) -> bool:
    try:
        store.put_if_match(key, secrets.token_bytes(16), etag)
    except PreconditionFailed:
        return True
    return False
