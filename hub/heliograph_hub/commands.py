"""[IO] `heliograph hub`, `release`, `key`, `rollout`, `fleet`: what operators type.

Every command but `hub init` and `hub run` asks a running hub through its API and never opens its files. Keys that sign,
approve or deny are read here, by the operator's process, and never leave it. Data goes to stdout, the rest to
stderr; `--json` prints what the API answered.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from heliograph.errors import ConfigError, RefusedError
from heliograph.names import RINGS, check_name, parse_node, parse_release
from heliograph_hub.client import ENVIRONMENT, HubClient


def _app(text: str) -> typer.Typer:
    return typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)


hub = _app("Make and run a hub: the authority of one realm.")
release = _app("Add, sign, approve, deny and look at releases.")
key = _app("Look at the realm's keys, and deny one that was stolen.")
rollout = _app("Take a release through the rings.")
fleet = _app("Look at nodes, enrol them, put sites into rings.")

Hub = Annotated[
    str,
    typer.Option(
        "--hub", envvar=ENVIRONMENT, metavar="DIR|URL", help="The hub's folder, or its URL.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
ReleaseName = Annotated[str, typer.Argument(metavar="MODEL@VERSION", help="Such as digits@1.0.0.")]
Keys = Annotated[
    list[Path], typer.Option("--key", metavar="FILE", help="A key of this duty; give it once for each key that signs.")
]
DenyKeys = Annotated[
    list[Path], typer.Option("--key", metavar="FILE", help="A key of the role; give it once for each key that signs.")
]
Reason = Annotated[str, typer.Option("--reason", help="Why, in few words: every node is told.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The hub's folder.")]


# --- hub ------------------------------------------------------------------------------------------------------------


@hub.command("init")
def hub_init(
    folder: Folder,
    realm: Annotated[str, typer.Option("--realm", help="Name of the fleet: a-z, 0-9 and '-'.")] = "dev",
) -> None:
    """Make a development realm: its keys, its trust metadata and its empty registry.

    Example: heliograph hub init ./hub --realm demo
    """
    from heliograph_hub.service import init

    for line in init(folder, realm):
        _say(line)
    print(folder)


@hub.command("run")
def hub_run(
    folder: Folder,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The broker's port on loopback.")] = 18830,
    rate: Annotated[
        int | None, typer.Option("--rate", metavar="BYTES_PER_S", min=1, help="Send no more than this to all nodes.")
    ] = None,
    node_rate: Annotated[
        int | None,
        typer.Option("--node-rate", metavar="BYTES_PER_S", min=1, help="Send no more than this to one node."),
    ] = None,
) -> None:
    """Run broker, service and operator API until Ctrl-C.

    Example: heliograph hub run ./hub --port 18830 --rate 200000
    """
    from heliograph_hub.service import run

    run(folder, port, rate, node_rate, _say)


# --- release --------------------------------------------------------------------------------------------------------


@release.command("add")
def release_add(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="A folder with release.toml and files.")] = None,
    where: Hub = "",
    explain: Annotated[bool, typer.Option("--explain", help="Print the fields of release.toml and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Make an immutable release of a folder: packed, named by digest, kept by the hub. Runs no model.

    Example: heliograph release add ./digits-1.0.0 --hub ./hub
    """
    if explain:
        _explain(as_json)
        return
    if folder is None:
        raise ConfigError("no folder named: heliograph release add DIR (or --explain)")
    answer = HubClient(where).post("/v1/releases", {"dir": str(folder.absolute())})
    for line in answer["said"]:
        _say(line)
    if as_json:
        _print_json(answer)
        return
    state = "added" if answer["new"] else "was there already, unchanged:"
    _say(f"{answer['release']} {state} {answer['files']} files, {answer['bytes']} bytes")
    print(answer["digest"])


def _explain(as_json: bool) -> None:
    from heliograph.manifest import explain

    rows = explain()
    if as_json:
        _print_json([dict(zip(("field", "type", "default", "meaning"), row, strict=True)) for row in rows])
        return
    _table(("field of release.toml", "type", "default", "meaning"), rows)
    _say("computed, not written: format, and length, sha256 and pages of each file; files may be a list of names")


@release.command("sign")
def release_sign(name: ReleaseName, key: Keys, where: Hub = "", as_json: Json = False) -> None:
    """Sign a release: this build is what it says. One key of role sign-MODEL.

    Example: heliograph release sign digits@1.0.0 --key hub/keys/sign-digits.key --hub ./hub
    """
    _do_duty("sign", name, key, where, as_json)


@release.command("approve")
def release_approve(name: ReleaseName, key: Keys, where: Hub = "", as_json: Json = False) -> None:
    """Approve a release: it may run. Two of three keys of role approve-MODEL, together or one after the other.

    Example: heliograph release approve digits@1.0.0 --key a.key --key b.key --hub ./hub
    """
    _do_duty("approve", name, key, where, as_json)


def _do_duty(duty: str, name: str, files: Iterable[Path], where: str, as_json: bool) -> None:
    from heliograph_hub.authority import load_key

    model, version = parse_release(name)
    keys = [load_key(file) for file in files]
    client = HubClient(where)
    answer: dict[str, Any] = {}
    for file, key in zip(files, keys, strict=True):
        request = client.post(f"/v1/releases/{model}/{version}/requests", {"duty": duty})
        if request["done"]:
            answer = request
            break
        if key.keyid.hex() not in request["keyids"]:
            raise RefusedError(
                f"{file} holds key {key.keyid.hex()[:16]}, which can't {duty} {model}: keys that count are "
                + ", ".join(keyid[:16] for keyid in request["keyids"])
            )
        signature = key.sign(bytes.fromhex(request["bytes"])).hex()
        answer = client.post(
            f"/v1/candidates/{request['candidate']}", {"keyid": key.keyid.hex(), "signature": signature}
        )
        for line in answer.get("said", []):
            _say(line)
    if as_json:
        _print_json(answer)
        return
    verb = {"sign": "signed", "approve": "approved"}[duty]
    have, need = answer["have"], answer["need"]
    print(f"{name} is {verb}" if answer["done"] else f"{name}: {have} of {need} signatures, {need - have} more to go")


@release.command("deny")
def release_deny(
    name: Annotated[
        str, typer.Argument(metavar="MODEL@VERSION|DIGEST", help="A release, or the digest of a release or recipe.")
    ],
    key: DenyKeys,
    reason: Reason = "",
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Deny a release or recipe for good: nothing new starts it and nodes go back to their fallback.

    One key of role deny is enough; a second one, together or later, stops it also on nodes that have nothing else.

    Example: heliograph release deny digits@1.1.0 --key hub/keys/deny-1.key --reason "wrong labels" --hub ./hub
    """
    _deny("deny", {"releases": [name], "reason": reason}, name, key, where, as_json)


@release.command("list")
def release_list(where: Hub = "", as_json: Json = False) -> None:
    """List all releases and how far they are signed and approved.

    Example: heliograph release list --hub ./hub
    """
    answer = HubClient(where).get("/v1/releases")
    if as_json:
        _print_json(answer)
        return
    _table(
        ("release", "digest", "signed", "approved", "files", "bytes", "denied"),
        [
            (
                r["release"],
                r["digest"][:16],
                _of(r["signed"]),
                _of(r["approved"]),
                str(r["files"]),
                str(r["bytes"]),
                _denied(r["denied"]),
            )
            for r in answer
        ],
    )


@release.command("show")
def release_show(name: ReleaseName, where: Hub = "", as_json: Json = False) -> None:
    """Show one release: its files, who signed, and what each delta to it costs.

    Example: heliograph release show digits@1.1.0 --hub ./hub
    """
    model, version = parse_release(name)
    answer = HubClient(where).get(f"/v1/releases/{model}/{version}")
    if as_json:
        _print_json(answer)
        return
    print(f"{answer['release']}  {answer['digest']}")
    if answer["denied"]:
        print(f"DENIED {_denied(answer['denied'])}")
    print(f"signed {_of(answer['signed'])}, approved {_of(answer['approved'])}, in full {answer['full_bytes']} bytes")
    _table(("file", "bytes", "sha256"), [(f["name"], str(f["length"]), f["sha256"]) for f in answer["files"]])
    if answer["deltas"]:
        _table(
            ("delta of", "from", "costs", "full costs", "offered"),
            [
                (
                    d["file"],
                    ", ".join(d["from"]),
                    str(d["bytes"]),
                    str(d["full_bytes"]),
                    "yes" if d["offered"] else "no",
                )
                for d in answer["deltas"]
            ],
        )
    if answer["costs"]:
        _table(("node holds", "bytes to fetch"), [(held, str(cost)) for held, cost in answer["costs"].items()])


# --- key ------------------------------------------------------------------------------------------------------------


@key.command("deny")
def key_deny(
    keyid: Annotated[str, typer.Argument(metavar="KEYID", help="64 hex digits, or the first 16 of a key in use.")],
    key: DenyKeys,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="MODEL@VERSION", help="A release that stays good all the same; repeatable."),
    ] = None,
    reason: Reason = "",
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Deny a key for good: everything it signed or approved, except what is kept. Two keys of role deny-key.

    Example: heliograph key deny 3f9c1d22a0b7e614 --key a.key --key b.key --keep digits@1.0.0 --hub ./hub
    """
    asked = {"keys": [keyid.lower()], "keep": keep or [], "reason": reason}
    _deny("deny-key", asked, f"key {keyid[:16]}", key, where, as_json)


@key.command("list")
def key_list(where: Hub = "", as_json: Json = False) -> None:
    """List the keys of every role, and which of them are denied.

    Example: heliograph key list --hub ./hub
    """
    answer = HubClient(where).get("/v1/keys")
    if as_json:
        _print_json(answer)
        return
    _table(
        ("role", "key id", "must sign", "denied"),
        [(k["role"], k["keyid"], str(k["threshold"]), "denied" if k["denied"] else "") for k in answer],
    )


def _deny(type_: str, asked: dict[str, Any], what: str, files: list[Path], where: str, as_json: bool) -> None:
    """Has the hub word the denial, signs it here, and hands the signatures in."""
    from heliograph.protocol import DENIALS
    from heliograph.statement import signed_bytes
    from heliograph_hub.authority import load_key

    keys = [load_key(file) for file in files]
    client = HubClient(where)
    request = client.post("/v1/denials/requests", {"type": type_, **asked})
    for file, key in zip(files, keys, strict=True):
        if key.keyid.hex() not in request["keyids"]:
            raise RefusedError(
                f"{file} holds key {key.keyid.hex()[:16]}, which can't sign this denial: keys that count are "
                + ", ".join(keyid[:16] for keyid in request["keyids"])
            )
    payload = bytes.fromhex(request["payload"])
    DENIALS[type_].decode(payload)  # signed is a denial of this type, whatever the hub sent
    message = signed_bytes(type_, payload)
    signatures = {key.keyid.hex(): key.sign(message).hex() for key in keys}
    answer = client.post("/v1/denials", {"type": type_, "payload": request["payload"], "signatures": signatures})
    for line in answer["said"]:
        _say(line)
    if request["have"]:
        _say("signed was the denial there is, with its reason and time")
    if as_json:
        _print_json(answer)
        return
    have, need = answer["have"], answer["need"]
    if answer["in_force_at"] is None:
        print(f"{what}: {have} of {need} signatures, {need - have} more to go; nothing is denied yet")
        return
    final = "final" if answer["final"] else "a node that has nothing else serves it on until a second key denies it"
    print(f"{what} is denied with {have} signature{'s' if have > 1 else ''}: {final}")
    if answer["denied"]:
        print("denied now: " + ", ".join(answer["denied"]))


# --- rollout --------------------------------------------------------------------------------------------------------


@rollout.command("start")
def rollout_start(name: ReleaseName, where: Hub = "", as_json: Json = False) -> None:
    """Start a rollout: directives are signed for canary, early and general, and canary's is released.

    Example: heliograph rollout start digits@1.0.0 --hub ./hub
    """
    parse_release(name)
    _show_rollout(HubClient(where).post("/v1/rollouts", {"release": name}), as_json)


@rollout.command("promote")
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


@rollout.command("status")
def rollout_status(name: ReleaseName, where: Hub = "", as_json: Json = False) -> None:
    """Show each ring of a rollout: released or waiting, and which nodes serve, refused or are silent.

    Example: heliograph rollout status digits@1.0.0 --hub ./hub
    """
    model, version = parse_release(name)
    _show_rollout(HubClient(where).get(f"/v1/rollouts/{model}/{version}"), as_json)


def _show_rollout(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(answer)
        return
    if answer["denied"]:
        print(f"{answer['release']} is DENIED {_denied(answer['denied'])}")
    _table(
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


# --- fleet ----------------------------------------------------------------------------------------------------------


@fleet.command("list")
def fleet_list(where: Hub = "", as_json: Json = False) -> None:
    """List all nodes as they last reported.

    Example: heliograph fleet list --hub ./hub
    """
    answer = HubClient(where).get("/v1/fleet")
    if as_json:
        _print_json(answer)
        return
    rows = []
    for node in answer:
        models = ", ".join(_model_line(name, m) for name, m in node["models"].items())
        heard = "never" if node["last_heard"] is None else _when(node["last_heard"])
        rows.append(
            (f"{node['site']}/{node['node']}", node["ring"], node["link"], heard, str(node["bytes_received"]), models)
        )
    _table(("node", "ring", "link", "last heard", "bytes received", "models"), rows)


@fleet.command("show")
def fleet_show(
    name: Annotated[str, typer.Argument(metavar="SITE/NODE")], where: Hub = "", as_json: Json = False
) -> None:
    """Show one node: what it runs, how it answers, what it refused and why, its records, and what did not count.

    Example: heliograph fleet show lab/pi-1 --hub ./hub
    """
    site, node = parse_node(name)
    answer = HubClient(where).get(f"/v1/fleet/{site}/{node}")
    if as_json:
        _print_json(answer)
        return
    heard = "never" if answer["last_heard"] is None else _when(answer["last_heard"])
    print(f"{name}  ring {answer['ring']}, link {answer['link']}, last heard {heard}, key {answer['key'][:16]}")
    assignment, deny = answer["assignment"], answer["deny"]
    if answer["agent"] is None:
        print(f"assignment {assignment['number']}; the node has not said hello yet")
    else:
        print(f"assignment {assignment['number']}, the node has {assignment['echoed']}")
        print(f"denials {deny['count']}, {'all that are in force' if deny['acknowledged'] else 'NOT those in force'}")
    for model, m in answer["models"].items():
        print(_model_line(model, m) + (f", waiting for {m['waiting']}" if m["waiting"] else ""))
        for refusal in m["refused"]:
            name = refusal["release"] or refusal["digest"][:16]
            print(f"  refused {name} (directive {refusal['number']}): {refusal['reason']}")
    served = [
        (
            r["release"] or f"{model} {r['digest'][:16]}",
            *("-" if r[k] is None else str(r[k]) for k in ("requests", "errors", "restarts", "p50_ms", "p95_ms")),
            _when(r["from"]),
            _when(r["to"]),
        )
        for model, releases in answer["serving"].items()
        for r in releases
    ]
    if served:
        _table(("answered lately", "requests", "errors", "restarts", "p50 ms", "p95 ms", "from", "to"), served)
    if answer["records"]:
        rows = [
            (lane, *(str(c[k]) for k in ("kept", "merged", "lost", "missing"))) for lane, c in answer["records"].items()
        ]
        _table(("records of lane", "kept", "merged", "lost", "missing"), rows)
    for what, count in answer["not_counted"].items():
        print(f"{count['count']} messages {what}; the last: {count['last']}")


@fleet.command("token")
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
    _say(f"enrols {name} once, until {_when(answer['expires'])} UTC; keep it secret")
    _print_json(answer) if as_json else print(answer["join"])


@fleet.command("assign")
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
    _print_json(answer) if as_json else print(f"site {site} is in ring {ring}: {len(answer['nodes'])} nodes assigned")


# --- printing -------------------------------------------------------------------------------------------------------


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def _table(titles: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
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


def _of(duty: dict[str, Any]) -> str:
    return f"{duty['have']} of {duty['need']}"


def _denied(denied: dict[str, Any] | None) -> str:
    if denied is None:
        return ""
    how = ("by key" if denied["type"] == "deny-key" else "by digest") + (", final" if denied["final"] else "")
    return how + (f": {denied['reason']}" if denied["reason"] else "")


def _model_line(model: str, report: dict[str, Any]) -> str:
    active = report["active"]
    name = (active["release"] or active["digest"][:16]) if active else "nothing"
    return f"{model}: {name} ({report['phase']})"


def _when(at: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")
