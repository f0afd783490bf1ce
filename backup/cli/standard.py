"""Standard input, output and error, where whoever started the program closed them (`>&-`)."""

from __future__ import annotations

import os
import sys
from typing import IO


def open_closed() -> None:
    """Opens what is closed onto the null device. Else the next file that is opened would get its number, a
    database's perhaps, and what is printed would be written there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    sys.stdin = sys.stdin or _stream(0, "r")
    sys.stdout = sys.stdout or _stream(1, "w")
    sys.stderr = sys.stderr or _stream(2, "w")


def _stream(number: int, mode: str) -> IO[str]:
    return open(number, mode, closefd=False)
