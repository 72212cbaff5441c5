"""[IO] `heliograph node`: join, run, status; and what a site does by itself: rollback, hold, resume, drill."""

import asyncio
import json
import os
import sys
from pathlib import Path
from random import SystemRandom
from typing import Annotated, Any

import typer

from heliograph.errors import NotFoundError
from heliograph.metadata import time_text
from heliograph_site.door import knock
from heliograph_site.folder import MAX_JOIN_CHARS, JoinString, KeptIn, read_node_file
from heliograph_site.joining import check_free, join
from heliograph_site.status import status

node = typer.Typer(help="Join a node, run it, look at it.", no_args_is_help=True, rich_markup_mode=None)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The node's folder.")]


@node.callback()
def _node() -> None:
    """Join a node, run it, look at it."""


@node.command("join")
def node_join(
    string: Annotated[str, typer.Argument(metavar="STRING", help="What `fleet token` printed; - reads it from stdin.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for the node.")],
    http_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where inference is served on 127.0.0.1; 0: the system chooses.")
    ] = 0,
    key_store: Annotated[
        KeptIn, typer.Option(help="Where the node's key is kept; tpm: only this machine's TPM opens it.")
    ] = "file",
) -> None:
    """Enrol this machine as the node that the join string names.

    Example: heliograph node join heliograph1:… ./pi-1 --http-port 8080
    """
    check_free(folder)
    found = JoinString.parse(sys.stdin.readline(MAX_JOIN_CHARS + 1) if string == "-" else string)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    assignment = asyncio.run(join(found, folder, http_port, SystemRandom(), say=say, kept_in=key_store))
    print(f"{found.site}/{found.node} joined realm {found.realm} in ring {assignment.ring}; run it with:")
    print(f"  heliograph node run {folder}")


@node.command("run")
def node_run(folder: Folder) -> None:
    """Run the node's agent and server until stopped.

    Example: heliograph node run ./pi-1
    """
    read_node_file(folder)
    sys.stdout.flush()
    # The supervisor needs none of what is loaded here.
    os.execv(sys.executable, [sys.executable, "-m", "heliograph_site.supervisor", str(folder)])  # noqa: S606 - no shell is meant


@node.command("status")
def node_status(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what the node runs, trusts and has yet to tell; works while it is stopped.

    Example: heliograph node status ./pi-1 --json
    """
    facts = status(folder)
    if as_json:
        print(json.dumps(facts))
    else:
        _show(facts)


Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")]
Why = Annotated[str, typer.Option("--reason", help="Why, for the audit record.")]


@node.command("rollback")
def node_rollback(model: Model, folder: Folder, reason: Why = "") -> None:
    """Serve a model's fallback now, where policy lets the site; the release left isn't tried again by its directive.

    Example: heliograph node rollback digits ./pi-1 --reason "wrong labels"
    """
    _tell_agent(folder, "rollback", model, reason)


@node.command("hold")
def node_hold(model: Model, folder: Folder, reason: Why = "") -> None:
    """Begin nothing new of a model until `node resume`, where policy lets the site; what serves goes on.

    Example: heliograph node hold digits ./pi-1 --reason "stocktaking"
    """
    _tell_agent(folder, "hold", model, reason)


@node.command("resume")
def node_resume(model: Model, folder: Folder, reason: Why = "") -> None:
    """Take new releases of a model again.

    Example: heliograph node resume digits ./pi-1
    """
    _tell_agent(folder, "resume", model, reason)


@node.command("drill")
def node_drill(model: Model, folder: Folder, reason: Why = "") -> None:
    """Roll back on purpose and forward again, measured, where policy lets the site; programs are answered meanwhile.

    Example: heliograph node drill digits ./pi-1 --reason "before the season"
    """
    _tell_agent(folder, "drill", model, reason)


def _tell_agent(folder: Path, action: str, model: str, reason: str) -> None:
    models = status(folder)["models"]
    if model not in models:
        raise NotFoundError(f"there is no model {model!r} on this node: it has {', '.join(models) or 'none yet'}")
    print(knock(folder, action, model, reason))


def _show(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    serves = facts["http"] or "nowhere (the server is not running)"
    console.print(f"{facts['site']}/{facts['node']}: link {facts['link']}, serves at {serves}", highlight=False)
    if facts["certificate"] is not None:
        ends = facts["certificate"]["expires"]
        console.print(f"certificate until {time_text(ends)}" if ends else "no certificate", highlight=False)
    models = Table("model", "phase", "active", "verdict", "fallback", "note", box=None)
    for name, model in facts["models"].items():
        refused = [f"{_name(r)} refused: {r['reason']}" for r in model["refused"][:1]]
        note = model["flag"] or model["reason"] or model["stale"] or model["waiting"] or "; ".join(refused)
        held = f"held {model['held_by_site']}" if model["held_by_site"] else ""
        if held not in note:
            note = held + (f"; {note}" if note else "")
        models.add_row(
            name, model["phase"], _name(model["active"]), model["verdict"] or "-", _name(model["fallback"]), note
        )
    if facts["models"]:
        console.print(models)
    else:
        console.print("no release was directed to this node yet", highlight=False)
    for line in _documents(facts):
        console.print(line, highlight=False)
    records = Table("records", "next", "acknowledged", "kept", "merged", "lost", box=None)
    for lane, row in facts["outbox"].items():
        records.add_row(lane, *(str(row[key]) for key in ("next_seq", "acked_seq", "kept", "merged", "lost")))
    console.print(records)
    versions = ", ".join(f"{role} {version}" for role, version in facts["trust"]["versions"].items())
    deny = facts["trust"]["deny"]
    console.print(f"metadata: {versions or 'none'}", highlight=False)
    digest = f", digest {deny['digest'][:16]}" if deny["digest"] else ""
    console.print(f"denials: {deny['count']}{digest}", highlight=False)
    if facts["trust"]["clock"]:
        console.print(f"clock: {facts['trust']['clock']}", highlight=False)


def _documents(facts: dict[str, Any]) -> list[str]:
    """Which policy and configs are in force, and what is held besides: until when, and why."""
    configs = [
        f"config {model['active']['config']} of {name}"
        for name, model in facts["models"].items()
        if model["active"] and model["active"]["config"]
    ]
    lines = [
        f"in force: policy {facts['documents']['policy'] or 'none'}" + "".join(f", {config}" for config in configs)
    ]
    for held in facts["documents"]["candidates"]:
        until = f" until {time_text(held['until'])}" if held["until"] is not None else ""
        name = f"{held['document']} {held['number']}"
        reason = held["reason"].removeprefix(f"{name} is held back: ")
        lines.append(f"held: {name}{until}: {reason or 'not needed'}")
    return lines


def _name(pointer: dict[str, Any] | None) -> str:
    if pointer is None:
        return "-"
    return str(pointer["release"] or pointer["digest"][:16])
