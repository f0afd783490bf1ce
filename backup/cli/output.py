"""What commands print: one JSON object, or short aligned text for people."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

_TABLE_WIDTH = 1_000  # more than any row


def print_json(value: Mapping[str, Any]) -> None:
    """One object on one line; indented where a person looks at it."""
    indent = 2 if sys.stdout.isatty() else None
    click.echo(json.dumps(value, indent=indent))


def print_text(text: str) -> None:
    """A line as it is, also where it holds a file name that is not UTF-8."""
    click.echo(text.encode("utf-8", "surrogateescape"))


def note(text: str) -> None:
    """A remark on standard error, that no program has to read."""
    click.echo(f"ourdb: {text}", err=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Aligned columns; numbers to the right. Nothing is cut: a terminal wraps a long last column."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [list(row) for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="none")
    for index, column in enumerate(columns):
        numbers = all(isinstance(row[index], int) for row in cells)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text("-" if cell is None else str(cell)) for cell in row))
    Console(file=sys.stdout, width=_TABLE_WIDTH, highlight=False).print(table)


def count(number: int, noun: str) -> str:
    """`1 segment`, `2 segments`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def value_fields(value: bytes | None) -> dict[str, Any]:
    """A value as in JSONL: `value` if it is UTF-8 text, else `base64`; `deleted` for None."""
    if value is None:
        return {"deleted": True}
    try:
        return {"value": value.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode("ascii")}


def show_value(value: bytes | None) -> str:
    """A value on one line of a table."""
    fields = value_fields(value)
    if "value" in fields:
        text: str = fields["value"]
        return text if text.isprintable() else json.dumps(text, ensure_ascii=False)
    return "(deleted)" if value is None else f"base64:{fields['base64']}"
