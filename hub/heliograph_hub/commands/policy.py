"""[IO] `heliograph policy`."""

from pathlib import Path
from typing import Annotated

import typer

from heliograph.errors import ConfigError
from heliograph.names import RINGS
from heliograph_hub.client import HubClient
from heliograph_hub.commands.documents import set_document, show_document
from heliograph_hub.commands.terminal import (
    DocumentKeys,
    DryRun,
    Hub,
    Json,
    Number,
    Yes,
    group,
    print_json,
    table,
    when,
)

app = group("Say what is allowed in a ring: windows, budgets, floors, what is done off line.")


@app.command("set")
def policy_set(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="TOML; it names its ring.")],
    key: DocumentKeys = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Set a ring's policy: checked, tried on the known fleet, shown who is affected and how, then signed.

    The same content again changes nothing and keeps its number.

    Example: heliograph policy set general.toml --dry-run --hub ./hub
    """
    set_document("policy", file, key or [], where=where, is_dry=dry_run, is_agreed=yes, as_json=as_json)


@app.command("show")
def policy_show(
    ring: Annotated[str | None, typer.Argument(metavar="RING", help="Left out: all policies, listed.")] = None,
    number: Number = None,
    missing: Annotated[
        bool, typer.Option("--missing", help="Show who has not acknowledged its immediate items.")
    ] = False,
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Show the policy of a ring, as a file that `policy set` takes.

    Example: heliograph policy show general --hub ./hub
    """
    if ring is not None and ring not in RINGS:
        raise ConfigError(f"no ring {ring!r}: rings are {', '.join(RINGS)}")
    if missing:
        if ring is None or number is not None:
            raise ConfigError("--missing is of the policy that a ring has: heliograph policy show RING --missing")
        _show_missing(ring, where, as_json)
        return
    show_document("policy", ring, number, where, as_json)


def _show_missing(ring: str, where: str, as_json: bool) -> None:
    answer = HubClient(where).get(f"/v1/convergence/{ring}")
    if as_json:
        print_json(answer)
        return
    if not answer["immediate"]:
        print(f"policy/{ring} {answer['number']} has no immediate items")
        return
    for item in answer["immediate"]:
        print(f"policy/{ring} {answer['number']}: {item['item']} everywhere until {when(item['until'])} UTC")
    table(
        ("node", "has policy", "late", "why"),
        [(m["node"], str(m["number"]), ", ".join(m["late"]) or "not yet", m["why"]) for m in answer["missing"]],
    )
