"""What the model server survives, and what it does with no agent beside it."""

import http.client
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import bundles
from heliograph.blob import Digest
from heliograph.manifest import Manifest
from servers import INFER, PATIENCE_S, Node, is_running
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


def test_a_killed_worker_is_told_counted_and_replaced(node: Node, folders: dict[str, Path]) -> None:
    node.point(node.install(folders["1.0.0"]))
    node.start()
    first = node.wait_ready()
    body = json.dumps(bundles.sample_request()).encode()
    os.kill(first["worker"], signal.SIGSTOP)  # so that the request is with it when it dies
    connection = http.client.HTTPConnection(node.address, timeout=PATIENCE_S)
    connection.request("POST", INFER, body)
    eventually(lambda: node.digits()["waiting"] == 1, "the request to be with the worker")
    os.kill(first["worker"], signal.SIGKILL)
    answer = connection.getresponse()
    said = json.loads(answer.read())
    assert (answer.status, said["reason"], answer.getheader("retry-after")) == (503, "worker-died", "1")
    assert "signal 9 (SIGKILL)" in said["error"]
    again = node.wait_ready()
    assert again["worker"] != first["worker"]
    assert (again["restarts"], again["requests"], again["errors"]) == (1, 1, 1)
    assert node.ask("POST", INFER, bundles.sample_request())[0] == 200
    connection.close()


def test_requests_behind_the_one_that_met_the_crash_are_answered_by_the_next_worker(
    node: Node, folders: dict[str, Path]
) -> None:
    node.point(node.install(folders["1.0.0"]))
    node.start()
    worker = node.wait_ready()["worker"]
    os.kill(worker, signal.SIGSTOP)
    connections = [http.client.HTTPConnection(node.address, timeout=PATIENCE_S) for _ in range(6)]
    for connection in connections:
        connection.request("POST", INFER, json.dumps(bundles.sample_request()))
    eventually(lambda: node.digits()["waiting"] == 6, "six requests to wait")
    os.kill(worker, signal.SIGKILL)
    statuses = sorted(connection.getresponse().status for connection in connections)
    assert statuses == [200] * 5 + [503]
    for connection in connections:
        connection.close()


def test_no_more_wait_than_the_bound(node: Node, folders: dict[str, Path]) -> None:
    node.point(node.install(folders["1.0.0"]))
    node.start()
    worker = node.wait_ready()["worker"]
    os.kill(worker, signal.SIGSTOP)
    connections = [http.client.HTTPConnection(node.address, timeout=PATIENCE_S) for _ in range(64)]
    for connection in connections:
        connection.request("POST", INFER, json.dumps(bundles.sample_request()))
    eventually(lambda: node.digits()["waiting"] == 64, "the queue to be full")
    status, headers, said = node.ask("POST", INFER, bundles.sample_request())
    assert (status, said["reason"]) == (503, "queue-full")
    assert int(headers["retry-after"]) >= 1
    os.kill(worker, signal.SIGCONT)
    assert [connection.getresponse().status for connection in connections] == [200] * 64
    for connection in connections:
        connection.close()


def test_a_dead_forkserver_is_replaced_with_its_workers(node: Node, folders: dict[str, Path]) -> None:
    node.point(node.install(folders["1.0.0"]))
    node.start()
    worker, forkserver = node.wait_ready()["worker"], node.status()["forkserver"]
    os.kill(forkserver, signal.SIGKILL)
    eventually(lambda: not is_running(worker), "the worker to end with its forkserver")
    assert eventually(lambda: (d := node.digits())["restarts"] and d["state"] == "ready" and d["worker"], "a new one")
    assert node.status()["forkserver"] != forkserver
    assert node.ask("POST", INFER, bundles.sample_request())[0] == 200


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "told-to-end"])
def test_no_process_outlives_the_server(node: Node, folders: dict[str, Path], number: signal.Signals) -> None:
    node.point(node.install(folders["1.0.0"]))
    node.start()
    pids = [node.wait_ready()["worker"], node.status()["forkserver"]]
    assert all(is_running(pid) for pid in pids)
    assert node.process is not None
    node.process.send_signal(number)
    node.process.wait(PATIENCE_S)
    eventually(lambda: not any(is_running(pid) for pid in pids), "forkserver and worker to end")
    assert node.process.returncode == (-9 if number == signal.SIGKILL else 0)


def test_with_nothing_committed_it_lives_and_is_not_ready(node: Node) -> None:
    node.start()
    assert node.ask("GET", "/v2/health/live")[::2] == (200, {"live": True})
    status, headers, said = node.ask("GET", "/v2/health/ready")
    assert (status, said["ready"]) == (503, False)
    status, headers, said = node.ask("POST", INFER, bundles.sample_request())
    assert (status, said["reason"]) == (503, "nothing-loaded")
    assert int(headers["retry-after"]) >= 1
    assert node.status()["models"] == {}


def test_it_boots_alone_and_warms_the_fallback(node: Node, folders: dict[str, Path]) -> None:
    active, fallback = node.install(folders["1.1.0"]), node.install(folders["1.0.0"])
    node.point(active, fallback)
    node.start()
    standby = eventually(lambda: node.digits()["standby"], "the standby")
    assert standby["release"] == fallback.hex()
    assert node.ask("POST", INFER, bundles.sample_request())[2]["model_version"] == "1.1.0"


@pytest.mark.parametrize("rotten", ["model.tflite", "golden/outputs.json", "manifest"])
def test_rotten_bytes_are_never_served(node: Node, folders: dict[str, Path], rotten: str) -> None:
    active, sound = node.install(folders["1.1.0"]), node.install(folders["1.0.0"])
    data = node.store.read(active)
    manifest = Manifest.parse(data, active, len(data))
    path = node.store.path(active if rotten == "manifest" else Digest(manifest.file(rotten).sha256))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    node.point(active)
    node.start()
    said = eventually(lambda: (d := node.digits())["state"] == "failed" and d, "the server to say so")
    assert said["active"] == active.hex()
    assert said["reason"]
    assert node.ask("GET", "/v2/health/ready")[0] == 503
    assert node.ask("GET", "/v2/models/digits/ready")[0] == 503
    status, _, answer = node.ask("POST", INFER, bundles.sample_request())
    assert (status, answer["reason"]) == (503, "model-failed")
    node.serve(sound)
    assert node.ask("POST", INFER, bundles.sample_request())[2]["model_version"] == "1.0.0"
    assert node.ask("GET", "/v2/health/ready")[0] == 200


def test_a_model_that_rots_under_a_running_worker_is_not_loaded_again(node: Node, folders: dict[str, Path]) -> None:
    active = node.install(folders["1.0.0"])
    node.point(active)
    node.start()
    worker = node.wait_ready()["worker"]
    data = node.store.read(active)
    path = node.store.path(Digest(Manifest.parse(data, active, len(data)).file("model.tflite").sha256))
    shutil.copyfile(bundles.HEAD, path)
    assert node.ask("POST", INFER, bundles.sample_request())[0] == 200
    os.kill(worker, signal.SIGKILL)
    said = eventually(lambda: (d := node.digits())["state"] == "failed" and d, "the restart to be refused")
    assert "rotten" in said["reason"]
    assert node.ask("POST", INFER, bundles.sample_request())[0] == 503
