"""A node's folder with a server process, and no agent: for tests of what applications and the agent meet."""

import asyncio
import contextlib
import dataclasses
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from heliograph.blob import Digest
from heliograph.errors import TransportError
from heliograph.objects import ObjectStore
from heliograph_hub.bundle import pack
from heliograph_site.journal import Journal
from heliograph_site.memory import Memory, Pointer
from heliograph_site.serving.control import ServerControl

PATIENCE_S = 30.0


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of `condition`; asks again until then."""
    end = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {PATIENCE_S:g} s for: {what}"
        time.sleep(0.01)
    return value


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
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "heliograph_site.serving", str(self.folder)], stderr=log
            )
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
