"""The agent's line to the model server: releases are checked, switched to and back, and no request fails by it."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import bundles
from heliograph.errors import RefusedError, TransportError
from heliograph.manifest import Manifest
from heliograph.sketch import Sketch
from servers import INFER, Load, Node, is_running
from waits import eventually


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    return {
        "1.0.0": bundles.digits_bundle(root / "1.0.0", "1.0.0", bundles.BASE),
        "1.1.0": bundles.digits_bundle(root / "1.1.0", "1.1.0", bundles.HEAD),
        "1.2.0": bundles.wrong_bundle(root / "1.2.0", "1.2.0", bundles.HEAD),
    }


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node's folder of the test's own, nothing installed, nothing running."""
    node = Node(tmp_path / "node")
    yield node
    node.stop()


def test_a_release_is_checked_switched_to_and_switched_back(node: Node, folders: dict[str, Path]) -> None:
    old, new = node.install(folders["1.0.0"]), node.install(folders["1.1.0"])
    node.point(old)
    node.start()
    before = node.wait_ready()
    data = node.store.read(new)
    files = {file.name: file.sha256 for file in Manifest.parse(data, new, len(data)).files}
    measured = node.check(new, files=files)
    assert 0 < measured["cold_start_ms"] < 10_000
    assert measured["golden_max_error"] <= 2.0
    assert measured["memory_bytes"] > 1 << 20
    during = node.digits()
    assert (during["active"], during["spare"]["release"]) == (old.hex(), new.hex())
    assert node.check(new)["ok"], "checking again is harmless"
    assert node.digits()["spare"]["worker"] == during["spare"]["worker"]
    node.serve(new)
    after = node.digits()
    assert (after["active"], after["standby"]["release"], after["spare"]) == (new.hex(), old.hex(), None)
    assert after["worker"] == during["spare"]["worker"], "the warm worker answers"
    node.serve(new)
    assert node.digits()["worker"] == after["worker"], "serving again is harmless"
    node.serve(old)
    assert node.digits()["worker"] == before["worker"], "the standby was warm"
    with pytest.raises(RefusedError, match="is active"):
        node.drop(old)
    node.drop(new)
    node.drop(new)
    assert node.digits()["standby"] is None
    eventually(lambda: not is_running(after["worker"]), "the dropped worker to end")


def test_a_stopped_model_answers_nothing_and_serves_again_when_it_is_told_to(
    node: Node, folders: dict[str, Path]
) -> None:
    old, new = node.install(folders["1.0.0"]), node.install(folders["1.1.0"])
    node.point(new, old)
    node.start()
    worker = node.wait_ready()["worker"]
    for _ in range(2):
        asyncio.run(node.control.stop("digits"))
        status, _, said = node.ask("POST", INFER, bundles.sample_request())
        assert (status, said["reason"]) == (503, "nothing-loaded")
    assert (node.digits()["active"], node.digits()["standby"]) == (None, None)
    eventually(lambda: not is_running(worker), "its worker to end")
    node.serve(old)
    assert node.ask("POST", INFER, bundles.sample_request())[2]["model_version"] == "1.0.0"


def test_only_what_answers_is_stopped_where_a_release_is_named(node: Node, folders: dict[str, Path]) -> None:
    old, new = node.install(folders["1.0.0"]), node.install(folders["1.1.0"])
    node.point(new, old)
    node.start()
    node.wait_ready()
    with pytest.raises(RefusedError, match="not what answers"):
        asyncio.run(node.control.stop("digits", old))
    assert node.ask("POST", INFER, bundles.sample_request())[2]["model_version"] == "1.1.0"
    asyncio.run(node.control.stop("digits", new))
    assert node.ask("POST", INFER, bundles.sample_request())[0] == 503
    with pytest.raises(RefusedError, match="not what answers"):
        asyncio.run(node.control.stop("digits", new))


def test_every_switch_says_how_long_it_took_and_whom_it_affected(node: Node, folders: dict[str, Path]) -> None:
    old, new = node.install(folders["1.0.0"]), node.install(folders["1.1.0"])
    node.point(old)
    node.start()
    assert node.wait_ready()["first_request_s"] is None
    for _ in range(3):
        assert node.ask("POST", INFER, bundles.sample_request())[0] == 200
    row = node.digits()
    sketch = Sketch.decode(bytes.fromhex(row["sketch"]))
    assert (sketch.count, row["requests"]) == (3, 3) and 0 < sketch.min <= sketch.max < 10**10
    assert row["cold_start_ms"] > 0 and row["first_request_s"] >= 0
    began_ns = row["began_ns"]
    there = node.serve(new)
    assert there["duration_ms"] > 0 and there["failed"] == 0
    assert there["before"] == {
        "release": old.hex(), "answered": 3, "failed": 0, "in_flight": 0,
        "first_request_s": there["before"]["first_request_s"],
    }  # fmt: skip
    row = node.digits()
    assert (row["first_request_s"], Sketch.decode(bytes.fromhex(row["sketch"])).count) == (None, 0)
    assert Sketch.decode(bytes.fromhex(row["standby"]["sketch"])) == sketch, "what to compare with"
    assert row["standby"]["began_ns"] == began_ns != row["began_ns"], "each counts for itself"
    again = node.serve(new)
    assert (again["duration_ms"], again["before"]) == (None, None), "nothing was switched"
    assert node.ask("POST", INFER, bundles.sample_request())[0] == 200
    back = node.serve(old)
    assert (back["before"]["release"], back["before"]["answered"]) == (new.hex(), 1)
    assert (node.digits()["began_ns"], node.digits()["requests"]) == (began_ns, 3), "it counts on"
    assert node.serve(new)["before"]["answered"] == 0, "of this turn, not of those before"


def test_a_third_release_drops_the_first(node: Node, folders: dict[str, Path], tmp_path: Path) -> None:
    releases = [node.install(folders["1.0.0"]), node.install(folders["1.1.0"])]
    releases.append(node.install(bundles.digits_bundle(tmp_path / "b", "1.3.0", bundles.HEAD)))
    node.point(releases[0])
    node.start()
    first = node.wait_ready()["worker"]
    node.serve(releases[1])
    node.serve(releases[2])
    now = node.digits()
    assert (now["active"], now["standby"]["release"]) == (releases[2].hex(), releases[1].hex())
    eventually(lambda: not is_running(first), "the first worker to end")


def test_no_request_fails_while_releases_switch(node: Node, folders: dict[str, Path]) -> None:
    old, new = node.install(folders["1.0.0"]), node.install(folders["1.1.0"])
    node.point(old)
    node.start()
    node.wait_ready()
    with Load(node.address) as load:
        for release in (new, old, new, old, new):
            node.check(release)
            node.serve(release)
            load.more()
        node.drop(old)
        load.more()
    assert load.failures == []
    assert set(load.versions) == {"1.0.0", "1.1.0"}
    assert node.digits()["errors"] == 0


def test_an_agent_that_dies_in_mid_order_fails_no_request(node: Node, folders: dict[str, Path]) -> None:
    old, new = node.install(folders["1.0.0"]), node.install(folders["1.1.0"])
    node.point(old)
    node.start()
    node.wait_ready()
    order = json.dumps({"model": "digits", "release": new.hex()}).encode()
    with Load(node.address) as load:
        for act in ("check", "serve"):
            agent = subprocess.Popen(
                [sys.executable, "-c", "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
                 "s.sendall(sys.stdin.buffer.read()); print(flush=True); s.recv(1); s.recv(1 << 20)",
                 str(node.folder / "control.sock")],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            assert agent.stdin is not None
            assert agent.stdout is not None
            agent.stdin.write(
                f"POST /control/{act} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(order)}\r\n\r\n".encode() + order
            )
            agent.stdin.close()
            agent.stdout.readline()
            agent.kill()
            agent.wait()
            agent.stdout.close()
            load.more()
        eventually(lambda: node.digits()["active"] == new.hex(), "the order to be carried out")
        load.more()
    assert load.failures == []


def test_wrong_outputs_are_refused_and_what_serves_goes_on(node: Node, folders: dict[str, Path]) -> None:
    good, wrong = node.install(folders["1.1.0"]), node.install(folders["1.2.0"])
    node.point(good)
    node.start()
    node.wait_ready()
    with pytest.raises(
        RefusedError, match=r"golden request 0, output output_0, element \d: expected .*, got .*, toler"
    ):
        node.check(wrong)
    with pytest.raises(RefusedError, match="golden"):
        node.serve(wrong)
    now = node.digits()
    assert (now["active"], now["spare"], now["state"]) == (good.hex(), None, "ready")
    assert node.ask("POST", INFER, bundles.sample_request())[2]["model_version"] == "1.1.0"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x1c\0\0\0TFL3" + b"\xff" * 4096, "died by signal|tflite-runtime"),
        (b"not a model", "tflite-runtime"),
        (bundles.BASE.read_bytes()[: 1 << 20], "died by signal|tflite-runtime"),
    ],
    ids=["hostile-header", "text", "truncated"],
)
def test_a_file_that_is_no_model_harms_nobody(
    node: Node, folders: dict[str, Path], tmp_path: Path, content: bytes, says: str
) -> None:
    good = node.install(folders["1.0.0"])
    shutil.copytree(folders["1.1.0"], tmp_path / "bad")
    (tmp_path / "bad" / "model.tflite").write_bytes(content)
    bad = node.install(tmp_path / "bad")
    node.point(good)
    node.start()
    worker = node.wait_ready()["worker"]
    with pytest.raises(RefusedError, match=says):
        node.check(bad)
    assert node.digits()["worker"] == worker
    assert node.ask("POST", INFER, bundles.sample_request())[0] == 200


def test_a_release_that_is_not_here_or_not_as_asked_is_refused(node: Node, folders: dict[str, Path]) -> None:
    good = node.install(folders["1.0.0"])
    node.point(good)
    node.start()
    node.wait_ready()
    with pytest.raises(RefusedError, match="is not on this node"):
        node.check(bytes(32))
    other = node.install(folders["1.1.0"])
    with pytest.raises(RefusedError, match="other files"):
        node.check(other, files={"model.tflite": bytes(32)})
    with pytest.raises(RefusedError, match="not a release of letters"):
        asyncio.run(node.control.check("letters", other))
    with pytest.raises(RefusedError, match="did not load and answer within"):
        node.check(other, timeout_s=0.001)
    assert node.check(other)["ok"]


def test_trouble_of_the_server_is_not_held_against_the_release(node: Node, folders: dict[str, Path]) -> None:
    node.point(node.install(folders["1.0.0"]))
    node.start()
    node.wait_ready()
    other = node.install(folders["1.1.0"])
    forkserver = node.status()["forkserver"]
    os.kill(forkserver, signal.SIGSTOP)
    said: list[Exception] = []

    def check() -> None:
        try:
            node.check(other)
        except (RefusedError, TransportError) as error:
            said.append(error)

    agent = threading.Thread(target=check)
    agent.start()
    eventually(lambda: node.digits()["spare"], "the check to begin")
    os.kill(forkserver, signal.SIGKILL)
    agent.join()
    assert [type(error) for error in said] == [TransportError]
    assert "forkserver" in str(said[0])
    assert node.check(other)["ok"]


def test_a_server_that_is_down_is_a_matter_of_time(node: Node) -> None:
    with pytest.raises(TransportError, match="can't be reached"):
        node.status()


def test_a_folder_with_a_very_long_path_has_its_sockets(tmp_path: Path, folders: dict[str, Path]) -> None:
    node = Node(tmp_path / ("long-" * 20) / ("name-" * 20))
    node.point(node.install(folders["1.0.0"]))
    node.start()
    try:
        assert node.wait_ready()["state"] == "ready"
    finally:
        node.stop()
    assert not (node.folder / "control.sock").exists()
