"""Commands that do the same for several things: one that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from ourdb.errors import Error

Done = TypeVar("Done")


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
