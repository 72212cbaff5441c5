"""How commands reach the hub of this machine."""

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from heliograph.errors import NotFoundError, TransportError
from heliograph_hub.client import HUB_FILE, SOCKET_NAME, HubClient


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        is_known = self.path == "/v1/hub"
        content = {"realm": "lab"} if is_known else {"kind": "NotFoundError", "error": "no such thing"}
        self.send_response(200 if is_known else 404)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """What looks like a hub's folder while its hub runs."""
    (tmp_path / HUB_FILE).touch()
    with socketserver.UnixStreamServer(str(tmp_path / SOCKET_NAME), Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield tmp_path
        server.shutdown()


def test_the_socket_is_asked_without_loading_the_systems_authorities(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "absent"))  # whoever wants them doesn't get by
    client = HubClient(str(folder))
    assert client.get("/v1/hub") == {"realm": "lab"}
    with pytest.raises(NotFoundError, match="no such thing"):
        client.get("/v1/other")


def test_a_folder_whose_hub_does_not_run_is_said_to_have_none(tmp_path: Path) -> None:
    (tmp_path / HUB_FILE).touch()
    with pytest.raises(TransportError, match=r"no hub is running at .*: start it with: heliograph hub run"):
        HubClient(str(tmp_path)).get("/v1/hub")
