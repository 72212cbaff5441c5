"""[IO] `heliograph config`."""

from pathlib import Path
from typing import Annotated

import typer

from heliograph.names import check_name
from heliograph_hub.commands.documents import set_document, show_document
from heliograph_hub.commands.terminal import DocumentKeys, DryRun, Hub, Json, Number, Yes, group

app = group("Say how a model is to be served: thresholds, flags, parameters.")


@app.command("set")
def config_set(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="TOML; it names its model.")],
    key: DocumentKeys = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Set a model's config: checked, tried on the known fleet, shown who takes it, then signed.

    The same content again changes nothing and keeps its number.

    Example: heliograph config set digits.toml --hub ./hub
    """
    set_document("config", file, key or [], where=where, is_dry=dry_run, is_agreed=yes, as_json=as_json)


@app.command("show")
def config_show(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Left out: all configs, listed.")] = None,
    number: Number = None,
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Show the config of a model, as a file that `config set` takes.

    Example: heliograph config show digits --hub ./hub
    """
    show_document("config", check_name(model, "model") if model is not None else None, number, where, as_json)
