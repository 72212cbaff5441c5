"""[IO] `heliograph delta`: make, apply and show delta files by hand."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from heliograph.delta import file as delta

app = typer.Typer(help="Make, apply and show deltas between files.", no_args_is_help=True, rich_markup_mode=None)

Json = Annotated[bool, typer.Option("--json", help="Print facts as one JSON object.")]


@app.command()
def make(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="What the other side has.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="What it is to get.")],
    patch: Annotated[Path, typer.Argument(metavar="PATCH", help="Where to write the delta file.")],
    as_json: Json = False,
) -> None:
    """Write the few bytes that make NEW from OLD to PATCH.

    Example: heliograph delta make digits-1.0.0.tflite digits-1.1.0.tflite digits.patch
    """
    from heliograph.delta import making  # applying must not pay for it

    # The fork comes before the bar, which has a thread.
    with (
        _ended_by_signals(),
        making.forked(lambda tell: delta.make_file(old, new, patch, tell)) as made,
        _progress("making", as_json) as progress,
    ):
        facts = made(progress)
    if as_json:
        print(json.dumps(facts))
    else:
        print(f"{patch}: {facts['patch_bytes']} bytes for {facts['new_bytes']}, {_counted(facts)}")


@app.command()
def apply(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The file the delta starts from.")],
    patch: Annotated[Path, typer.Argument(metavar="PATCH", help="The delta file.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Where to write the result.")],
    as_json: Json = False,
) -> None:
    """Rebuild NEW from OLD and PATCH, verified; nothing is written if anything is wrong.

    Example: heliograph delta apply digits-1.0.0.tflite digits.patch digits-1.1.0.tflite
    """
    with _ended_by_signals(), _progress("applying", as_json) as progress:
        facts = delta.apply_file(old, patch, new, progress)
    if as_json:
        print(json.dumps(facts))
    else:
        print(f"{new}: {facts['new_bytes']} bytes, SHA-256 {facts['sha256']}, {_counted(facts)}")


@app.command()
def show(
    patch: Annotated[Path, typer.Argument(metavar="PATCH", help="The delta file.")],
    as_json: Json = False,
) -> None:
    """Show what a delta file starts from, makes, and consists of.

    Of each segment: where it stands, its bytes, the operation, its patch bytes, what old bytes it is made of, and why.

    Example: heliograph delta show digits.patch
    """
    facts = delta.show_file(patch)
    if as_json:
        print(json.dumps(facts))
        return
    print(f"from    {facts['old_bytes']:>13} bytes  {facts['old_sha256']}")
    print(f"to      {facts['new_bytes']:>13} bytes  {facts['new_sha256']}")
    print(f"file    {facts['patch_bytes']:>13} bytes  of which recipe {facts['recipe_bytes']}")
    ops = facts["ops"]
    assert isinstance(ops, dict)
    for name, row in ops.items():
        print(
            f"{name:<8} {row['new_bytes']:>12} bytes  in {row['segments']} segments, {row['patch_bytes']} patch bytes"
        )
    parts = facts["parts"]
    assert isinstance(parts, list)
    for part in parts:
        print(
            f"at {part['new_at']:<12} {part['new_bytes']:>8} bytes  {part['op']:<8} "
            f"{part['patch_bytes']:>8} patch bytes{_of_old(part['old'])}: {part['why']}"
        )


def _of_old(spans: list[list[int]]) -> str:
    """What a segment was compared with."""
    if not spans:
        return ", of nothing old"
    length = sum(size for _, size in spans)
    places = f"at {spans[0][0]}" if len(spans) == 1 else f"in {len(spans)} ranges from {spans[0][0]}"
    return f", of {length} old bytes {places}"


def _counted(facts: delta.Facts) -> str:
    segments = facts["segments"]
    assert isinstance(segments, dict)
    return "segments: " + (", ".join(f"{count} {name}" for name, count in segments.items() if count) or "none")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end the command as Ctrl-C does, so that temporary files go."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(title: str, as_json: bool) -> Iterator[delta.Progress | None]:
    """A bar on stderr, if a person is there to see it."""
    if as_json or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)  # it moves to and fro until somebody knows how far it is
        yield lambda done, whole: bar.update(task, completed=done, total=whole)
