"""The errors of a backup run that must not go on: what was found, and which way leads out."""

from __future__ import annotations

from pathlib import Path

from backup.plan import Refuse
from compactor.head import Head
from ourdb.errors import DamageError, Error, FencedError
from ourdb.line import Line


def refusal(found: Refuse, *, path: Path, url: str, end: int, line: Line, head: Head | None) -> Error:
    """The error for a refusal; nothing was written. end: last seq of the log. Exit code 14 for a store that
    lost data, else 16."""
    if found.kind == "store_lost_data":
        return _lost(found, url, line, head)
    message = {
        "other_database": (
            f"{url} belongs to another database, {found.other}: use another name in the URL for {path}"
        ),
        "superseded": _superseded(found, path, url, line),
        "moved": _moved(found, path, url, head),
        "behind": (
            f"{path} ends at seq {end} and the store at {found.seq}: this directory lost writes or is an old "
            f"copy; restore it from {url}, or keep both with backup --fork"
        ),
        "fork": _fork(found, path, url, line, head),
    }[found.kind]
    fields = {"uuid": found.other} if found.kind == "other_database" else _where(found)
    return FencedError(message, kind=found.kind, generation=line.generation, last_seq=end, **fields)


def _where(found: Refuse) -> dict[str, object]:
    return {"seq": found.seq} | ({"other": found.other} if found.other else {})


def _superseded(found: Refuse, path: Path, url: str, line: Line) -> str:
    if found.other is None:
        return (
            f"{url} has let go of generation {line.generation} of {path}, which was taken for dead: stop "
            "writing here, or keep it with backup --fork"
        )
    at = f" at seq {found.seq}" if found.seq else ""  # none is left of a line that was dropped
    return (
        f"generation {line.generation} of {path} was taken over by {found.other}{at}: a "
        "restored copy goes on there; stop writing here, or keep both with backup --fork"
    )


def _moved(found: Refuse, path: Path, url: str, head: Head | None) -> str:
    other = head.generations.get(found.other) if head and found.other else None
    if other and not other.open:
        return (
            f"{path} is a restored copy of generation {found.other}, which {url} has let go of since: go on "
            "with it by backup --take-over, or keep both with backup --fork"
        )
    return (
        f"{path} is a restored copy, and somebody wrote to its line since: generation {found.other} is "
        f"at seq {found.seq}; stop the other writer and use backup --take-over, or keep both with "
        "backup --fork"
    )


def _fork(found: Refuse, path: Path, url: str, line: Line, head: Head | None) -> str:
    if head and line.generation not in head.generations:
        others = ", ".join(sorted(head.generations))
        return (
            f"{url} has other generations of this database ({others}) and not {line.generation} of {path}: "
            "two histories; use another URL, or keep both with backup --fork"
        )
    return (
        f"{path} and {url} differ at seq {found.seq} or before: two writers, an old copy that went on, or a "
        "log condensed there; keep both with backup --fork"
    )


def _lost(found: Refuse, url: str, line: Line, head: Head | None) -> DamageError:
    has = f"ends at seq {found.seq}, revision {head.revision}" if head else "has no head"
    return DamageError(
        f"the store lost data: {url} {has}, and more was acknowledged (put back what was lost, or start anew "
        "with backup --new, which ships everything)",
        kind="store_lost_data",
        generation=line.generation,
        seq=found.seq,
    )
