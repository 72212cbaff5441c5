"""[IO] `heliograph hub`: make and run one."""

from pathlib import Path
from typing import Annotated

import typer

from heliograph.errors import ConfigError
from heliograph_hub.commands.terminal import Folder, Hub, Json, group, print_json, say, when

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
) -> None:
    """Make a development realm: its keys, its trust metadata, its empty registry and the CA of its broker.

    Example: heliograph hub init ./hub --realm demo
    """
    from heliograph_hub.service import init

    if (ca is None) != (ca_key is None):
        raise ConfigError("--ca and --ca-key go together")
    for line in init(folder, realm, (ca, ca_key) if ca is not None and ca_key is not None else None):
        say(line)
    print(folder)


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
    from heliograph_hub.process import run
    from heliograph_hub.service import Doors

    if plain_port is not None and api_port is not None:
        raise ConfigError("--api-port needs TLS, which --plain-port does without: leave one of them out")
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
