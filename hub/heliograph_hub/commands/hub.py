"""[IO] `heliograph hub`: make and run one."""

from typing import Annotated

import typer

from heliograph_hub.commands.terminal import Folder, group, say

app = group("Make and run a hub: the authority of one realm.")


@app.command("init")
def hub_init(
    folder: Folder,
    realm: Annotated[str, typer.Option("--realm", help="Name of the fleet: a-z, 0-9 and '-'.")] = "dev",
) -> None:
    """Make a development realm: its keys, its trust metadata and its empty registry.

    Example: heliograph hub init ./hub --realm demo
    """
    from heliograph_hub.service import init

    for line in init(folder, realm):
        say(line)
    print(folder)


@app.command("run")
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
    from heliograph_hub.process import run

    run(folder, port, rate, node_rate, say)
