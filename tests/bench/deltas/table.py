"""Rows of one kind, a frozen dataclass of numbers and text, as CSV and back."""

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any, TypeVar

T = TypeVar("T")


def encode(kind: Any, rows: Iterable[Any]) -> str:
    """The rows, below their names."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [field.name for field in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return out.getvalue()


def parse(kind: type[T], text: str) -> list[T]:
    """The rows of `encode`."""
    makes = {field.name: field.type for field in fields(kind)}  # type: ignore[arg-type]
    return [
        kind(**{name: makes[name](value) for name, value in line.items()})  # type: ignore[operator]
        for line in csv.DictReader(io.StringIO(text))
    ]
