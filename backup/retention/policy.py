"""What a namespace keeps, shown and set: the policy in its head, and its pins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict, Unpack

from backup.commit import commit
from backup.retention.pins import pin_json
from compactor.head import Pin
from compactor.policy import KEEP_RULES, Policy
from compactor.publish import Change, Patience
from compactor.session import Session, open_session
from compactor.store import StoreOptions
from compactor.view import View


class PolicyChanges(TypedDict, total=False):
    """What is to be different, as in Policy. window_ms: None keeps everything."""

    window_ms: int | None
    hourly: int
    daily: int
    weekly: int
    monthly: int
    yearly: int
    last: int
    keep_versions: int
    grace_ms: int
    minimum: int


@dataclass(frozen=True, kw_only=True)
class PolicyReport:
    """policy: that counts now (of a dry run: that would count). before: what counted before, None: nothing
    was to be changed."""

    url: str
    policy: Policy
    before: Policy | None
    pins: tuple[Pin, ...]
    dry_run: bool
    requests: Mapping[str, int]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "policy": policy_json(self.policy),
            "before": self.before and policy_json(self.before),
            "pins": [pin_json(pin) for pin in self.pins],
            "dry_run": self.dry_run,
            "requests": dict(self.requests),
            "notes": list(self.notes),
        }


def policy_json(policy: Policy) -> dict[str, Any]:
    """All members of a policy, also those that are as they would be anyway. Spans in ms."""
    return {
        "window_ms": policy.window_ms,
        "keep": {rule: getattr(policy, rule) for rule in KEEP_RULES},
        "keep_versions": policy.keep_versions,
        "grace_ms": policy.grace_ms,
        "minimum": policy.minimum,
    }


def policy(
    url: str, *, meta: str | os.PathLike[str] | None = None, options: StoreOptions | None = None
) -> PolicyReport:
    """What the namespace keeps: one request. Raises NotFoundError (`no_namespace`), DamageError,
    RefusedError, TemporaryError."""
    with open_session(url, meta, options) as session:
        return policy_session(session)


def policy_session(session: Session) -> PolicyReport:
    """As `policy`."""
    view = session.read()
    return _report(session, view, Policy.of(view.head), None, dry_run=False)


def set_policy(
    url: str,
    *,
    dry_run: bool = False,
    meta: str | os.PathLike[str] | None = None,
    options: StoreOptions | None = None,
    **changes: Unpack[PolicyChanges],
) -> PolicyReport:
    """Changes what the namespace keeps; what is not named stays. Nothing is dropped by this: compaction and
    prune look at it. When it returns, the head that says so is known to be kept.

    Raises InvalidError that names the member, NotFoundError (`no_namespace`), FencedError (`no_cas`,
    `other_host`), DamageError, RefusedError, TemporaryError.
    """
    with open_session(url, meta, options) as session:
        return set_policy_session(session, dry_run=dry_run, **changes)


def set_policy_session(
    session: Session,
    *,
    dry_run: bool = False,
    patience: Patience | None = None,
    **changes: Unpack[PolicyChanges],
) -> PolicyReport:
    """As `set_policy`."""
    view = session.read()
    before = Policy.of(view.head)
    wanted = replace(before, **changes).validate()

    def change(at: View) -> Change | None:
        now = replace(Policy.of(at.head), **changes).validate()
        if at.acknowledged and at.head.policy is not None and now == Policy.of(at.head):
            return None
        return Change(policy=now.as_json())

    if not dry_run:
        view = commit(session, view, change, patience)
        wanted = Policy.of(view.head)
    return _report(session, view, wanted, before, dry_run=dry_run)


def _report(
    session: Session, view: View, now: Policy, before: Policy | None, *, dry_run: bool
) -> PolicyReport:
    return PolicyReport(
        url=session.url,
        policy=now,
        before=before,
        pins=tuple(sorted(view.head.pins, key=lambda pin: (pin.time, pin.name))),
        dry_run=dry_run,
        requests=session.store.requests.counts(),
        notes=session.notes,
    )
