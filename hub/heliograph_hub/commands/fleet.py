"""[IO] `heliograph fleet`."""

from typing import Annotated

import typer

from heliograph.errors import ConfigError
from heliograph.names import RINGS, check_name, parse_node
from heliograph_hub.client import HubClient
from heliograph_hub.commands.terminal import Hub, Json, group, model_line, print_json, say, table, when

app = group("Look at nodes, enrol them, put sites into rings.")


@app.command("list")
def fleet_list(where: Hub = "", as_json: Json = False) -> None:
    """List all nodes as they last reported.

    Example: heliograph fleet list --hub ./hub
    """
    answer = HubClient(where).get("/v1/fleet")
    if as_json:
        print_json(answer)
        return
    rows = []
    for node in answer:
        models = ", ".join(model_line(name, m) for name, m in node["models"].items())
        heard = "never" if node["last_heard"] is None else when(node["last_heard"])
        rows.append(
            (f"{node['site']}/{node['node']}", node["ring"], node["link"], heard, str(node["bytes_received"]), models)
        )
    table(("node", "ring", "link", "last heard", "bytes received", "models"), rows)


@app.command("show")
def fleet_show(
    name: Annotated[str, typer.Argument(metavar="SITE/NODE")], where: Hub = "", as_json: Json = False
) -> None:
    """Show one node: what it runs, how it answers, what it refused and why, its records, and what did not count.

    Example: heliograph fleet show lab/pi-1 --hub ./hub
    """
    site, node = parse_node(name)
    answer = HubClient(where).get(f"/v1/fleet/{site}/{node}")
    if as_json:
        print_json(answer)
        return
    heard = "never" if answer["last_heard"] is None else when(answer["last_heard"])
    print(f"{name}  ring {answer['ring']}, link {answer['link']}, last heard {heard}, key {answer['key'][:16]}")
    assignment, deny = answer["assignment"], answer["deny"]
    if answer["agent"] is None:
        print(f"assignment {assignment['number']}; the node has not said hello yet")
    else:
        print(f"assignment {assignment['number']}, the node has {assignment['echoed']}")
        print(f"denials {deny['count']}, {'all that are in force' if deny['acknowledged'] else 'NOT those in force'}")
    for model, m in answer["models"].items():
        print(model_line(model, m) + (f", waiting for {m['waiting']}" if m["waiting"] else ""))
        for refusal in m["refused"]:
            name = refusal["release"] or refusal["digest"][:16]
            print(f"  refused {name} (directive {refusal['number']}): {refusal['reason']}")
    served = [
        (
            r["release"] or f"{model} {r['digest'][:16]}",
            *("-" if r[k] is None else str(r[k]) for k in ("requests", "errors", "restarts", "p50_ms", "p95_ms")),
            when(r["from"]),
            when(r["to"]),
        )
        for model, releases in answer["serving"].items()
        for r in releases
    ]
    if served:
        table(("answered lately", "requests", "errors", "restarts", "p50 ms", "p95 ms", "from", "to"), served)
    if answer["records"]:
        rows = [
            (lane, *(str(c[k]) for k in ("kept", "merged", "lost", "missing"))) for lane, c in answer["records"].items()
        ]
        table(("records of lane", "kept", "merged", "lost", "missing"), rows)
    for what, count in answer["not_counted"].items():
        print(f"{count['count']} messages {what}; the last: {count['last']}")


@app.command("token")
def fleet_token(
    name: Annotated[str, typer.Argument(metavar="SITE/NODE")],
    days: Annotated[float, typer.Option("--days", min=0.0001, max=7.0, help="How long it can be used.")] = 7.0,
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Print the join string that enrols one node once: a secret, for `heliograph node join`.

    Example: heliograph fleet token lab/pi-1 --hub ./hub
    """
    site, node = parse_node(name)
    answer = HubClient(where).post("/v1/fleet/tokens", {"site": site, "node": node, "life_s": int(days * 86400)})
    say(f"enrols {name} once, until {when(answer['expires'])} UTC; keep it secret")
    print_json(answer) if as_json else print(answer["join"])


@app.command("assign")
def fleet_assign(
    site: Annotated[str, typer.Argument(metavar="SITE")],
    ring: Annotated[str, typer.Argument(metavar="RING", help="canary, early or general.")],
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Put a site, with all its nodes, into a ring.

    Example: heliograph fleet assign lab canary --hub ./hub
    """
    check_name(site, "site")
    if ring not in RINGS:
        raise ConfigError(f"no ring {ring!r}: rings are {', '.join(RINGS)}")
    answer = HubClient(where).post("/v1/fleet/assignments", {"site": site, "ring": ring})
    print_json(answer) if as_json else print(f"site {site} is in ring {ring}: {len(answer['nodes'])} nodes assigned")
