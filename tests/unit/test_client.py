"""How commands reach the hub of this machine."""

import http.server
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from heliograph.errors import ConfigError, NotFoundError, TransportError
from heliograph.signing import PrivateKey
from heliograph_hub.certificates import CertificateAuthority, make_ca
from heliograph_hub.client import CA_ENVIRONMENT, HUB_FILE, SOCKET_NAME, TOKEN_ENVIRONMENT, HubClient

ANSWERS = {
    "/v1/hub": (200, b'{"realm": "lab"}'),
    "/v1/absent": (404, b'{"kind": "NotFoundError", "error": "no such thing"}'),
    "/v1/a%20b?c=d": (200, b"1"),
    "/v1/list": (500, b'["no hub"]'),
    "/v1/text": (200, b"no hub"),
    "/v1/deep": (200, b"[" * 100_000),
}


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, content = ANSWERS[self.path]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content)

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
        client.get("/v1/absent")
    assert client.get("/v1/a b?c=d") == 1


@pytest.mark.parametrize("path", ["/v1/list", "/v1/text", "/v1/deep"])
def test_what_answers_as_no_hub_does_is_said_to_be_none(folder: Path, path: str) -> None:
    with pytest.raises(TransportError, match="did not answer as a hub"):
        HubClient(str(folder)).get(path)


def test_a_folder_whose_hub_does_not_run_is_said_to_have_none(tmp_path: Path) -> None:
    (tmp_path / HUB_FILE).touch()
    with pytest.raises(TransportError, match=r"no hub is running at .*: start it with: heliograph hub run"):
        HubClient(str(tmp_path)).get("/v1/hub")


@pytest.mark.parametrize("token", ["hidden\n", "hidden\r", "hidden☃", "hid\x7fden"])
def test_a_token_that_no_header_can_carry_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv(TOKEN_ENVIRONMENT, token)
    with pytest.raises(ConfigError, match="holds what no token has") as refused:
        HubClient("https://127.0.0.1:1").get("/v1/hub")
    assert "hid" not in str(refused.value)


@pytest.mark.parametrize("where", ["http://[::1", "http://a b:1", "https://hub:port"])
def test_an_address_that_is_none_is_said_to_name_no_hub(where: str) -> None:
    with pytest.raises(ConfigError, match="names no hub"):
        HubClient(where).get("/v1/hub")


def test_a_hub_whose_authority_was_not_given_is_said_to_be_unknown_not_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem, key = make_ca("lab", b"c" * 32, int(time.time()), b"n" * 16)
    (tmp_path / "ca.crt").write_bytes(pem)
    public = PrivateKey.generate(b"b" * 32)
    made = CertificateAuthority(pem, key).certify_broker(public.public.raw, ["127.0.0.1"], int(time.time()), b"m" * 16)
    (tmp_path / "both.pem").write_bytes(made.pem + public.to_pem())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # whoever hangs up is no fault
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        client = HubClient(f"https://127.0.0.1:{server.server_port}")
        with pytest.raises(TransportError, match=rf"can't show that it is the hub .*: set {CA_ENVIRONMENT} to a copy"):
            client.get("/v1/hub")
        monkeypatch.setenv(CA_ENVIRONMENT, str(tmp_path / "ca.crt"))
        assert client.get("/v1/hub") == {"realm": "lab"}
        server.shutdown()
