"""Names of realms, sites, nodes, models and releases, and the types that keep them apart.

A name is checked once, where it comes in (`parse`-style functions here, pydantic fields elsewhere), and trusted after.
"""

import re
from typing import Annotated, Literal

from pydantic import StringConstraints

from heliograph.blob import Digest as Digest
from heliograph.errors import ConfigError

NAME_PATTERN = r"^[a-z0-9-]{1,40}$"
VERSION_PATTERN = r"^(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Version = Annotated[str, StringConstraints(pattern=VERSION_PATTERN)]
"""`major.minor.patch`, compared by number (semver order; pre-release tags are not used: a release is final)."""

Ring = Literal["canary", "early", "general", "protected"]
RINGS: tuple[Ring, ...] = ("canary", "early", "general", "protected")


def check_name(value: str, what: str) -> str:
    """Returns `value` if it is a legal realm, site, node or model name.

    Raises:
        ConfigError: otherwise; `what` names the thing in the message.
    """
    if not re.match(NAME_PATTERN, value) or value.endswith("\n"):
        raise ConfigError(f"{what} {value!r} is not a name: use 1 to 40 of a-z, 0-9 and '-'")
    return value


def parse_node(value: str) -> tuple[str, str]:
    """Splits `site/node`.

    Raises:
        ConfigError: for anything else.
    """
    site, slash, node = value.partition("/")
    if not slash:
        raise ConfigError(f"{value!r} is not a node: write SITE/NODE")
    return check_name(site, "site"), check_name(node, "node")


def parse_release(value: str) -> tuple[str, str]:
    """Splits `model@version`.

    Raises:
        ConfigError: for anything else.
    """
    model, at, version = value.partition("@")
    if not at or not re.match(VERSION_PATTERN, version) or version.endswith("\n"):
        raise ConfigError(f"{value!r} is not a release: write MODEL@MAJOR.MINOR.PATCH, such as digits@1.0.0")
    return check_name(model, "model"), version


def version_key(version: str) -> tuple[int, ...]:
    """Sort key that gives semver order."""
    return tuple(int(part) for part in version.split("."))
