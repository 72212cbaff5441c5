"""TOML from outside, with bounds: release.toml, policies, configs, a node's and a hub's settings.

A file is bounded in bytes, and its keys in parts: the standard parser takes time in the square of the parts of a dotted
key (160 KB of `a.a.a…` are a minute of one core), and recurses into arrays and inline tables.
"""

import re
import tomllib
from typing import Any

from heliograph.errors import ConfigError

MAX_TOML_BYTES = 256 * 1024
MAX_KEY_PARTS = 16
_PART = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(rf"(?<![A-Za-z0-9_-])(?:{_PART}[ \t]*+\.[ \t]*+){{{MAX_KEY_PARTS}}}")


def parse_toml(data: bytes | str, what: str, *, max_bytes: int = MAX_TOML_BYTES) -> dict[str, Any]:
    """The table in `data`; `what` names the file in messages.

    Raises:
        ConfigError: too long, not UTF-8, not TOML, nested too deeply, or a key of more than 16 parts.
    """
    if len(data) > max_bytes:
        raise ConfigError(f"{what} has {len(data)} bytes, at most {max_bytes} are read: say less in it")
    try:
        text = data if isinstance(data, str) else data.decode()
        if _LONG_KEY.search(text) is not None:
            raise ConfigError(f"{what} has a dotted name of more than {MAX_KEY_PARTS} parts: no key has so many")
        return tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} can't be read: not UTF-8 text") from error
    except RecursionError as error:
        raise ConfigError(f"{what} is not TOML: nested too deeply") from error
    except ValueError as error:
        message = str(error)[:200]
        raise ConfigError(f"{what} is not TOML: {message[:1].lower()}{message[1:]}") from error
