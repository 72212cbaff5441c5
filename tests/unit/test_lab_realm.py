"""A realm of processes on this machine, as far as it can be looked at without starting any."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from pathlib import Path
from threading import Thread

import pytest
from rich.console import Console

from heliograph.errors import ConfigError, HeliographError, RefusedError
from heliograph.lab.commands import _table
from heliograph.lab.profiles import load_profile
from heliograph.lab.realm import Realm, infer, infer_with_numbers
from heliograph.lab.session import Lab

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


def lab(folder: Path, *, keep: bool = False) -> Lab:
    return Lab(folder, load_profile("lan"), keep=keep)


@pytest.mark.parametrize("keep", [False, True])
def test_a_lab_that_is_still_starting_has_its_folder_for_itself(tmp_path: Path, keep: bool) -> None:
    folder = tmp_path / "lab"
    with lab(folder, keep=keep):
        (folder / "realm" / "key").touch()
        with pytest.raises(RefusedError, match=r"a lab runs in .* already"):
            lab(folder, keep=keep)
        assert (folder / "realm" / "key").exists()
    assert folder.exists() == keep


def test_what_a_killed_lab_left_is_gone_where_nobody_named_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "lab"
    (folder / "realm" / "hub").mkdir(parents=True)
    (folder / "seen.json").touch()
    (folder / "link").symlink_to(tmp_path)
    with lab(folder):
        assert list(folder.rglob("*")) == [folder / "realm"]
    assert tmp_path.exists()


def test_a_link_in_the_temporary_folder_has_nothing_emptied_that_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").touch()
    (tmp_path / "lab").symlink_to(tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"can't be a lab's folder .*--dir"):
        lab(tmp_path / "lab")
    assert (tmp_path / "mine" / "letter").exists()


def test_what_can_not_be_a_labs_folder_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "lab"):
        with pytest.raises(ConfigError, match=r"can't be a lab's folder .*--dir"):
            lab(folder, keep=True)


@pytest.mark.parametrize(
    ("order", "name", "told"),
    [
        ("kill", "moon", r"no node moon: use one of shop-1/till \(canary\), .*, hub, broker$"),
        ("restore", "moon", r"no node moon: use one of shop-1/till \(canary\), .*\(general\), hub$"),
        ("cut", "hub", r"no node hub: use one of shop-1/till \(canary\), .*\(general\)$"),
        ("restore", "broker", "the hub starts it again by itself"),
    ],
)
def test_an_order_for_what_there_is_not_names_what_there_is(tmp_path: Path, order: str, name: str, told: str) -> None:
    with lab(tmp_path / "lab") as it, pytest.raises(HeliographError, match=told):
        it.do({"do": order, "name": name})


def test_the_table_shows_names_whole_and_says_of_what_is_killed_nothing_else() -> None:
    model = {"digits": {"phase": "rolling-back", "active": "digits@1.4.0", "p95_ms": 123.4}}
    common = {"ring": "general", "profile": "shop2m", "models": model, "bytes_received": 12_345_678, "outbox": 1000}
    nodes = [
        common | {"node": "shop-1/till", "link": "up", "connected": False, "runs": False},
        common | {"node": "plant-1/gateway", "link": "up", "connected": False, "runs": True},
    ]
    shown = StringIO()
    status = {"hub": {"runs": False}, "links": {"kind": "namespaces"}, "nodes": nodes}
    Console(file=shown, width=80).print(_table(status))
    lines = shown.getvalue().splitlines()
    assert all(any(line.strip().startswith(str(node["node"])) for line in lines) for node in nodes)
    assert shown.getvalue().count("connected") == 1 and shown.getvalue().count("killed") == 2
    assert "…" not in shown.getvalue() and max(map(len, lines)) <= 80
