"""How a command that fails ends: one line or one JSON object, and the exit code. Never a traceback.

OURDB_DEBUG=1 in the environment shows the traceback as well, whatever failed.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from typing import Any

import click

INTERRUPTED, TERMINATED = 130, 143  # 128 + signal number, as shells count
PIPE_CLOSED = 141


class Terminated(BaseException):  # like KeyboardInterrupt: no `except Exception` may swallow it
    """SIGTERM arrived."""


def report(error: BaseException, *, as_json: bool) -> int:
    """Says what went wrong, on standard output if `as_json`, else on standard error; the exit code."""
    if isinstance(error, BrokenPipeError):
        _forget_output()
        return PIPE_CLOSED
    if os.environ.get("OURDB_DEBUG"):
        traceback.print_exception(error)
    fields = describe(error)
    if not (as_json and _print_json({"error": fields})):
        _settle_output()
        click.echo(f"ourdb: error: {_one_line(fields['message'])}", err=True)
    code: int = fields["exit_code"]
    return code


def describe(error: BaseException) -> dict[str, Any]:
    """kind, message, exit_code and what else the error says about where and what to do."""
    if isinstance(error, click.ClickException):
        return _fields("usage", _usage_message(error), error.exit_code)
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return _fields("interrupted", "interrupted", INTERRUPTED)
    if isinstance(error, Terminated):
        return _fields("terminated", "ended by SIGTERM", TERMINATED)
    from ourdb.errors import Error  # late: it brings the engine with it

    if isinstance(error, Error):
        return error.as_json()
    if isinstance(error, OSError):
        return _fields("io_error", _os_message(error), 1)
    if isinstance(error, MemoryError):
        return _fields("out_of_memory", "out of memory", 1)
    message = f"internal error: {type(error).__name__}: {error} (OURDB_DEBUG=1 shows where)"
    return _fields("internal", message, 1)


def _fields(kind: str, message: str, exit_code: int) -> dict[str, Any]:
    return {"kind": kind, "message": message, "exit_code": exit_code}


def _usage_message(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f" (see {context.command_path} --help)" if context else ""
    message = " ".join(error.format_message().split()).rstrip(".")
    return message[:1].lower() + message[1:] + hint


def _os_message(error: OSError) -> str:
    reason = (error.strerror or str(error)).lower()
    return f"{error.filename or 'standard input or output'}: {reason}"


def _print_json(value: dict[str, Any]) -> bool:
    """Whether standard output takes it; what it failed to take may be the very error to be told."""
    try:
        click.echo(json.dumps(value, default=str))
    except OSError:
        _forget_output()
        return False
    return True


def _one_line(message: str) -> str:
    return " ".join(message.split("\n"))


def _settle_output() -> None:
    """What standard output does not take is given up, or the interpreter complains when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        _forget_output()


def _forget_output() -> None:
    """Nobody takes standard output any more: what is left in its buffer goes nowhere."""
    with open(os.devnull, "w") as nowhere:
        try:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        except OSError:  # no file of the system
            sys.stdout = io.StringIO()
