"""[IO] What operator commands use to talk to a running hub: JSON over its unix socket, or over a URL.

Errors come back as the families they were raised as, so that a command ends with the same sentence and exit code as
if it had done the work itself.
"""

import contextlib
import http.client
import json
import os
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from heliograph import errors
from heliograph.errors import ConfigError, HeliographError, TransportError
from heliograph.unix import short_path

SOCKET_NAME = "hub.sock"
HUB_FILE = "hub.toml"
ENVIRONMENT = "HELIOGRAPH_HUB"
TOKEN_ENVIRONMENT = "HELIOGRAPH_TOKEN"  # noqa: S105 - a name
"""What `hub token` printed, for a hub named by URL."""
CA_ENVIRONMENT = "HELIOGRAPH_CA"
"""A copy of that hub's DIR/tls/ca.crt."""
_FAMILIES: dict[str, type[HeliographError]] = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, HeliographError)
}


class HubClient:
    """Asks one hub; each call is one request."""

    def __init__(self, where: str, timeout_s: float = 120.0) -> None:
        """Takes a hub's folder, or `http://…` of one that listens there.

        Raises:
            ConfigError: no hub was named, or the folder is none.
        """
        if not where:
            raise ConfigError(
                f"no hub named: give --hub DIR or set {ENVIRONMENT} (a folder made by heliograph hub init)"
            )
        self.where = where
        self._timeout_s = timeout_s
        self._is_url = where.startswith(("http://", "https://"))
        if not self._is_url and not (Path(where) / HUB_FILE).is_file():
            raise ConfigError(f"{where} is no hub folder: heliograph hub init {where}")

    def get(self, path: str) -> Any:
        """The JSON at `path`.

        Raises:
            HeliographError: of the family the hub raised.
            TransportError: no hub runs there.
        """
        return self._ask("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to `body`; raises as `get`."""
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        if self._is_url:
            try:
                url = urlsplit(self.where)
            except ValueError as error:
                raise ConfigError(f"{self.where} names no hub: {error}") from error
            return self._send(self._far(url), method, url.path.rstrip("/") + path, body)
        with short_path(Path(self.where) / SOCKET_NAME) as socket_path:
            return self._send(_Local(str(socket_path), self._timeout_s), method, path, body)

    def _far(self, url: SplitResult) -> http.client.HTTPConnection:
        try:
            if url.scheme == "http":
                return http.client.HTTPConnection(url.netloc, timeout=self._timeout_s)
            return http.client.HTTPSConnection(url.netloc, timeout=self._timeout_s, context=_trusted())
        except http.client.InvalidURL as error:
            raise ConfigError(f"{self.where} names no hub: {error}") from error

    def _headers(self) -> dict[str, str]:
        token = os.environ.get(TOKEN_ENVIRONMENT, "")
        if not self._is_url or not token:
            return {}
        if not self.where.startswith("https://"):
            raise ConfigError(f"{TOKEN_ENVIRONMENT} is not sent to {self.where}: a token goes over https only")
        if not (token.isascii() and token.isprintable()):  # it is a secret: nobody is shown it for what is wrong in it
            raise ConfigError(f"{TOKEN_ENVIRONMENT} holds what no token has, a line's end perhaps: set it anew")
        return {"authorization": f"Bearer {token}"}

    def _send(self, connection: http.client.HTTPConnection, method: str, path: str, body: dict[str, Any] | None) -> Any:
        headers = self._headers() | {"accept": "application/json", "content-type": "application/json"}
        data = None if body is None else json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
        try:
            with contextlib.closing(connection):
                connection.request(method, quote(path, safe="/?&=%:@,+~"), data, headers)
                answer = connection.getresponse()
                content = answer.read()
        except ssl.SSLCertVerificationError as error:
            raise TransportError(
                f"what answers at {self.where} can't show that it is the hub ({error.verify_message}): set "
                f"{CA_ENVIRONMENT} to a copy of that hub's DIR/tls/ca.crt"
            ) from error
        except TimeoutError as error:
            raise TransportError(f"the hub at {self.where} did not answer within {self._timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            start = "start it there" if self._is_url else f"start it with: heliograph hub run {self.where}"
            raise TransportError(f"no hub is running at {self.where}: {start}") from error
        try:
            said = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise TransportError(f"{self.where} did not answer as a hub (HTTP {answer.status})") from error
        if 200 <= answer.status < 300:
            return said
        if not isinstance(said, dict):
            raise TransportError(f"{self.where} did not answer as a hub (HTTP {answer.status})")
        family = _FAMILIES.get(str(said.get("kind", "")), HeliographError)
        raise family(str(said.get("error", f"HTTP {answer.status}")))


class _Local(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("hub", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _trusted() -> ssl.SSLContext:
    """Whom a hub named by https is believed by: its own authority, if that is given.

    Raises:
        ConfigError: the authority's file can't be used.
    """
    path = os.environ.get(CA_ENVIRONMENT, "")
    try:
        return ssl.create_default_context(cafile=path or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{CA_ENVIRONMENT} names {path}, which can't be used: {error}") from error
