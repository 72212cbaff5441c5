"""[IO] Finds the subcommand, runs it, and turns every ending but Ctrl-C into an exit code and at most one line.

Subcommands come from entry points of the group `heliograph.commands` (a `typer.Typer` each); only the one that was
asked for is imported, so that `heliograph delta` doesn't load the hub. Data goes to stdout, everything else to stderr.
"""

import os
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from heliograph import __version__
from heliograph.errors import ConfigError, HeliographError, shown

GROUP = "heliograph.commands"
_PROGRAM = "heliograph"


def run(args: list[str]) -> int:
    """Runs one command line and returns its exit code.

    Raises:
        KeyboardInterrupt: by Ctrl-C.
    """
    try:
        code = _run(args)
        sys.stdout.flush()
    except HeliographError as error:
        code = _say(str(error), error.exit_code)
    except BrokenPipeError:
        # What is still buffered would raise again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        code = _say(f"{error.filename or 'the system'}: {error.strerror or error}", 1)
    return code


def _say(message: str, code: int) -> int:
    print(f"{_PROGRAM}: {shown(' '.join(message.split()))}", file=sys.stderr)
    return code


def _run(args: list[str]) -> int:
    try:
        typer.main.get_command(_root())(args=args, prog_name=_PROGRAM)
    except SystemExit as end:
        if end.code == 130:  # how typer reports Ctrl-C
            raise KeyboardInterrupt from None
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


class _Subcommands(TyperGroup):
    """The group of all subcommands, each imported when it is looked at."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all subcommands, in order."""
        return sorted(point.name for point in entry_points(group=GROUP))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The subcommand, imported; one that says what is missing, if its extra is not installed; else None."""
        found = entry_points(group=GROUP, name=cmd_name)
        return _loaded(next(iter(found))) if found else None


def _loaded(point: EntryPoint) -> Any:
    try:
        app = point.load()
    except ModuleNotFoundError as error:
        return _absent(point, error.name or str(error))
    command = typer.main.get_group(app)
    command.name = point.name
    return command


def _absent(point: EntryPoint, module: str) -> TyperCommand:
    # Packages are called heliograph_SIDE, and what a side needs is the extra SIDE (pyproject.toml).
    _, _, extra = point.module.partition(".")[0].partition("_")
    if module.partition(".")[0].startswith(_PROGRAM) or not extra:
        sentence = f"{point.name} can't run: the module {module} is missing; install heliograph again"
    else:
        sentence = f"{point.name} needs {module}: pip install 'heliograph[{extra}]'"

    def refuse() -> None:
        raise ConfigError(sentence)

    return TyperCommand(
        name=point.name,
        help=sentence,
        callback=refuse,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


def _root() -> typer.Typer:
    root = typer.Typer(cls=_Subcommands, add_completion=False, rich_markup_mode=None, no_args_is_help=True)

    @root.callback()
    def heliograph(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
        ] = False,
    ) -> None:
        """Ships signed machine-learning releases to edge nodes over MQTT, and proves them before they serve."""

    return root


def _version(is_asked: bool) -> None:
    if is_asked:
        print(f"{_PROGRAM} {__version__}")
        raise typer.Exit
