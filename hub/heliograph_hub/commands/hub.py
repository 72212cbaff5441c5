"""[IO] `heliograph hub`: make and run one."""

import time
from pathlib import Path
from typing import Annotated

import typer

from heliograph.errors import ConfigError
from heliograph_hub.commands.terminal import Folder, Hub, Json, group, print_json, say, when

REQUEST_FILE = "to-sign.json"
app = group("Make and run a hub: the authority of one realm.")


@app.command("init")
def hub_init(
    folder: Folder,
    realm: Annotated[str, typer.Option("--realm", help="Name of the fleet: a-z, 0-9 and '-'.")] = "dev",
    ca: Annotated[
        Path | None,
        typer.Option("--ca", metavar="FILE", help="An Ed25519 CA for the broker (PEM); left out: one is made."),
    ] = None,
    ca_key: Annotated[Path | None, typer.Option("--ca-key", metavar="FILE", help="Its key (PEM).")] = None,
    offline_keys: Annotated[
        list[Path] | None,
        typer.Option("--offline-keys", metavar="KEYDIR", help="A ceremony: a folder of ROLE-1.pub, …; repeatable."),
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option("--threshold", metavar="ROLE=N", help="So many keys of a role must sign; repeatable."),
    ] = None,
    signed: Annotated[
        list[Path] | None,
        typer.Option("--signed", metavar="FILE", help="Go on with a ceremony: add what was signed; repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where a ceremony writes what is to be signed; DIR/to-sign.json."),
    ] = None,
) -> None:
    """Make a development realm: its keys, its trust metadata, its empty registry and the CA of its broker.

    With --offline-keys: a ceremony. Only the online keys are made here; root and targets are signed elsewhere, by
    `heliograph key sign FILE`, and handed in by `heliograph hub init DIR --signed FILE`, until enough have signed.

    Example: heliograph hub init ./hub --realm demo
    """
    from heliograph_hub.founding import init_hub

    if (ca is None) != (ca_key is None):
        raise ConfigError("--ca and --ca-key go together")
    pair = (ca, ca_key) if ca is not None and ca_key is not None else None
    if offline_keys or signed:
        _hold_ceremony(folder, realm, offline_keys or [], threshold or [], signed or [], pair, out)
        return
    if threshold or out:
        raise ConfigError("--threshold and --out belong to a ceremony: name its keys with --offline-keys KEYDIR")
    for line in init_hub(folder, realm, int(time.time()), pair):
        say(line)
    print(folder)


def _hold_ceremony(
    folder: Path,
    realm: str,
    key_folders: list[Path],
    given: list[str],
    signed: list[Path],
    ca: tuple[Path, Path] | None,
    out: Path | None,
) -> None:
    from heliograph_hub import request
    from heliograph_hub.founding import init_ceremony

    thresholds = {}
    for one in given:
        role, equals, number = one.partition("=")
        if not equals or not number.isdecimal() or len(number) > 3:
            raise ConfigError(f"--threshold {one[:60]} is not ROLE=N, such as root=2")
        thresholds[role] = int(number)
    begun = init_ceremony(folder, realm, key_folders, thresholds, signed, int(time.time()), ca)
    for line in begun.said:
        say(line)
    if begun.is_done:
        (out or folder / REQUEST_FILE).unlink(missing_ok=True)
        print(folder)
        return
    request.write(out or folder / REQUEST_FILE, realm, begun.asks)
    print(f"{out or folder / REQUEST_FILE}: to sign: heliograph key sign FILE --key ROOT_OR_TARGETS_KEY")


@app.command("sign-request")
def hub_sign_request(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the file is written.")],
    sign: Annotated[
        list[str] | None, typer.Option("--sign", metavar="MODEL@VERSION", help="A release to be signed; repeatable.")
    ] = None,
    approve: Annotated[
        list[str] | None,
        typer.Option("--approve", metavar="MODEL@VERSION", help="A release to be approved; repeatable."),
    ] = None,
    deny: Annotated[
        list[str] | None,
        typer.Option("--deny", metavar="MODEL@VERSION|DIGEST", help="A release to be denied; repeatable."),
    ] = None,
    deny_key: Annotated[
        list[str] | None, typer.Option("--deny-key", metavar="KEYID", help="A key to be denied; repeatable.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why it is denied.")] = "",
    policy: Annotated[
        list[Path] | None, typer.Option("--policy", metavar="FILE", help="A policy to be set (TOML); repeatable.")
    ] = None,
    config: Annotated[
        list[Path] | None, typer.Option("--config", metavar="FILE", help="A config to be set (TOML); repeatable.")
    ] = None,
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Write what offline keys are to sign to a file: what is named, and all that waits for signatures already.

    That is a change of keys, denials and documents whose keys were rotated out, protected's directives. Carry the file
    to the keys (`heliograph key sign FILE --key KEY`), and back (`heliograph key add FILE`).

    Example: heliograph hub sign-request --approve digits@1.0.0 --out approve.json --hub ./hub
    """
    from heliograph_hub.commands.requesting import request_signatures

    wanted = {"sign": sign or [], "approve": approve or [], "deny": deny or [], "deny-key": deny_key or []}
    request_signatures(wanted, {"policy": policy or [], "config": config or []}, reason, out, where, as_json)


keys = group("Look after what is signed.")
app.add_typer(keys, name="keys")


@keys.callback()
def hub_keys() -> None:
    """Look after what is signed."""


@keys.command("due")
def hub_keys_due(where: Hub = "", as_json: Json = False) -> None:
    """List what is signed and ends, what is due first: a third of its life is left, or signatures are missing.

    Ends with exit code 4 if anything is due.

    Example: heliograph hub keys due --hub ./hub
    """
    from heliograph_hub.client import HubClient
    from heliograph_hub.commands.terminal import table

    rows = HubClient(where).get("/v1/keys/due")
    if as_json:
        print_json(rows)
    else:
        table(
            ("what", "ends", "days left", "due", "do"),
            [
                (
                    row["what"],
                    when(row["expires"]) if row["expires"] else "",
                    str(row["left_s"] // 86_400) if row["expires"] else "",
                    "DUE" if row["due"] else "",
                    row["remedy"],
                )
                for row in rows
            ],
        )
    if any(row["due"] for row in rows):
        raise typer.Exit(4)


@app.command("run")
def hub_run(
    folder: Folder,
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="The broker's port for nodes, with TLS.")
    ] = 18830,
    enroll_port: Annotated[
        int | None,
        typer.Option("--enroll-port", min=1, max=65535, help="Its port for new nodes; left out: the next one."),
    ] = None,
    listen: Annotated[str, typer.Option("--listen", metavar="ADDRESS", help="Where both ports are.")] = "127.0.0.1",
    host: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="NAME", help="How nodes reach the hub, repeatable; left out: by that address."),
    ] = None,
    plain_port: Annotated[
        int | None,
        typer.Option("--plain-port", min=1, max=65535, help="Instead: a broker on loopback without TLS, open to all."),
    ] = None,
    api_port: Annotated[
        int | None,
        typer.Option("--api-port", min=1, max=65535, help="A port for operators with a token, with TLS."),
    ] = None,
    rate: Annotated[
        int | None, typer.Option("--rate", metavar="BYTES_PER_S", min=1, help="Send no more than this to all nodes.")
    ] = None,
    node_rate: Annotated[
        int | None,
        typer.Option("--node-rate", metavar="BYTES_PER_S", min=1, help="Send no more than this to one node."),
    ] = None,
) -> None:
    """Run broker, service and operator API until Ctrl-C.

    Example: heliograph hub run ./hub --listen 0.0.0.0 --host hub.example.org
    """
    from heliograph_hub.access import Doors
    from heliograph_hub.process import run

    if plain_port is not None and api_port is not None:
        raise ConfigError("--api-port needs TLS, which --plain-port does without: leave one of them out")
    if plain_port is not None and (host or enroll_port is not None or listen != "127.0.0.1"):
        raise ConfigError("--plain-port is a broker for this machine alone: leave out --listen, --host, --enroll-port")
    if plain_port is not None:
        run(folder, plain_port, rate, node_rate, say)
        return
    if listen in ("0.0.0.0", "::") and not host:  # noqa: S104 - compared, not bound
        raise ConfigError(f"--listen {listen} says not how nodes reach the hub: name it with --host")
    names = tuple(host or ()) + ((listen,) if listen not in ("0.0.0.0", "::") else ())  # noqa: S104
    run(folder, port, rate, node_rate, say, Doors(enroll_port or port % 65535 + 1, listen, names, api_port or 0))


@app.command("token")
def hub_token(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="viewer, releaser, approver, operator or security.")],
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Print a token by which somebody may use the hub's API from elsewhere, for 15 minutes, in one role.

    There: HELIOGRAPH_TOKEN=… HELIOGRAPH_CA=ca.crt heliograph release list --hub https://hub.example.org:18832

    Example: heliograph hub token approver --hub ./hub
    """
    from heliograph_hub.client import HubClient

    answer = HubClient(where).post("/v1/tokens", {"role": role})
    if as_json:
        print_json(answer)
        return
    say(f"good until {when(answer['expires'])} UTC, for role {role}; whoever has it may do what {role}s may")
    print(answer["token"])
