"""Where the databases below a directory were shipped to, as their shipped marks say."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from compactor.url import parse_url
from ourdb import line
from ourdb.errors import NotFoundError, StorageError


def databases_below(
    folder: str | os.PathLike[str], on_error: Callable[[str, StorageError], None]
) -> Iterator[Path]:
    """The database directories below a folder, or itself, in order of their paths. Links are not followed.

    on_error: gets each folder that cannot be read, with the error; the others are gone through all the same.
    Raises NotFoundError (`no_directory`).
    """

    def unreadable(error: OSError) -> None:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        message = f"cannot look for databases here: {reason}: {error.filename}"
        on_error(error.filename, StorageError(message, kind="io_error", path=error.filename))

    if not os.path.isdir(folder):
        raise NotFoundError(f"no such directory: {os.fspath(folder)}", kind="no_directory")
    for path, folders, files in os.walk(folder, onerror=unreadable):
        if line.FILE_NAME in files:
            yield Path(path)
            folders.clear()
        folders.sort()


def shipped_urls(directory: str | os.PathLike[str]) -> list[str]:
    """The URL of each store that a database has a shipped mark of. Raises DamageError."""
    found = line.load(Path(directory))
    return sorted(_leading_to(store, mark.url) for store, mark in found.marks.items()) if found else []


def _leading_to(store: str, url: str) -> str:
    """The URL of a mark, with the endpoint of that time if this environment has another."""
    place = parse_url(url)
    if place.scheme != "s3" or place.identity == store:
        return url
    endpoint = store.removeprefix("s3:").removesuffix(f"/{place.bucket}/{place.root}")
    return url if endpoint == "aws" else replace(place, endpoint=endpoint).display
