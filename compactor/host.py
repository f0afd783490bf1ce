"""This machine: who it is, and the local locks that stand in for compare-and-swap (protocol rule 9).

The id says how far the locks reach: it is made of the machine's own id and of a random one that lies
beside the locks, so that two users with state folders of their own are two hosts.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ourdb.errors import StorageError
from ourdb.files import FileSystem

HOST_FILE = "host"
MACHINE_ID = Path("/etc/machine-id")
_ID_BYTES_MAX = 100


class Host:
    """folder: where the locks lie (None: nowhere, then only `id` works, and differs in each process)."""

    def __init__(
        self, folder: Path | None, *, machine_id: Path = MACHINE_ID, fs: FileSystem | None = None
    ) -> None:
        self._folder = folder
        self._machine_id = machine_id
        self._fs = fs or FileSystem()
        self._id: str | None = None

    @property
    def id(self) -> str:
        """16 hex digits, the same for every process that shares the locks."""
        if self._id is None:
            try:
                self._id = self._stored_id()
            except StorageError:
                self._id = _digest(self._read(self._machine_id), secrets.token_hex(8))
        return self._id

    @contextmanager
    def locked(self, identity: str) -> Iterator[None]:
        """Alone with a namespace on this machine; waits for whoever is. The lock goes with the process.

        Raises StorageError (`not_writable`) where no lock can be made.
        """
        folder = self._locks()
        name = hashlib.sha256(identity.encode()).hexdigest()[:32]
        with self._fs.locked(folder / f"{name}.lock"):
            yield

    def _stored_id(self) -> str:
        file = self._locks() / HOST_FILE
        found = self._read(file)
        if not found:
            with self._fs.locked(file.with_name("host.lock")):
                found = self._read(file)
                if not found:
                    found = secrets.token_hex(8)
                    self._fs.replace(file, found.encode())
        return _digest(self._read(self._machine_id), found)

    def _locks(self) -> Path:
        if self._folder is None:
            raise StorageError(
                "no folder for the lock of this host (set OURDB_META to a path that can be written)",
                kind="not_writable",
            )
        folder = self._folder / "locks"
        if not folder.is_dir():
            self._fs.call("making the folder for locks", folder, lambda: folder.mkdir(0o700, True, True))
        return folder

    def _read(self, path: Path) -> str:
        try:
            return self._fs.read(path, bytes_max=_ID_BYTES_MAX).decode("ascii", "replace").strip()
        except (FileNotFoundError, StorageError):
            return ""


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
