"""OurDB: an embedded key-value database with history. `ourdb.open(path)` is where to begin."""

from ourdb.batch import Batch
from ourdb.config import Config
from ourdb.database import OurDB
from ourdb.errors import (
    DamageError,
    Error,
    ExistsError,
    IncompleteError,
    InvalidError,
    LockedError,
    MissingIdError,
    NotFoundError,
    StorageError,
    UnknownFormatError,
    UnreachableError,
    UnusableError,
)
from ourdb.history import Version
from ourdb.opening import create, open  # noqa: A004

__all__ = [
    "Batch",
    "Config",
    "DamageError",
    "Error",
    "ExistsError",
    "IncompleteError",
    "InvalidError",
    "LockedError",
    "MissingIdError",
    "NotFoundError",
    "OurDB",
    "StorageError",
    "UnknownFormatError",
    "UnreachableError",
    "UnusableError",
    "Version",
    "create",
    "open",
]
