"""[IO] `heliograph lab`: a hub, a broker and three nodes on shaped links, to look at and to be rough with."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from heliograph.errors import ConfigError, NotFoundError
from heliograph.lab.load import load
from heliograph.lab.profiles import load_profile, profile_names
from heliograph.lab.session import ENVIRONMENT, Lab, ask, default_folder, node_of

app = typer.Typer(
    help="Run a hub and three nodes on bad links on this machine, and be rough with them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Dir = Annotated[
    Path | None,
    typer.Option(
        "--dir", envvar=ENVIRONMENT, metavar="DIR", help="The lab's folder; one of your own in the temporary folder."
    ),
]
Node = Annotated[str, typer.Argument(metavar="NODE", help="SITE/NODE, or the ring it is in: canary, early, general.")]


@app.command("run")
def lab_run(
    profile: Annotated[
        str, typer.Option("--profile", metavar="NAME", help="What the links are like: a name, or a .toml file.")
    ] = "shop2m",
    folder: Dir = None,
    once: Annotated[
        float | None, typer.Option("--once", metavar="SECONDS", min=0, help="End after so long; else with Ctrl-C.")
    ] = None,
) -> None:
    """Start hub, broker and three nodes (canary, early, general), each on its own link, and show them until Ctrl-C.

    A profile of your own is a file such as: note = "a bad day"; rate_bit_s = 256_000; delay_s = 0.15 (one way);
    loss_share = 0.02; buffer_bytes = 16_000 (what waits for the rate; the rest is dropped), a line each. What is left
    out or 0 is unlimited. A table [up] or [down] says otherwise for one direction; [outages] has first_s, every_s and
    length_s.

    Example: heliograph lab run --profile m256
    """
    shape = load_profile(profile)
    with _ends_in_order(), Lab(folder or default_folder(), shape, keep=folder is not None) as lab:
        try:
            lab.start(_say)
            _say(_greeting(lab.status()))
            with _view() as draw:
                lab.run(once, draw)
        except KeyboardInterrupt:
            pass
        _say("stopping")


@app.command("cut")
def lab_cut(node: Node, folder: Dir = None) -> None:
    """Take a node's link down: nothing gets through, nobody is told.

    Example: heliograph lab cut canary
    """
    _order(folder, "cut", node)


@app.command("restore")
def lab_restore(
    name: Annotated[str, typer.Argument(metavar="NODE|hub", help="A node as for cut, or hub.")], folder: Dir = None
) -> None:
    """Bring a link back, and start a node or the hub that was killed.

    Example: heliograph lab restore canary
    """
    _order(folder, "restore", name)


@app.command("kill")
def lab_kill(
    name: Annotated[str, typer.Argument(metavar="NODE|hub|broker", help="A node as for cut, hub or broker.")],
    folder: Dir = None,
) -> None:
    """Cut the power: every process of a node, the hub with its broker, or the broker alone, ends at once.

    Example: heliograph lab kill general
    """
    _order(folder, "kill", name)


@app.command("load")
def lab_load(
    node: Node,
    rps: Annotated[float, typer.Option("--rps", metavar="N", min=0.1, max=5000, help="Requests a second.")],
    seconds: Annotated[float, typer.Option("--seconds", metavar="S", min=0.1, help="For how long.")] = 10.0,
    model: Annotated[str | None, typer.Option("--model", help="Which, if the node serves several.")] = None,
    folder: Dir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Ask a node for predictions at a steady rate, answered or not, and print latency and failures.

    Example: heliograph lab load canary --rps 50 --seconds 20
    """
    name = node_of(node)
    found = next(facts for facts in ask(folder or default_folder(), {"do": "status"})["nodes"] if facts["node"] == name)
    if model is None:
        active = [model for model, facts in found["models"].items() if facts["active"]]
        if not active:
            raise NotFoundError(f"{name} serves no model yet: add a release first; heliograph lab run says how")
        if len(active) > 1:
            raise ConfigError(f"{name} serves several models: name one of {', '.join(active)} with --model")
        model = active[0]
    figures = asyncio.run(load(found["url"], model, rps, seconds)).facts()
    figures = {"node": name, "model": model, "rps": rps, "seconds": seconds, **figures}
    if as_json:
        print(json.dumps(figures))
        return
    print(
        f"{name}: {figures['answered']} of {figures['sent']} answered, {figures['failed']} failed, "
        f"p50 {_ms(figures['p50_ms'])}, p95 {_ms(figures['p95_ms'])}"
    )
    if figures["first_failure"]:
        print(f"first failure: {figures['first_failure']}")


@app.command("status")
def lab_status(
    folder: Dir = None, as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False
) -> None:
    """Show every node, its link and what it serves.

    Example: heliograph lab status
    """
    status = ask(folder or default_folder(), {"do": "status"})
    if as_json:
        print(json.dumps(status))
    else:
        Console().print(_table(status))


@app.command("profiles")
def lab_profiles(as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False) -> None:
    """List the kinds of link there are.

    Example: heliograph lab profiles
    """
    notes = {name: load_profile(name).note for name in profile_names()}
    if as_json:
        print(json.dumps(notes))
        return
    for name, note in notes.items():
        print(f"{name:8} {note}")


# --- how it is told ---------------------------------------------------------------------------------------------------


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _order(folder: Path | None, what: str, name: str) -> None:
    print(ask(folder or default_folder(), {"do": what, "name": name})["said"])


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


@contextlib.contextmanager
def _ends_in_order() -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the lab; more of them don't disturb that."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(_number: int, _frame: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def _view() -> "Iterator[Callable[[dict[str, Any]], None]]":
    """Draws the state over and over on a terminal, and nothing elsewhere."""
    console = Console()
    if not console.is_terminal:
        yield lambda status: None
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda status: live.update(_table(status), refresh=True)


def _table(status: dict[str, Any]) -> Table:
    hub = "running" if status["hub"]["runs"] else "killed"
    table = Table(
        title=f"hub {hub}; links by {status['links']['kind']}", title_justify="left", box=None, padding=(0, 1, 0, 0)
    )
    # Names are what one has to type: they are never cut short, however narrow the terminal is.
    table.add_column("node", no_wrap=True, min_width=max(len(node["node"]) for node in status["nodes"]))
    table.add_column("ring", no_wrap=True)
    for column in ("link", "phase", "active"):
        table.add_column(column, overflow="fold")
    for column in ("received", "p95", "outbox"):
        table.add_column(column, justify="right", no_wrap=True)
    for node in status["nodes"]:
        models = node["models"].values()
        link = node["link"] + (", not connected" if node["link"] == "up" and node["runs"] > node["connected"] else "")
        table.add_row(
            node["node"],
            node["ring"],
            f"{node['profile']}: {link}",
            "killed" if not node["runs"] else ", ".join(facts["phase"] for facts in models) or "waiting",
            ", ".join(facts["active"] or "-" for facts in models) or "-",
            f"{node['bytes_received']:,}",
            ", ".join(_ms(facts["p95_ms"]) for facts in models) or "-",
            str(node["outbox"]),
        )
    return table


def _greeting(status: dict[str, Any]) -> str:
    links = status["links"]
    how = "two network namespaces each" if links["kind"] == "namespaces" else f"TCP proxies: {links['why']}"
    hub = status["hub"]["folder"]
    keys = f"{hub}/keys"
    return f"""
The lab stands in {status["folder"]}; links by {how}. In another terminal:

  export {ENVIRONMENT}={status["folder"]} HELIOGRAPH_HUB={hub}
  heliograph lab cut canary; heliograph lab restore canary; heliograph lab kill hub; heliograph lab status

To give the nodes something to serve (BUNDLE: a folder with release.toml and files, of MODEL):

  heliograph release add BUNDLE
  heliograph release sign MODEL@VERSION --key {keys}/sign-MODEL.key
  heliograph release approve MODEL@VERSION --key {keys}/approve-MODEL-1.key --key {keys}/approve-MODEL-2.key
  heliograph rollout start MODEL@VERSION
  heliograph lab load canary --rps 20

Ctrl-C ends everything.
"""
