"""The model server as real clients meet it, at the edges of its protocol, and what its processes may do."""

import contextlib
import http.client
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

import bundles
from servers import INFER, PATIENCE_S, Node


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
def client(calm: Node) -> Iterator[triton.InferenceServerClient]:
    with contextlib.closing(triton.InferenceServerClient(calm.address, concurrency=4)) as client:
        yield client


def triton_input(image: Any, binary: bool) -> list[triton.InferInput]:
    given = triton.InferInput("keras_tensor", [1, 16, 16, 1], "INT8")
    given.set_data_from_numpy(image[np.newaxis], binary_data=binary)
    return [given]


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
    """A body stays behind its head for it, whatever else the answer takes on a busy machine."""
    behind = []
    with contextlib.closing(http.client.HTTPConnection(calm.address, timeout=PATIENCE_S)) as connection:
        for _ in range(60):  # the kernel acknowledges the first segments of a connection at once
            connection.request("POST", INFER, json.dumps(bundles.sample_request()))
            answer = connection.getresponse()
            began = time.perf_counter()
            assert answer.read()
            behind.append(time.perf_counter() - began)
    assert sorted(behind[-20:])[10] < 0.02, "Nagle's algorithm costs 40 ms"


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
    assert next(line.split()[4:6] for line in limits.splitlines() if "core file" in line) == ["1", "1"], (
        "a program gets none either"
    )
    names = {fd.readlink() for fd in Path(f"/proc/{pid}/fd").iterdir()}
    assert sum(str(name).startswith("socket:") for name in names) == 1, "only the gateway's own socket"
