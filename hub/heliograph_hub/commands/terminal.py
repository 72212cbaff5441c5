"""[IO] What several commands take and print: options, tables, lines; data to stdout, the rest to stderr."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from heliograph_hub.client import ENVIRONMENT
from heliograph_hub.telling import when as when


def group(text: str) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)


Hub = Annotated[
    str,
    typer.Option(
        "--hub", envvar=ENVIRONMENT, metavar="DIR|URL", help="The hub's folder, or its URL.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
ReleaseName = Annotated[str, typer.Argument(metavar="MODEL@VERSION", help="Such as digits@1.0.0.")]
Keys = Annotated[
    list[str],
    typer.Option(
        "--key",
        metavar="FILE|URI",
        help="A key of this duty, repeatable: a file, or SCHEME:…#FILE.pub of a key elsewhere (FORMATS).",
    ),
]
DenyKeys = Annotated[
    list[str],
    typer.Option(
        "--key",
        metavar="FILE|URI",
        help="A key of the role, repeatable: a file, or SCHEME:…#FILE.pub of a key elsewhere (FORMATS).",
    ),
]
DocumentKeys = Annotated[
    list[str] | None,
    typer.Option("--key", metavar="FILE|URI", help="A key of the role, repeatable; left out: the hub's own keys sign."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show who would be affected and how.")]
Number = Annotated[int | None, typer.Option("--number", min=1, help="An older one.")]
Yes = Annotated[bool, typer.Option("--yes", help="Sign even if nodes stop serving.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, in few words: every node is told.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The hub's folder.")]


def say(line: str) -> None:
    """A line for people, on stderr."""
    print(line, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """What the API answered, on stdout."""
    print(json.dumps(value, indent=1))


def table(titles: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    """A plain table on stdout; outside a terminal nothing is cut or wrapped."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=400)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def count(number: int, what: str) -> str:
    """So many of something, in words: `1 node`, `2 nodes`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def of_needed(duty: dict[str, Any]) -> str:
    """How many signatures of how many there are."""
    return f"{duty['have']} of {duty['need']}"


def denied_line(denied: dict[str, Any] | None) -> str:
    """What denies a release, in a line; empty if nothing does."""
    if denied is None:
        return ""
    how = ("by key" if denied["type"] == "deny-key" else "by digest") + (", final" if denied["final"] else "")
    return how + (f": {denied['reason']}" if denied["reason"] else "")


def model_line(model: str, report: dict[str, Any]) -> str:
    """What a node has of a model, in a line."""
    active = report["active"]
    name = (active["release"] or active["digest"][:16]) if active else "nothing"
    return f"{model}: {name} ({', '.join(word for word in (report['phase'], report['verdict']) if word)})"


def show_making(rows: list[dict[str, Any]]) -> None:
    """Deltas that aren't made yet, if there are any, and how far each is."""
    if rows:
        table(
            ("delta of", "from", "state", "seconds", "bytes done"),
            [
                (
                    row["file"],
                    ", ".join(row["from"]) or row["base"][:16],
                    row["state"] + (f": {row['why']}" if row["why"] else ""),
                    f"{row['seconds']:.0f}",
                    f"{row['done_bytes']} of {row['bytes']}",
                )
                for row in rows
            ],
        )
