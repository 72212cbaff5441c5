"""[IO] A shaped link between one node and the hub's broker: real TCP/IP over an emulated road.

`Road` starts a process of its own (`python -m heliograph.lab.emulator`) that makes two network namespaces, *near* (the
hub's side) and *far* (the node's), each with a TUN device, and carries every IP packet between the two as
`heliograph.lab.link` says: so TCP meets real loss, delay, queues and silence. No tc, no netem, no `ip`: devices are set
up by ioctl. Both namespaces have no name, and the machine's own network is not touched.

    node (far) 10.77.0.2 ──TUN──► emulator ──TUN──► 10.77.0.1 (near) ──► 127.0.0.1: the broker
    127.0.0.1:port, for load ─────────────────────► 127.0.0.1:port (far): unshaped

Where namespaces or TUN devices are refused, for want of root, the same process is a `Proxy` on the loopback instead:
rates, delays and outages without loss; `kind` and `why` say so. The process ends with whoever started it, even by
SIGKILL: it reads its orders from a pipe, and its end is the pipe's. What still lives at the far end goes with it.
"""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from heliograph.errors import TransportError
from heliograph.lab.link import Profile

Kind = Literal["namespaces", "proxy"]
_ENTER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.setns(os.open(sys.argv[1], os.O_RDONLY), 0x40000000):
    sys.exit("can't enter the far end of the link: " + os.strerror(ctypes.get_errno()))
if os.path.exists(sys.argv[1]):  # else the link was closed meanwhile, and nobody would end us
    os.execvp(sys.argv[2], sys.argv[2:])
"""


class Road:
    """One shaped link, for as long as it isn't closed. Safe to use from several threads.

    Attributes:
        kind: how it is made.
        why: if by a proxy, why not by namespaces.
        host, port: where a program at the far end finds the hub's broker.
        profile: the one it follows now.
    """

    START_S = 20.0

    def __init__(
        self,
        profile: Profile,
        hub_port: int,
        log: Path,
        *,
        far_ports: Sequence[int] = (),
        seed: int = 0,
        kind: Kind | None = None,
        congestion: str | None = None,
    ) -> None:
        """Returns when the link is there.

        Args:
            profile: what the link is like at first.
            hub_port: the broker's, on this machine's loopback.
            log: where the emulator says what went wrong.
            far_ports: ports of the far end's loopback that can be reached, unshaped, by the same number on ours.
            seed: of its chance.
            kind: insists on one; None: namespaces, else a proxy.
            congestion: TCP's way to send from the hub's side, such as cubic or bbr; None: the system's.

        Raises:
            TransportError: it can't be made, or not this way.
        """
        self.profile = profile
        self._turn = threading.Lock()
        orders = {
            "profile": asdict(profile),
            "hub_port": hub_port,
            "far_ports": list(far_ports),
            "seed": seed,
            "kind": kind,
            "congestion": congestion,
        }
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "heliograph.lab.emulator"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # ctrl-C is for whoever started us; the link stays until it is closed
            )
        try:
            made = self._ask(orders)
        except TransportError:
            self.close()
            raise
        self.kind: Kind = made["kind"]
        self.why: str = made["why"]
        self.host: str = made["host"]
        self.port: int = made["port"]
        self._namespace: str | None = made["namespace"]

    def __enter__(self) -> "Road":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The emulator's process."""
        return self._process.pid

    def at_far_end(self, argv: Sequence[str | Path]) -> list[str | Path]:
        """The command that runs `argv` at the node's side of the link."""
        if self._namespace is None:
            return list(argv)
        return [sys.executable, "-I", "-S", "-c", _ENTER, self._namespace, *argv]

    def cut(self) -> None:
        """Nothing gets through until `restore`."""
        self._ask({"do": "cut"})

    def restore(self) -> None:
        """The link is up again."""
        self._ask({"do": "restore"})

    def reshape(self, profile: Profile) -> None:
        """Another kind of link from now on."""
        self._ask({"do": "reshape", "profile": asdict(profile)})
        self.profile = profile

    def facts(self) -> dict[str, Any]:
        """Whether it is up, and what each direction has carried and lost."""
        return self._ask({"do": "facts"})

    def close(self) -> None:
        """Ends the link and whatever still runs at its far end. Idempotent."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._turn:
            try:
                self._process.stdin.write(json.dumps(order) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except (OSError, ValueError) as error:
                raise TransportError(f"the emulated link is gone: {error}") from error
        answer = dict(json.loads(line)) if line else {"error": "it ended; its log says why"}
        if "error" in answer:
            raise TransportError(f"the emulated link: {answer['error']}")
        return answer
