"""Requests a second, latency, memory and cold start of the server, beside the interpreter called in process.

    python tests/bench/serving.py [--json FILE] [--seconds S]

Digits int8, one image a request, binary tensors and JSON, over loopback TCP with connections kept open.
The callers run in this process and share its processors with the server. Medians of interleaved rounds.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bundles
from heliograph.errors import TransportError
from heliograph.objects import ObjectStore
from heliograph_hub.bundle import pack
from heliograph_site.journal import Journal
from heliograph_site.memory import Memory, Pointer
from heliograph_site.serving.control import ServerControl
from heliograph_site.serving.slot import memory_bytes

ROUNDS = 3


class Caller(asyncio.Protocol):
    """Sends one request again and again and keeps how long each answer took."""

    def __init__(self, request: bytes, end: float) -> None:
        self.request, self.end = request, end
        self.took: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.data = bytearray()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._ask()

    def _ask(self) -> None:
        self.began = time.perf_counter()
        if self.began >= self.end:
            self.transport.close()
            self.done.set_result(None)
            return
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, blank, body = bytes(self.data).partition(b"\r\n\r\n")
        if not blank:
            return
        assert head.startswith(b"HTTP/1.1 200"), head
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        if len(body) >= length:
            self.took.append(time.perf_counter() - self.began)
            self.data.clear()
            self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server closed the connection"))


def figures(took: list[float], seconds: float) -> dict[str, float]:
    """Rate, p50 and p95."""
    ordered = sorted(took)
    return {
        "per_s": round(len(ordered) / seconds, 1),
        "p50_ms": round(ordered[len(ordered) // 2] * 1000, 3),
        "p95_ms": round(ordered[int(len(ordered) * 0.95)] * 1000, 3),
    }


async def measure(address: str, request: bytes, callers: int, seconds: float) -> dict[str, float]:
    """Figures of so many callers at once."""
    host, port = address.split(":")
    loop = asyncio.get_running_loop()
    end = time.perf_counter() + seconds
    running = [(await loop.create_connection(lambda: Caller(request, end), host, int(port)))[1] for _ in range(callers)]
    await asyncio.gather(*(caller.done for caller in running))
    return figures([took for caller in running for took in caller.took], seconds)


def directly(seconds: float) -> dict[str, float]:
    """Figures of the interpreter in this process."""
    interpreter = bundles.Interpreter(model_content=bundles.BASE.read_bytes(), num_threads=1)
    interpreter.allocate_tensors()
    given, gives = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    image = bundles.images(1)
    took, end = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        interpreter.set_tensor(given, image)
        interpreter.invoke()
        interpreter.get_tensor(gives)
        took.append(time.perf_counter() - began)
    return figures(took, seconds)


def request_bytes(head: dict[str, Any], raw: bytes) -> bytes:
    """An HTTP request for one inference."""
    encoded = json.dumps(head).encode()
    length = f"inference-header-content-length: {len(encoded)}\r\n" if raw else ""
    lines = (
        f"POST /v2/models/digits/infer HTTP/1.1\r\nhost: x\r\n{length}content-length: {len(encoded) + len(raw)}\r\n\r\n"
    )
    return lines.encode() + encoded + raw


def requests() -> dict[str, bytes]:
    """The same image as binary and as JSON."""
    image = bundles.images(1)[0].tobytes()
    head = {
        "inputs": [
            {
                "name": "keras_tensor",
                "datatype": "INT8",
                "shape": [1, 16, 16, 1],
                "parameters": {"binary_data_size": len(image)},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    return {"binary": request_bytes(head, image), "json": request_bytes(bundles.sample_request(), b"")}


def start(folder: Path) -> tuple[subprocess.Popen[bytes], dict[str, Any], float]:
    """A server of digits@1.0.0 in a new folder, its status once ready, and the seconds that took."""
    node = folder / "node"
    node.mkdir()
    (node / "node.toml").write_text('http_host = "127.0.0.1"\nhttp_port = 0\n')
    bundle = pack(bundles.digits_bundle(folder / "bundle", "1.0.0"))
    store = ObjectStore(node / "objects")
    for path in bundle.paths.values():
        store.put_file(path)
    release = store.put(bundle.manifest.encode())
    with Journal(node / "journal.sqlite") as journal:
        journal.save(Memory("digits", active=Pointer(release, 1)))
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "heliograph_site.serving", str(node)], stderr=subprocess.DEVNULL)
    control = ServerControl(node / "control.sock")
    while True:
        try:
            status = asyncio.run(control.status())
            if status["models"].get("digits", {}).get("state") == "ready":
                return process, status, time.perf_counter() - began
        except TransportError:
            pass
        if time.perf_counter() - began > 30:
            raise SystemExit("the server was not ready within 30 s")
        time.sleep(0.005)


def main() -> None:
    """Measures and prints; about `ROUNDS` * 6 * S seconds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the facts here")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default 2, at most 3)")
    options = parser.parse_args()
    seconds = min(options.seconds, 3.0)
    with tempfile.TemporaryDirectory() as folder:
        process, status, cold_s = start(Path(folder))
        try:
            address = status["http"].removeprefix("http://")
            forms = requests()
            cases = [(form, callers) for form in forms for callers in (1, 8)]
            rounds: dict[str, list[dict[str, float]]] = {}
            for _ in range(ROUNDS):
                rounds.setdefault("interpreter in process", []).append(directly(seconds))
                for form, callers in cases:
                    got = asyncio.run(measure(address, forms[form], callers, seconds))
                    rounds.setdefault(f"server, {form}, {callers} at once", []).append(got)
            memory = {
                "gateway": memory_bytes(status["pid"]),
                "forkserver": memory_bytes(status["forkserver"]),
                "worker": memory_bytes(status["models"]["digits"]["worker"]),
            }
        finally:
            process.terminate()
            process.wait(30)
    results = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in rounds.items()
    }
    facts = {
        "machine": {"arch": platform.machine(), "processors": os.cpu_count(), "python": platform.python_version()},
        "rounds": ROUNDS,
        "seconds": seconds,
        "results": results,
        "memory_pss_bytes": {**memory, "all": sum(memory.values())},
        "cold_start_s": round(cold_s, 3),
    }
    print(f"{'':34}{'req/s':>10}{'p50 ms':>10}{'p95 ms':>10}")
    for name, row in results.items():
        print(f"{name:34}{row['per_s']:>10,.0f}{row['p50_ms']:>10.3f}{row['p95_ms']:>10.3f}")
    shown = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in facts["memory_pss_bytes"].items())  # type: ignore[attr-defined]
    print(f"memory (PSS): {shown}; start of the process to ready: {cold_s:.2f} s")
    if options.json:
        options.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
