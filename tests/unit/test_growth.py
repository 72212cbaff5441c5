"""Every format that is named in the code says in FORMATS.md how it may grow, and of which version it is."""

import re
from pathlib import Path

import pytest

import conversation
from heliograph import deny, manifest, sealing, signing, sketch, statement, trust
from heliograph.delta import file, recipe
from heliograph.protocol import DENIALS, SCHEMAS, STATEMENTS, TOPICS
from heliograph_hub import database, epochs
from heliograph_site import holdings, identity, outbox, schema

ROOT = Path(__file__).resolve().parents[2]
FORMATS = (ROOT / "shared" / "FORMATS.md").read_text()
CONSTANT = re.compile(r"^([A-Z_]*(?:FORMAT|VERSION))(?:: [^=]+)? = (?:[0-9]+|len\()", re.MULTILINE)

#: Module and name of each constant that is a format's version, and what FORMATS.md calls the format.
VERSIONS = {
    "statement.ENVELOPE_VERSION": ("statement", statement.ENVELOPE_VERSION),
    "signing.KEY_FILE_VERSION": ("key file", signing.KEY_FILE_VERSION),
    "identity.SEALED_KEY_FORMAT": ("sealed key file", identity.SEALED_KEY_FORMAT),
    "file.VERSION": ("delta file", file.VERSION),
    "recipe.RECIPE_FORMAT": ("recipe", recipe.RECIPE_FORMAT),
    "epochs.EPOCHS_FORMAT": ("epoch keys", epochs.EPOCHS_FORMAT),
    "sealing.SEAL_FORMAT": ("seal", sealing.SEAL_FORMAT),
    "holdings.SIDECAR_FORMAT": ("sidecar", holdings.SIDECAR_FORMAT),
    "trust.SET_FORMAT": ("tuf metadata and set message", trust.SET_FORMAT),
    "trust.STATE_FORMAT": ("trust state row", trust.STATE_FORMAT),
    "deny.STATE_FORMAT": ("deny set row", deny.STATE_FORMAT),
    "sketch.SKETCH_VERSION": ("sketch", sketch.SKETCH_VERSION),
    "manifest.MANIFEST_VERSION": ("manifest", manifest.MANIFEST_VERSION),
}
MIGRATED = {"database.SCHEMA_VERSION"}
"""Versions that grow by migrations: their number stands in the heading of the section."""


def growth() -> dict[str, tuple[str, str, str]]:
    """Format to its version, what it may grow by, and when it gets a new one."""
    table = FORMATS.partition("<!-- growth -->")[2].partition("<!-- end -->")[0]
    found = {}
    for line in table.splitlines()[3:]:
        names, *rest = (cell.strip() for cell in line.strip("|").split(" | "))
        version, grows, anew = rest
        for name in re.findall(r"`([^`]+)`", names) or [names]:
            assert name not in found, f"{name} stands there twice"
            found[name] = (version.strip(), grows.strip(), anew.strip(" |"))
    return found


def test_every_message_statement_and_schema_says_how_it_may_grow() -> None:
    named = {row.name for row in TOPICS} - {"deny"} | set(STATEMENTS) | set(DENIALS)
    assert named - set(growth()) == set()
    assert set(SCHEMAS) - set(growth()) == set()


def test_every_section_about_a_format_with_a_version_has_its_row_and_says_the_same_version() -> None:
    titles = re.findall(r"^##+ (.+), (version|schema) ([0-9]+)$", FORMATS, re.MULTILINE)
    assert len(titles) >= 12
    for title, what, number in titles:
        version = growth()[title.lower() if title != "node.toml" else title][0]
        assert what == "schema" or version == number, title


@pytest.mark.parametrize(
    "title", ["Blob geometry", "Sealed blob", "Object store", "Journal and outbox", "Bundle", "incoming"]
)
def test_every_other_section_has_its_row_too(title: str) -> None:
    assert f"## {title}" in FORMATS
    assert set(title.lower().split(" and ")) <= set(growth())


def test_every_constant_that_is_a_version_of_a_format_is_told_with_its_number() -> None:
    found = {
        f"{path.stem}.{name}"
        for folder in ("shared", "hub", "site")
        for path in (ROOT / folder).rglob("*.py")
        for name in CONSTANT.findall(path.read_text())
        if not name.startswith(("MAX_", "_"))
    }
    assert found - {"connection.UNSUPPORTED_VERSION"} == set(VERSIONS) | MIGRATED
    for name, number in VERSIONS.values():
        assert growth()[name][0] == str(number), name
    assert growth()["conversation"][0] == str(conversation.FORMAT)


def test_what_is_migrated_is_told_with_its_newest_schema_and_every_table_of_the_hub() -> None:
    section = FORMATS.partition("\n## Hub database, schema ")[2].partition("\n## ")[0]
    assert section.startswith(f"{database.SCHEMA_VERSION}\n")
    assert set(database.metadata.tables) - set(re.findall(r"`([a-z_]+)`", section)) == set()
    for name, known in (("journal", schema.migrations), ("outbox", outbox.migrations)):
        newest = max(migration.name for migration in known._migrations)
        assert f"`{name}.sqlite`, schema {newest} " in FORMATS, name


def test_no_row_leaves_open_how_or_when() -> None:
    for name, row in growth().items():
        assert all(row), name
