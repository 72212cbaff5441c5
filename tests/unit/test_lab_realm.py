"""A realm of processes on this machine, as far as it can be looked at without starting any."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from heliograph.errors import RefusedError
from heliograph.lab.realm import Realm, infer, infer_with_numbers

TOKEN = "heliograph1:secret"


class Recorded(Realm):
    """Types nothing, and remembers what it would have typed."""

    def cli(self, *args: str | Path, stdin: str = "") -> str:
        self.typed = [*getattr(self, "typed", []), (" ".join(map(str, args)), stdin)]
        return f"{TOKEN}\n"


def test_the_join_string_is_never_an_argument(tmp_path: Path) -> None:
    realm = Recorded(tmp_path)
    realm.join("shop/till")
    assert not any(TOKEN in arguments for arguments, _ in realm.typed)
    assert TOKEN in realm.typed[-1][1]


def test_a_command_reads_what_it_is_given(tmp_path: Path) -> None:
    realm = Realm(tmp_path)
    with pytest.raises(RefusedError, match=r"node join ended with 2: .*the join string is damaged"):
        realm.cli("node", "join", "-", tmp_path / "node", stdin=f"{TOKEN}\n")


def test_an_answer_comes_with_the_numbers_of_its_config_and_policy() -> None:
    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("heliograph-config", "7")
            self.send_header("heliograph-policy", "3")
            self.end_headers()
            self.wfile.write(b'{"model_version": "1.0.0"}')

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert infer_with_numbers(url, "digits", {}) == ({"model_version": "1.0.0"}, (7, 3))
        assert infer(url, "digits", {}) == {"model_version": "1.0.0"}
        server.shutdown()
