"""[IO] `heliograph fleet`."""

from typing import Annotated, Any

import typer

from heliograph.names import parse_node
from heliograph_hub.client import HubClient
from heliograph_hub.commands import assigning
from heliograph_hub.commands.terminal import Hub, Json, group, model_line, print_json, table, when

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
        policy = "-" if node["policy"] is None else str(node["policy"])
        name = f"{node['site']}/{node['node']}"
        rows.append((name, node["ring"], node["link"], heard, str(node["bytes_received"]), policy, models))
    table(("node", "ring", "link", "last heard", "bytes received", "policy", "models"), rows)
    for node in answer:
        _show_alarm(f"{node['site']}/{node['node']}", node)


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
    _show_alarm(name, answer)
    assignment, deny = answer["assignment"], answer["deny"]
    if answer["agent"] is None:
        print(f"assignment {assignment['number']}; the node has not said hello yet")
    else:
        print(f"assignment {assignment['number']}, the node has {assignment['echoed']}")
        print(f"denials {deny['count']}, {'all that are in force' if deny['acknowledged'] else 'NOT those in force'}")
        spent = answer["spent"]
        print(f"policy {answer['policy']}; content fetched today {spent['day']} bytes, this month {spent['month']}")
        if answer["clock"]:
            print(f"clock: {answer['clock']}")
    _show_stated(answer)
    for model, m in answer["models"].items():
        numbers = f", config {m['active']['config']}, policy {m['active']['policy']}" if m["active"] else ""
        print(model_line(model, m) + numbers + (f", waiting for {m['waiting']}" if m["waiting"] else ""))
        for sentence in m["stale"]:
            print(f"  BEHIND: {sentence}")
        for refusal in m["refused"]:
            name = refusal["release"] or refusal["digest"][:16]
            print(f"  refused {name} (directive {refusal['number']}): {refusal['reason']}")
    for returned in answer["returned"]:
        print(returned["says"])
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
            (lane, *(str(c[k]) for k in ("kept", "merged", "lost", "missing", "dropped")))
            for lane, c in answer["records"].items()
        ]
        table(("records of lane", "kept", "merged", "lost", "missing", "dropped by age"), rows)
    for what, count in answer["not_counted"].items():
        print(f"{count['count']} messages {what}; the last: {count['last']}")


@app.command("timeline")
def fleet_timeline(
    name: Annotated[str, typer.Argument(metavar="SITE/NODE")],
    since: Annotated[
        str, typer.Option("--since", metavar="WHEN", help="None older: 90m, 12h, 3d, 2w ago, or a time of UTC.")
    ] = "",
    until: Annotated[str, typer.Option("--until", metavar="WHEN", help="None newer; as --since.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=500, help="So many rows at most, the newest.")] = 100,
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Show what happened to a node, the newest last: what it told, and what was done about it at this hub.

    A way back says what was given up and why, the threshold and what was measured, who began it, and what serves again.

    Example: heliograph fleet timeline lab/pi-1 --since 3d --hub ./hub
    """
    from time import time

    from heliograph_hub.timeline import lines, moment

    site, node = parse_node(name)
    query = [f"limit={limit}"]
    for end, text in (("since", since), ("until", until)):
        query += [f"{end}={moment(text, int(time()))}"] if text else []
    answer = HubClient(where).get(f"/v1/fleet/{site}/{node}/timeline?{'&'.join(query)}")
    if as_json:
        print_json(answer)
        return
    for line in lines(answer):
        print(line)


@app.command("drift")
def fleet_drift(where: Hub = "", as_json: Json = False) -> None:
    """Show where nodes differ from what their ring is told, and whether policy allows it.

    A gap within policy needs nobody: it closes by itself, or waits for what its reason names.

    Example: heliograph fleet drift --hub ./hub
    """
    answer = HubClient(where).get("/v1/fleet/drift")
    if as_json:
        print_json(answer)
        return
    against = [gap for gap in answer["gaps"] if not gap["within_policy"]]
    within = [gap for gap in answer["gaps"] if gap["within_policy"]]
    if against:
        print("NOT allowed by policy, somebody has to act:")
        _show_gaps(against)
    if within:
        print("within policy, tolerable for now:")
        _show_gaps(within)
    print(f"{answer['level']} of {answer['nodes']} nodes have all that they are told")
    print(f"gaps within policy: {len(within)}, against it: {len(against)}")
    if answer["never_reported"]:
        print("never reported: " + ", ".join(answer["never_reported"]))


@app.command("stale")
def fleet_stale(where: Hub = "", as_json: Json = False) -> None:
    """Show who is further behind than policy allows, which immediate items are missing, and who is silent.

    Example: heliograph fleet stale --hub ./hub
    """
    answer = HubClient(where).get("/v1/fleet/stale")
    if as_json:
        print_json(answer)
        return
    if answer["behind"]:
        print("further behind than policy allows:")
    for one in answer["behind"]:
        print(
            f"  {one['site']}/{one['node']}  ring {one['ring']}"
            + (", silent: as it last said" if one["silent"] else "")
        )
        for said in one["says"] or one["own"]:
            print(f"    {said['about']}: {said['sentence']}")
    late = [row for row in answer["immediate"] if row["late"]]
    if late:
        print("not acknowledged in time:")
    for row in late:
        print(f"  {row['node']}  ring {row['ring']}, policy {row['policy']}: LATE: {', '.join(row['late'])}")
        if row["why"]:
            print(f"    {row['why']}")
    for row in answer["immediate"]:
        for item, until in row["due"]:
            print(f"{row['node']} has until {when(until)} UTC for {item}: within policy")
    if answer["silent"]:
        heard = [
            (f"{n['site']}/{n['node']}", n["ring"], "never" if n["last_heard"] is None else when(n["last_heard"]))
            for n in answer["silent"]
        ]
        table(("silent, nobody knows what it runs", "ring", "last heard (UTC)"), heard)
    if not answer["behind"] and not late:
        print(f"none of {answer['nodes']} nodes is further behind than its policy allows, as far as they said")


assigning.add_to(app)


def _show_alarm(name: str, answer: dict[str, Any]) -> None:
    if answer["alarm"]:
        print(
            f"ALARM: {name} went back: {answer['alarm']['went_back']}. An older copy of its storage runs, there or on "
            f"another machine: look, then let it join anew (heliograph fleet token {name})"
        )


def _show_gaps(found: list[dict[str, Any]]) -> None:
    """A gap in two lines, so that they can be read in a narrow terminal."""
    for gap in found:
        what = gap["what"] + (f" of {gap['model']}" if gap["model"] else "")
        print(f"  {gap['site']}/{gap['node']}  {what}: has {gap['has']}, told {gap['wanted']}")
        silent = " (silent: as it last said)" if gap["silent"] else ""
        print("    " + "; ".join([gap["why"] + silent, *gap["against"]]))


def _show_stated(answer: dict[str, Any]) -> None:
    """What was stated of a node, and how far that has come."""
    if answer["removed_at"] is not None:
        print(f"REMOVED at {when(answer['removed_at'])} UTC: what it sends counts for nothing")
    waiting = answer["waiting_assignment"]
    if waiting is not None:
        said = f"{waiting['have']} of {waiting['need']} signatures"
        print(f"assignment {waiting['number']} into ring {waiting['ring']} waits for protected's keys: {said}")
    stated = [f"{key}={value}" for key, value in sorted(answer["labels"].items())]
    stated += [f"pinned to {model}@{version}" for model, version in sorted(answer["pins"].items())]
    stated += [f"relay {answer['relay']}"] if answer["relay"] else []
    if stated:
        print("stated: " + ", ".join(stated))
    for declined in answer["declined"]:
        print(f"declined {declined['document']} {declined['number']}: {declined['reason']}")
    for given in answer["commands"]:
        about = f" {given['model']}" if given["model"] else ""
        at = f" at {when(given['at'])}" if given["at"] else f" since {when(given['given_at'])}"
        came = f": {given['outcome']}" if given["outcome"] else ""
        print(f"command {given['number']} {given['kind']}{about}: {given['state']}{at} UTC{came}")
    for former in answer["former_keys"]:
        print(f"key {former['key'][:16]} was {former['why']} at {when(former['ended_at'])} UTC")
