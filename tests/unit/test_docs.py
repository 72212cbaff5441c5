"""The documents say what the code does."""

import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer
import typer.core

from heliograph.manifest import explain
from heliograph.protocol import TOPICS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "shared").glob("*.md"))]


def test_what_is_made_from_code_is_fresh() -> None:
    check = [sys.executable, str(ROOT / "scripts" / "docs.py"), "--check"]
    result = subprocess.run(check, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_topic_table_names_every_topic_and_the_formats_every_field_of_release_toml() -> None:
    protocol, formats = ((ROOT / "shared" / name).read_text() for name in ("PROTOCOL.md", "FORMATS.md"))
    for row in TOPICS:
        assert f"`{row.pattern.replace('{', '<').replace('}', '>')}`" in protocol
    for field, *_ in explain():
        assert f"| `{field}` |" in formats


def _entries() -> dict[str, typer.core.TyperCommand]:
    """`release add` and the like, from the commands themselves."""
    found: dict[str, typer.core.TyperCommand] = {}
    to_open = [
        (entry.name, typer.main.get_command(entry.load())) for entry in entry_points(group="heliograph.commands")
    ]
    while to_open:
        path, group = to_open.pop()
        for name, command in getattr(group, "commands", {}).items():
            if hasattr(command, "commands"):
                to_open.append((f"{path} {name}", command))
            else:
                found[f"{path} {name}"] = command
    return found


def _commands() -> dict[str, set[str]]:
    """Each command's options."""
    return {name: {option for param in entry.params for option in param.opts} for name, entry in _entries().items()}


def test_the_help_of_every_command_has_an_example_that_it_takes() -> None:
    for command, entry in _entries().items():
        words = r" ".join([r"\S+"] * len(command.split()))
        examples = re.findall(rf"Example: heliograph ({words})(.*)", entry.help or "")
        assert [name for name, _ in examples] == [command], command
        for option in re.findall(r"--[a-z-]+", examples[0][1]):
            assert option in {name for param in entry.params for name in param.opts}, command


def test_every_command_in_the_readme_exists_with_its_options() -> None:
    commands = _commands()
    lines = re.findall(r"^ +heliograph (.+?)(?: +#.*)?$", README, re.MULTILINE)
    assert len(lines) >= 10
    for line in lines:
        words = line.split()
        name = " ".join(words[:3] if " ".join(words[:3]) in commands else words[:2])
        assert name in commands, line
        for option in (word for word in words if word.startswith("--")):
            assert option in commands[name], line


@pytest.mark.parametrize(
    "command",
    ["delta make", "delta apply", "delta show", "hub init", "hub run", "release add", "release sign", "release approve",
     "release list", "release show", "release deny", "key deny", "key list", "rollout start",
     "rollout status", "rollout promote", "fleet list", "fleet show", "fleet timeline",
     "fleet token", "fleet assign", "node join", "node run", "node status", "lab run", "lab cut", "lab restore",
     "lab kill", "lab load", "lab status"],
)  # fmt: skip
def test_every_promised_command_exists_and_is_described(command: str) -> None:
    assert command in _commands()
    assert f"### heliograph {command}" in (ROOT / "shared" / "CLI.md").read_text()


def test_the_two_commands_and_all_scripts_of_the_readme_are_there_to_run() -> None:
    for script in {*re.findall(r"scripts/([a-z]+)", README), "demo", "test", "check", "bench"}:
        path = ROOT / "scripts" / script
        assert path.is_file(), path
        assert path.stat().st_mode & 0o111, f"{path} is not executable"


def test_the_folder_map_names_real_folders() -> None:
    folders = re.findall(r"^\| `([a-z_/]+)` \|", README, re.MULTILINE)
    assert len(folders) >= 6
    for folder in folders:
        assert (ROOT / folder).is_dir(), folder
    named = {kind.strip() for kind in README.split("| `tests` |")[1].split("|")[0].split(",")}
    present = {path.parent.name for path in (ROOT / "tests").glob("*/*.py")}
    assert named == present - {"simulator", "fuzzing"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (document.parent / file) if file else document
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
