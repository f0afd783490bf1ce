"""ourdb policy, pin, unpin: what a store keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backup.cli.command import (
    at_most_one,
    at_option,
    command,
    generation_option,
    meta_option,
    parse_span,
    seq_option,
    url_argument,
)
from backup.cli.output import note, print_json, print_table, print_text

if TYPE_CHECKING:
    from backup.retention.policy import PolicyReport

_RULES = ("hourly", "daily", "weekly", "monthly", "yearly", "last")
_FOREVER = "none"
_Function = Callable[..., Any]


def _parse_window(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    return value if value == _FOREVER else parse_span(ctx, param, value)


def _count_option(name: str, what: str, least: int = 0) -> Callable[[_Function], _Function]:
    return click.option(f"--{name}", type=click.IntRange(min=least), metavar="N", help=what)


@command(
    "policy",
    example="""
    ourdb policy file:///srv/backup/notes --window 30d --keep-daily 90 --keep-monthly 24
    ourdb policy file:///srv/backup/notes
    """,
)
@url_argument
@click.option(
    "--window",
    callback=_parse_window,
    metavar="SPAN",
    help="Keep every point so long (30d); 'none': for ever.",
)
@_count_option("keep-hourly", "Keep the state at the end of the last N hours (UTC).")
@_count_option("keep-daily", "The same for days.")
@_count_option("keep-weekly", "The same for ISO weeks.")
@_count_option("keep-monthly", "The same for months.")
@_count_option("keep-yearly", "The same for years.")
@_count_option("keep-last", "Keep the newest N points.")
@_count_option("keep-versions", "Keep N versions of each id besides.")
@click.option(
    "--grace", callback=parse_span, metavar="SPAN", help="How long what was let go of is kept; at least 1h."
)
@_count_option("minimum", "Keep N of the newest points of each open line, whatever else is said.", 1)
@click.option("--dry-run", is_flag=True, help="Say what the policy would be; write nothing.")
@meta_option
def policy_command(
    url: str,
    window: int | str | None,
    grace: int | None,
    minimum: int | None,
    keep_versions: int | None,
    dry_run: bool,
    meta: Path | None,
    as_json: bool,
    **rules: int | None,
) -> None:
    """Show or set what a store keeps: window, keep rules, grace time, pins.

    It is kept in the store, for whoever compacts or prunes. Without a window nothing is ever dropped. What a
    policy does not keep goes with the next `compact`, its objects with `prune`.
    """
    import backup

    changes = {rule: rules[f"keep_{rule}"] for rule in _RULES} | {
        "keep_versions": keep_versions,
        "grace_ms": grace,
        "minimum": minimum,
        "window_ms": window,
    }
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    if given.get("window_ms") == _FOREVER:
        given["window_ms"] = None
    if dry_run and not given:
        raise click.UsageError("--dry-run needs something to set", click.get_current_context())
    found = (
        backup.set_policy(url, meta=meta, dry_run=dry_run, **given)
        if given
        else backup.policy(url, meta=meta)
    )
    for text in found.notes:
        note(text)
    if as_json:
        print_json(found.as_json())
    else:
        _print_policy(found)


def _print_policy(found: PolicyReport) -> None:
    from ourdb.units import format_span, format_time

    policy = found.policy
    window = "everything, for ever" if policy.window_ms is None else format_span(policy.window_ms)
    print_text(f"window    {window}")
    rules = [f"{getattr(policy, rule)} {rule}" for rule in _RULES if getattr(policy, rule)]
    if rules or policy.drops:
        print_text(f"keep      {', '.join(rules) or 'nothing older than the window'}")
    if policy.keep_versions:
        print_text(f"versions  {policy.keep_versions} of each id")
    print_text(f"minimum   {policy.minimum}")
    print_text(f"grace     {format_span(policy.grace_ms)}")
    if found.pins:
        print_text("")
        rows = [(pin.name, pin.seq, format_time(pin.time), pin.generation) for pin in found.pins]
        print_table(("pin", "seq", "time", "generation"), rows)


@command(
    "pin",
    example="""
    ourdb pin file:///srv/backup/notes before-upgrade
    ourdb pin file:///srv/backup/notes first-import --seq 1
    """,
)
@url_argument
@click.argument("name")
@at_option
@seq_option
@generation_option
@meta_option
def pin_command(
    url: str,
    name: str,
    at: int | None,
    seq: int | None,
    generation: str | None,
    meta: Path | None,
    as_json: bool,
) -> None:
    """Keep a point exact under a name: the newest, or one by time or seq, whatever the policy says."""
    at_most_one(at=at, seq=seq)
    import backup

    done = backup.pin(url, name, at=at, seq=seq, generation=generation, meta=meta)
    _end(done.as_json(), f"pinned {name}", as_json)


@command(
    "unpin",
    example="""
    ourdb pin file:///srv/backup/notes before-upgrade
    ourdb unpin file:///srv/backup/notes before-upgrade
    """,
)
@url_argument
@click.argument("name")
@meta_option
def unpin_command(url: str, name: str, meta: Path | None, as_json: bool) -> None:
    """Let go of a pin: its point stays only as long as the policy keeps it."""
    import backup

    done = backup.unpin(url, name, meta=meta)
    _end(done.as_json(), f"unpinned {name}", as_json)


def _end(done: dict[str, Any], what: str, as_json: bool) -> None:
    for text in done["notes"]:
        note(text)
    if as_json:
        print_json(done)
    else:
        print_text(f"{what}: seq {done['seq']}, {done['time']}, generation {done['generation']}")
