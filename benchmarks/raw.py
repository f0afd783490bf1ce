"""A raw copy of files to a place and back: what backup and restore are measured beside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol


class RawStore(Protocol):
    """name: of the kind. url: where the backup of a round goes, beside the raw copy."""

    name: str

    def url(self, number: int) -> str: ...
    def put(self, files: Sequence[Path]) -> None: ...
    def get(self, target: Path) -> None: ...
    def clear(self) -> None: ...


class Directory:
    """Copies with fsync, as a backup to file:// makes durable what it writes."""

    name = "file"

    def __init__(self, place: Path) -> None:
        self._place = place

    def url(self, number: int) -> str:
        return f"file://{self._place}/backup/round{number}"

    def put(self, files: Sequence[Path]) -> None:
        (self._place / "raw").mkdir()
        for file in files:
            copy_durably(file, self._place / "raw" / file.name)

    def get(self, target: Path) -> None:
        target.mkdir()
        for file in sorted((self._place / "raw").iterdir()):
            copy_durably(file, target / file.name)

    def clear(self) -> None:
        for part in ("raw", "backup"):
            shutil.rmtree(self._place / part)


class Bucket:
    """boto3's transfer manager with its defaults: parts of 8 MiB, 10 threads."""

    def __init__(self, name: str, bucket: str) -> None:
        import boto3
        from botocore.config import Config

        self._client: Any = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
        self.name = name
        self._bucket, self._prefix = bucket, f"bench-{os.urandom(4).hex()}"
        self._names: list[str] = []

    def url(self, number: int) -> str:
        return f"s3://{self._bucket}/{self._prefix}/backup/round{number}"

    def put(self, files: Sequence[Path]) -> None:
        for file in files:
            self._client.upload_file(str(file), self._bucket, f"{self._prefix}/raw/{file.name}")
            self._names.append(file.name)

    def get(self, target: Path) -> None:
        target.mkdir()
        for name in self._names:
            self._client.download_file(self._bucket, f"{self._prefix}/raw/{name}", str(target / name))
            with (target / name).open("rb") as file:
                os.fsync(file.fileno())

    def clear(self) -> None:
        pages = self._client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + "/"):
            for found in page.get("Contents", []):
                self._client.delete_object(Bucket=self._bucket, Key=found["Key"])
        self._names.clear()


def copy_durably(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
