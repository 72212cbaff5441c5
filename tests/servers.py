"""A node's folder with a server process, and no agent: for tests of what applications and the agent meet."""

import asyncio
import contextlib
import dataclasses
import http.client
import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import bundles
import warm
from heliograph.blob import Digest
from heliograph.errors import TransportError
from heliograph.objects import ObjectStore
from heliograph_hub.bundle import pack
from heliograph_site.journal import Journal
from heliograph_site.memory import Memory, Pointer
from heliograph_site.serving.control import ServerControl
from waits import eventually

PATIENCE_S = 60.0
INFER = "/v2/models/digits/infer"


class Node:
    """A node's folder and its server process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True)
        (folder / "node.toml").write_text('http_host = "127.0.0.1"\nhttp_port = 0\n')
        self.store = ObjectStore(folder / "objects")
        self.control = ServerControl(folder / "control.sock")
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "server.log"

    def install(self, bundle: Path, **changes: Any) -> Digest:
        """Puts a release's files and manifest into the object store, as a finished fetch would."""
        packed = pack(bundle)
        for path in packed.paths.values():
            self.store.put_file(path)
        manifest = packed.manifest.model_copy(update=changes)
        return self.store.put(manifest.encode())

    def point(self, active: Digest, fallback: Digest | None = None) -> None:
        """Commits the pointers."""
        memory = Memory("digits", active=Pointer(active, 1))
        if fallback is not None:
            memory = dataclasses.replace(memory, fallback=Pointer(fallback, 0))
        with Journal(self.folder / "journal.sqlite") as journal:
            journal.save(memory)

    def start(self) -> None:
        self.process = warm.spawn("heliograph_site.serving.__main__", [self.folder], self.log).process
        eventually(self.try_status, "the server's control socket")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()  # its workers end with it
                self.process.wait()
                raise

    def try_status(self) -> dict[str, Any] | None:
        assert self.process is None or self.process.poll() is None, self.log.read_text()
        try:
            return self.status()
        except TransportError:
            return None

    def status(self) -> dict[str, Any]:
        return asyncio.run(self.control.status())

    def digits(self) -> dict[str, Any]:
        return dict(self.status()["models"]["digits"])

    def wait_ready(self) -> dict[str, Any]:
        return dict(eventually(lambda: (d := self.digits())["state"] == "ready" and d, "digits to be ready"))

    def check(self, release: bytes, **options: Any) -> dict[str, Any]:
        return asyncio.run(self.control.check("digits", release, **options))

    def serve(self, release: bytes) -> dict[str, Any]:
        return asyncio.run(self.control.serve("digits", release))

    def drop(self, release: bytes) -> dict[str, Any]:
        return asyncio.run(self.control.drop("digits", release))

    @property
    def address(self) -> str:
        return str(self.status()["http"]).removeprefix("http://")

    def ask(
        self, method: str, path: str, body: bytes | dict[str, Any] = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers (lower case) and body, as JSON where it is."""
        with contextlib.closing(http.client.HTTPConnection(self.address, timeout=PATIENCE_S)) as connection:
            content = json.dumps(body).encode() if isinstance(body, dict) else body
            connection.request(method, path, content, headers or {})
            answer = connection.getresponse()
            data = answer.read()
            got = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, got, json.loads(data) if got.get("content-type") == "application/json" else data


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


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
                connection.request("POST", INFER, body)
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
