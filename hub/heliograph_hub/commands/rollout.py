"""[IO] `heliograph rollout`."""

from typing import Annotated, Any

import typer

from heliograph.errors import ConfigError
from heliograph.names import RINGS, parse_release
from heliograph_hub.client import HubClient
from heliograph_hub.commands.terminal import Hub, Json, ReleaseName, denied_line, group, print_json, table

app = group("Take a release through the rings.")


@app.command("start")
def rollout_start(name: ReleaseName, where: Hub = "", as_json: Json = False) -> None:
    """Start a rollout: directives are signed for canary, early and general, and canary's is released.

    Example: heliograph rollout start digits@1.0.0 --hub ./hub
    """
    parse_release(name)
    _show_rollout(HubClient(where).post("/v1/rollouts", {"release": name}), as_json)


@app.command("promote")
def rollout_promote(
    name: ReleaseName,
    to: Annotated[str | None, typer.Option("--to", metavar="RING", help="Release every ring up to this one.")] = None,
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Release a rollout to its next ring.

    Example: heliograph rollout promote digits@1.0.0 --to general --hub ./hub
    """
    model, version = parse_release(name)
    if to is not None and to not in RINGS:
        raise ConfigError(f"no ring {to!r}: rings are {', '.join(RINGS)}")
    _show_rollout(HubClient(where).post(f"/v1/rollouts/{model}/{version}/promote", {"to": to}), as_json)


@app.command("status")
def rollout_status(name: ReleaseName, where: Hub = "", as_json: Json = False) -> None:
    """Show each ring of a rollout: released or waiting, and which nodes serve, refused or are silent.

    Example: heliograph rollout status digits@1.0.0 --hub ./hub
    """
    model, version = parse_release(name)
    _show_rollout(HubClient(where).get(f"/v1/rollouts/{model}/{version}"), as_json)


def _show_rollout(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    if answer["denied"]:
        print(f"{answer['release']} is DENIED {denied_line(answer['denied'])}")
    table(
        ("ring", "state", "number", "serving", "refused", "silent", "under way"),
        [
            (
                r["ring"],
                r["state"],
                "" if r["number"] is None else str(r["number"]),
                *(str(len(r[key])) for key in ("serving", "refused", "silent", "under_way")),
            )
            for r in answer["rings"]
        ],
    )
    for ring in answer["rings"]:
        for refusal in ring["refused"]:
            print(f"{refusal['node']} refused: {refusal['reason']}")
