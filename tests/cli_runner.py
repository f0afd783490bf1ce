"""Runs `ourdb` in this process, as a terminal-less shell would."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from click.testing import CliRunner

from backup.cli.group import cli


@dataclass(frozen=True)
class Ran:
    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> Any:
        """The one object on standard output."""
        lines = self.text.splitlines()
        assert len(lines) == 1, lines
        return json.loads(lines[0])


def ourdb(*words: object, stdin: bytes = b"") -> Ran:
    """`ourdb words...`, whatever exit code it has."""
    done = CliRunner().invoke(cli, [str(word) for word in words], input=stdin, catch_exceptions=False)
    return Ran(done.exit_code, done.stdout_bytes, done.stderr)


def ok(*words: object, stdin: bytes = b"") -> Ran:
    """`ourdb words...`, which must end well."""
    done = ourdb(*words, stdin=stdin)
    assert done.code == 0, (words, done)
    return done


def failed(*words: object, stdin: bytes = b"") -> dict[str, Any]:
    """The error of `ourdb words... --json`: one object, nothing else, no traceback; and the same one line
    without --json."""
    as_json = ourdb(*words, "--json", stdin=stdin)
    error: dict[str, Any] = as_json.json["error"]
    assert error["exit_code"] == as_json.code != 0, as_json
    as_text = ourdb(*words, stdin=stdin)
    assert as_text.code == as_json.code, as_text
    lines = as_text.err.splitlines()
    assert lines[-1].startswith("ourdb: error: "), as_text
    assert "Traceback" not in as_text.err
    return error
