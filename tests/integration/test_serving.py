"""The server process as applications and the agent meet it: real processes, real sockets, real models."""

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

import bundles
from heliograph.blob import Digest
from heliograph.errors import RefusedError, TransportError
from heliograph.manifest import Manifest
from heliograph.sketch import Sketch
from servers import PATIENCE_S, Node, eventually


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    return {
        "1.0.0": bundles.digits_bundle(root / "1.0.0", "1.0.0", bundles.BASE),
        "1.1.0": bundles.digits_bundle(root / "1.1.0", "1.1.0", bundles.HEAD),
        "1.2.0": bundles.wrong_bundle(root / "1.2.0", "1.2.0", bundles.HEAD),
    }


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> Iterator[Node]:
    """A server of digits@1.0.0 that no test harms or switches."""
    node = Node(tmp_path_factory.mktemp("calm") / "node")
    node.point(node.install(folders["1.0.0"]))
    try:
        node.start()
        node.wait_ready()
        yield node
    finally:
        node.stop()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node's folder of the test's own, nothing installed, nothing running."""
    node = Node(tmp_path / "node")
    yield node
    node.stop()


@pytest.fixture
def client(calm: Node) -> Iterator[triton.InferenceServerClient]:
    with contextlib.closing(triton.InferenceServerClient(calm.address, concurrency=4)) as client:
        yield client


def triton_input(image: Any, binary: bool) -> list[triton.InferInput]:
    given = triton.InferInput("keras_tensor", [1, 16, 16, 1], "INT8")
    given.set_data_from_numpy(image[np.newaxis], binary_data=binary)
    return [given]


class Load:
    """Callers in threads who never stop asking; `failures` is what went wrong, `versions` who answered."""

    def __init__(self, address: str, callers: int = 4) -> None:
        self.failures: list[str] = []
        self.versions: list[str] = []
        self._address = address
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(callers)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        eventually(lambda: len(self.versions) > 20, "the load to flow")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int = 50) -> None:
        """Returns when so many more requests have been answered."""
        goal = len(self.versions) + len(self.failures) + count
        eventually(lambda: len(self.versions) + len(self.failures) >= goal, f"{count} more answers")

    def _run(self) -> None:
        body = json.dumps(bundles.sample_request()).encode()
        connection = http.client.HTTPConnection(self._address, timeout=PATIENCE_S)
        while not self._over.is_set():
            try:
                connection.request("POST", "/v2/models/digits/infer", body)
                answer = connection.getresponse()
                data = answer.read()
            except OSError as error:
                self.failures.append(repr(error))
                return
            if answer.status == 200:
                self.versions.append(json.loads(data)["model_version"])
            else:
                self.failures.append(data.decode())
        connection.close()


# --- real clients ---------------------------------------------------------------------------------------------------


def test_tritonclient_finds_server_and_model(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1.0.0")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("digits")
    assert metadata["versions"] == ["1.0.0"]
    assert metadata["inputs"] == [{"name": "keras_tensor", "datatype": "INT8", "shape": [-1, 16, 16, 1]}]
    assert metadata["outputs"] == [{"name": "output_0", "datatype": "INT8", "shape": [-1, 10]}]
    index = client.get_model_repository_index()
    assert [(row["name"], row["version"], row["state"]) for row in index] == [("digits", "1.0.0", "READY")]


@pytest.mark.parametrize("binary_in", [True, False], ids=["binary-in", "json-in"])
@pytest.mark.parametrize("binary_out", [True, False], ids=["binary-out", "json-out"])
def test_tritonclient_gets_what_the_interpreter_gives(
    client: triton.InferenceServerClient, binary_in: bool, binary_out: bool
) -> None:
    batch = bundles.images(20)
    expected = bundles.run_directly(bundles.BASE.read_bytes(), batch)
    for image, logits in zip(batch, expected, strict=True):
        outputs = [triton.InferRequestedOutput("output_0", binary_data=binary_out)]
        result = client.infer("digits", triton_input(image, binary_in), outputs=outputs, request_id="7")
        got = result.as_numpy("output_0")
        assert got.dtype == np.int8
        assert got.tolist() == [logits.tolist()]
        assert result.get_response()["id"] == "7"
        assert result.get_response()["model_version"] == "1.0.0"


def test_tritonclient_gets_the_same_asynchronously(client: triton.InferenceServerClient) -> None:
    batch = bundles.images(12)
    expected = bundles.run_directly(bundles.BASE.read_bytes(), batch)
    handles = [client.async_infer("digits", triton_input(image, True)) for image in batch]
    got = [handle.get_result(timeout=PATIENCE_S).as_numpy("output_0")[0].tolist() for handle in handles]
    assert got == expected.tolist()


def test_a_batch_gives_the_rows_that_its_images_give_alone(client: triton.InferenceServerClient) -> None:
    batch = bundles.images(5)
    given = triton.InferInput("keras_tensor", list(batch.shape), "INT8")
    given.set_data_from_numpy(batch)
    got = client.infer("digits", [given]).as_numpy("output_0")
    assert got.tolist() == bundles.run_directly(bundles.BASE.read_bytes(), batch).tolist()
    assert client.infer("digits", triton_input(batch[1], True)).as_numpy("output_0").tolist() == [got[1].tolist()]


def test_tritonclient_is_told_why_in_its_own_exception(client: triton.InferenceServerClient) -> None:
    wrong = triton.InferInput("keras_tensor", [1, 8, 8, 1], "INT8")
    wrong.set_data_from_numpy(np.zeros((1, 8, 8, 1), np.int8))
    with pytest.raises(triton.InferenceServerException, match=r"has shape \[1, 8, 8, 1\]"):
        client.infer("digits", [wrong])
    with pytest.raises(triton.InferenceServerException, match="release's life"):
        client.load_model("digits")
    with pytest.raises(triton.InferenceServerException, match="release's life"):
        client.unload_model("digits")


# --- the protocol's edges --------------------------------------------------------------------------------------------

INFER = "/v2/models/digits/infer"


def test_every_answer_names_the_release_that_gave_it(calm: Node) -> None:
    status, headers, body = calm.ask("POST", INFER, bundles.sample_request())
    assert status == 200
    assert body["model_version"] == "1.0.0"
    assert headers["heliograph-release"] == calm.digits()["active"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "reason"),
    [
        ("POST", INFER, b"not json", 400, "bad-request"),
        ("POST", INFER, b'{"inputs": [{"name": "keras_tensor", "datatype": "FP32", "shape": [1], "data": [NaN]}]}', 400,
         "bad-request"),
        ("POST", INFER, {"inputs": []}, 400, "bad-request"),
        ("POST", INFER, {**bundles.sample_request(), "outputs": [{"name": "nope"}]}, 400, "bad-request"),
        ("POST", "/v2/models/nope/infer", bundles.sample_request(), 404, "unknown-model"),
        ("POST", "/v2/models/digits/versions/9.9.9/infer", bundles.sample_request(), 404, "unknown-model"),
        ("GET", "/v2/models/nope/ready", b"", 404, "unknown-model"),
        ("GET", "/v2/nothing", b"", 404, "no-such-path"),
        ("GET", "/control/status", b"", 404, "no-such-path"),
        ("GET", INFER, b"", 404, "no-such-path"),
        ("POST", "/v2/repository/models/digits/unload", b"", 403, "not-offered"),
        ("POST", INFER, b"x" * ((64 << 20) + 1), 413, "too-large"),
    ],
    ids=[
        "no-json", "nan", "no-input", "no-output", "model", "version", "ready", "path", "control", "get", "unload",
        "size",
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence(
    calm: Node, method: str, path: str, body: Any, status: int, reason: str
) -> None:
    got, _, said = calm.ask(method, path, body)
    assert (got, said["reason"]) == (status, reason)
    assert said["error"]
    assert "\n" not in said["error"]
    assert calm.ask("POST", INFER, bundles.sample_request())[0] == 200


def test_a_body_without_stated_length_is_bounded_too(calm: Node) -> None:
    host, port = calm.address.split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as sock:
        sock.sendall(f"POST {INFER} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(80):
                sock.sendall(chunk)
            sock.sendall(b"0\r\n\r\n")
        assert b" 413 " in sock.recv(4096).split(b"\r\n")[0]


def test_an_answer_does_not_wait_for_a_delayed_acknowledgement(calm: Node) -> None:
    took = []
    with contextlib.closing(http.client.HTTPConnection(calm.address, timeout=PATIENCE_S)) as connection:
        for _ in range(60):  # the kernel acknowledges the first segments of a connection at once
            began = time.perf_counter()
            connection.request("POST", INFER, json.dumps(bundles.sample_request()))
            assert connection.getresponse().read()
            took.append(time.perf_counter() - began)
    assert sorted(took[-20:])[10] < 0.035, "Nagle's algorithm costs 40 ms"


def test_a_coded_body_is_refused(calm: Node) -> None:
    status, _, said = calm.ask("POST", INFER, b"\x1f\x8b", {"content-encoding": "gzip"})
    assert (status, said["reason"]) == (415, "coding")


def test_statistics_count_answers_and_not_callers_faults(calm: Node) -> None:
    def counted() -> dict[str, Any]:
        return dict(calm.ask("GET", "/v2/models/digits/stats")[2]["model_stats"][0])

    before = counted()["inference_count"]
    calm.ask("POST", INFER, bundles.sample_request())
    calm.ask("POST", INFER, b"nonsense")
    after = counted()
    assert after["inference_count"] == before + 1
    assert after["inference_stats"]["fail"]["count"] == 0
    assert after["latency_ms"]["p95"] >= after["latency_ms"]["p50"] > 0
    assert after["memory_bytes"] > 1 << 20


def test_the_sockets_are_where_and_as_private_as_they_must_be(calm: Node) -> None:
    def mode(name: str) -> int:
        return stat.S_IMODE((calm.folder / name).stat().st_mode)

    assert (mode("control.sock"), mode("serve.sock")) == (0o600, 0o660)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(os.path.relpath(calm.folder / "serve.sock"))
        sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        data = b"".join(iter(lambda: sock.recv(4096), b""))
    assert data.endswith(b'{"live":true}')


def test_a_second_server_in_the_folder_is_refused(calm: Node) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "heliograph_site.serving", str(calm.folder)], capture_output=True, text=True, timeout=60
    )
    assert second.returncode == 2
    assert "runs in" in second.stderr
    assert calm.ask("GET", "/v2/health/ready")[0] == 200


@pytest.mark.parametrize(
    ("text", "says"),
    [('http_host = "0.0.0.0"', "not a loopback"), ("http_port = 99999", "not a port"), ("=", "is not TOML"),
     (None, "node join")],
)  # fmt: skip
def test_a_folder_that_can_not_be_served_is_told_why(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "node.toml").write_text(text)
    run = subprocess.run(
        [sys.executable, "-m", "heliograph_site.serving", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 2
    assert says in run.stderr
    assert run.stderr.count("\n") == 1


# --- isolation ------------------------------------------------------------------------------------------------------


def test_gateway_and_agents_client_load_neither_numpy_nor_a_runtime(calm: Node) -> None:
    maps = Path(f"/proc/{calm.status()['pid']}/maps").read_text()
    assert "numpy" not in maps
    assert "tflite" not in maps
    assert "tflite" in Path(f"/proc/{calm.digits()['worker']}/maps").read_text()
    code = (
        "import sys; import heliograph_site.serving.{}; heavy = [name for name in {!r} if name in sys.modules];"
        "sys.exit(', '.join(heavy) or None)"
    )
    runtimes = ["numpy", "tflite_runtime", "ai_edge_litert"]
    for module, heavy in (("__main__", runtimes), ("control", [*runtimes, "uvicorn", "starlette", "httpx", "typer"])):
        run = subprocess.run([sys.executable, "-c", code.format(module, heavy)], capture_output=True, text=True)
        assert run.returncode == 0, f"{module} imports {run.stderr}"


def test_the_forkserver_has_one_thread_when_it_forks(calm: Node) -> None:
    assert "Threads:\t1\n" in Path(f"/proc/{calm.status()['forkserver']}/status").read_text()


def test_a_worker_can_gain_no_privileges_and_leaves_no_core(calm: Node) -> None:
    pid = calm.digits()["worker"]
    assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert next(line.split()[4:6] for line in limits.splitlines() if "core file" in line) == ["0", "0"]
    names = {fd.readlink() for fd in Path(f"/proc/{pid}/fd").iterdir()}
    assert sum(str(name).startswith("socket:") for name in names) == 1, "only the gateway's own socket"


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


# --- the node alone -------------------------------------------------------------------------------------------------


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


# --- the agent's line -----------------------------------------------------------------------------------------------


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
