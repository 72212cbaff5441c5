"""[IO] What operator commands use to talk to a running hub: JSON over its unix socket, or over a URL.

Errors come back as the families they were raised as, so that a command ends with the same sentence and exit code as
if it had done the work itself.
"""

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heliograph import errors
from heliograph.errors import ConfigError, HeliographError, TransportError
from heliograph.unix import short_path

if TYPE_CHECKING:
    import httpx

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
        import httpx

        if self._is_url:
            return self._send(_transport(), self.where.rstrip("/"), method, path, body)
        with short_path(Path(self.where) / SOCKET_NAME) as socket_path:
            # No TLS there: loading the system's authorities, as httpx does unasked, would take longer than the answer.
            plain = httpx.HTTPTransport(uds=socket_path, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
            return self._send(plain, "http://hub", method, path, body)

    def _headers(self) -> dict[str, str]:
        token = os.environ.get(TOKEN_ENVIRONMENT, "")
        if not self._is_url or not token:
            return {}
        if not self.where.startswith("https://"):
            raise ConfigError(f"{TOKEN_ENVIRONMENT} is not sent to {self.where}: a token goes over https only")
        return {"authorization": f"Bearer {token}"}

    def _send(
        self, transport: "httpx.HTTPTransport", base: str, method: str, path: str, body: dict[str, Any] | None
    ) -> Any:
        import httpx

        try:
            headers = self._headers()
            with httpx.Client(transport=transport, base_url=base, timeout=self._timeout_s, headers=headers) as client:
                answer = client.request(method, path, json=body)
        except httpx.TimeoutException as error:
            raise TransportError(f"the hub at {self.where} did not answer within {self._timeout_s:g} s") from error
        except httpx.HTTPError as error:
            start = "start it there" if self._is_url else f"start it with: heliograph hub run {self.where}"
            raise TransportError(f"no hub is running at {self.where}: {start}") from error
        try:
            content = answer.json()
        except ValueError as error:
            raise TransportError(f"{self.where} did not answer as a hub (HTTP {answer.status_code})") from error
        if answer.is_success:
            return content
        family = _FAMILIES.get(content.get("kind", ""), HeliographError)
        raise family(content.get("error", f"HTTP {answer.status_code}"))


def _transport() -> "httpx.HTTPTransport":
    """For a hub named by URL; it is known by its own authority, if that is given.

    Raises:
        ConfigError: the authority's file can't be used.
    """
    import httpx

    path = os.environ.get(CA_ENVIRONMENT, "")
    if not path:
        return httpx.HTTPTransport()
    try:
        return httpx.HTTPTransport(verify=ssl.create_default_context(cafile=path))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{CA_ENVIRONMENT} names {path}, which can't be used: {error}") from error
