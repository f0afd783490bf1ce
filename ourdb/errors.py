"""The error families: one class for each thing that a caller handles differently.

Every error carries a `kind` (a word for programs), an exit code (docs/errors.md has the table) and
`fields`: where it happened and what is the way out, ready for JSON.
"""

from __future__ import annotations

from typing import Any, ClassVar


class Error(Exception):
    """Base of all errors of ourdb, compactor and backup. Also raised itself for plain failures."""

    exit_code: ClassVar[int] = 1
    default_kind: ClassVar[str] = "failed"

    def __init__(self, message: str, *, kind: str | None = None, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind or self.default_kind
        self.fields = fields

    def __str__(self) -> str:
        return self.message

    def as_json(self) -> dict[str, Any]:
        """The value of `error` in the JSON that a command prints."""
        return {"kind": self.kind, "message": self.message, "exit_code": self.exit_code, **self.fields}


class StorageError(Error):
    """The local file system refused: `disk_full`, `not_writable`, `io_error`, `unsupported_system`."""

    default_kind = "io_error"


class UnusableError(Error):
    """This handle cannot go on: `closed`, or `poisoned` after a failed write or fsync. Open it again."""

    default_kind = "closed"


class MissingIdError(Error, KeyError):
    """There is no record of this id (`no_such_id`)."""

    default_kind = "no_such_id"


class InvalidError(Error, ValueError):
    """An argument, option, value, id or line is not valid. Nothing was written."""

    exit_code = 2
    default_kind = "invalid"


class IncompleteError(Error):
    """Some of the work was done, the rest was not; the message says which (`incomplete`)."""

    exit_code = 3
    default_kind = "incomplete"


class NotFoundError(Error):
    """`no_database`, `no_namespace`, `no_bucket`, `no_generation`: nothing of that name is there."""

    exit_code = 10
    default_kind = "no_database"


class LockedError(Error):
    """Another process holds the lock (`locked`). Locks go with their process: try again when it ended."""

    exit_code = 11
    default_kind = "locked"


class UnreachableError(Error):
    """The restore target cannot be met exactly (`unreachable`).

    Fields: `nearest_before` and `nearest_after`, each None or {"seq", "time", "generation"}.
    """

    exit_code = 13
    default_kind = "unreachable"


class DamageError(Error):
    """Bytes that are not what was written, locally (`corrupt`) or in the store (`store_damaged`), or a
    target that lost data (`store_lost_data`). Fields say where: file or key, offset, seq."""

    exit_code = 14
    default_kind = "corrupt"


class UnknownFormatError(DamageError):
    """A version, flag or codec that this program does not know (`unknown_format`): use a newer one."""

    default_kind = "unknown_format"


class FencedError(Error):
    """Two writers, two histories or two lines: `fork`, `behind`, `superseded`, `moved`, `two_lines`,
    `other_database`, `no_cas`, `other_host`. Nothing was overwritten; the message names the ways out."""

    exit_code = 16
    default_kind = "fork"


class ExistsError(Error):
    """The destination exists (`exists`): it is never overwritten silently."""

    exit_code = 17
    default_kind = "exists"


class RefusedError(Error):
    """The store refuses: `credentials`, `permission`."""

    exit_code = 18
    default_kind = "permission"


class TemporaryError(Error):
    """The store did not answer, or lost races went on past the time limit (`unavailable`). Try again."""

    exit_code = 75
    default_kind = "unavailable"
