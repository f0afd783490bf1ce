"""Commands that do the same for several things: one that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from backup.cli.failure import report
from backup.cli.output import note, print_json, print_text

if TYPE_CHECKING:
    from ourdb.errors import Error

NOTHING_MONITORED = "nothing is monitored: ourdb monitor add URL"
Done = TypeVar("Done")


class Report(Protocol):
    """What a run on one namespace says."""

    @property
    def url(self) -> str: ...

    @property
    def notes(self) -> Iterable[str]: ...

    def as_json(self) -> dict[str, Any]: ...


Told = TypeVar("Told", bound=Report)


def check_one_or_all(url: str | None, everything: bool) -> None:
    """Usage error unless it is one URL, or --all."""
    if everything == (url is not None):
        raise click.UsageError("which namespace: a URL, or --all", click.get_current_context())


def monitored_urls(meta: Path | None) -> list[str]:
    """What --all means."""
    from compactor.monitor import list_monitored_namespaces

    return [watched.url for watched in list_monitored_namespaces(meta=meta)]


def try_each(
    things: Iterable[str], action: Callable[[str], Done], failed: dict[str, Error]
) -> dict[str, Done]:
    """What the action gives for each; `failed` gets the errors."""
    from ourdb.errors import Error

    done = {}
    for thing in dict.fromkeys(things):
        try:
            done[thing] = action(thing)
        except Error as error:
            failed[thing] = error
    return done


def incomplete(done: int, failed: Mapping[str, Error]) -> Error:
    """The error that names those that failed, beside so many that did not."""
    from ourdb.errors import IncompleteError

    name, first = next(iter(failed.items()))
    return IncompleteError(
        f"{len(failed)} of {done + len(failed)} failed, the first: {name}: {first}",
        failed=[{"name": name, "error": error.as_json()} for name, error in failed.items()],
    )


def end_all(
    done: Mapping[str, Told], failed: Mapping[str, Error], print_one: Callable[[Told], None], *, as_json: bool
) -> int:
    """Prints what became of each monitored namespace; the exit code. One may be in both: done in part."""
    error = incomplete(len(done.keys() - failed.keys()), failed) if failed else None
    for text in dict.fromkeys(text for one in done.values() for text in one.notes):
        note(text)
    if as_json:
        told: dict[str, Any] = {"namespaces": [one.as_json() for one in done.values()]}
        print_json(told if error is None else told | {"error": error.as_json()})
        return error.exit_code if error else 0
    for one in done.values():
        print_text(one.url)
        print_one(one)
    if not done and not failed:
        print_text(NOTHING_MONITORED)
    return report(error, as_json=False) if error else 0
