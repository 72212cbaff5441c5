"""Shaped links over the kernel's own TCP, the proxy where namespaces are refused, and the `lab` command."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from heliograph.errors import TransportError
from heliograph.lab import Road, Running, load_profile, spawn, wait_until
from heliograph.lab.link import Outages, Profile, Shape
from terminals import Typed, typed

FETCH = """
import socket, sys, time
began = time.monotonic()
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
connected = time.monotonic()
count = 0
while data := sock.recv(65536):
    count += len(data)
print(connected - began, count, time.monotonic() - connected)
"""
CLI = [sys.executable, "-m", "heliograph.cli"]


@pytest.fixture(scope="module")
def namespaces() -> None:
    """Only where they can be made."""
    folder = Path(os.devnull)
    try:
        Road(load_profile("lan"), 9, folder, kind="namespaces").close()
    except TransportError as error:
        pytest.skip(f"no namespaces here: {error}")


class Source:
    """Sends every caller the same number of bytes; 0: one byte every 10 ms, for ever."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._send, args=(sock,), daemon=True).start()

    def _send(self, sock: socket.socket) -> None:
        try:
            with sock:
                sock.sendall(bytes(self._count))
                while not self._count:
                    sock.sendall(b".")
                    time.sleep(0.01)  # the pace of the stream
        except OSError:
            pass

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def source(request: pytest.FixtureRequest) -> Iterator[Source]:
    made = Source(getattr(request, "param", 0))
    yield made
    made.close()


def fetched(road: Road) -> tuple[float, int, float]:
    """Seconds to connect, bytes, seconds to have them all; from the far end."""
    argv = road.at_far_end([sys.executable, "-c", FETCH, road.host, str(road.port)])
    done = subprocess.run([str(part) for part in argv], capture_output=True, text=True, timeout=100, check=True)
    connect_s, count, took_s = done.stdout.split()
    return float(connect_s), int(count), float(took_s)


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize(
    ("name", "source"),
    [("m256", 80_000), pytest.param("sat64", 60_000, marks=pytest.mark.full), ("shop2m", 400_000), ("lossy", 100_000)],
    indirect=["source"],
)
def test_tcp_gets_its_share_of_a_link_and_no_more(name: str, source: Source, tmp_path: Path) -> None:
    profile = load_profile(name)
    with Road(profile, source.port, tmp_path / "log", seed=3) as road:
        connect_s, count, took_s = fetched(road)
        facts = road.facts()
    assert (road.kind, road.why) == ("namespaces", "")
    assert profile.rtt_s <= connect_s
    rate = profile.down.rate_bytes_per_s
    # Nothing can come before the handshake is over, which takes a round trip; whoever looks may look late.
    assert count / rate <= connect_s - profile.rtt_s + took_s
    share = count / took_s / rate
    assert share > (0.15 if profile.down.loss_share else 0.5), share
    assert facts["down"]["bytes"] > count and facts["up"]["packets"] > 5
    assert (facts["down"]["lost"] > 0) == (profile.down.loss_share > 0)


@pytest.mark.usefixtures("namespaces")
def test_a_queue_that_is_too_short_drops_and_tcp_still_gets_through(tmp_path: Path) -> None:
    shape = Shape(rate_bit_s=4_000_000, delay_s=0.02, buffer_bytes=6000)
    source = Source(400_000)
    with Road(Profile("short", "", shape, shape), source.port, tmp_path / "log") as road:
        assert fetched(road)[1] == 400_000
        assert road.facts()["down"]["overflowed"] > 0
    source.close()


LISTEN = """
import socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
while data := sock.recv(65536):
    print(data.decode(), end="", flush=True)
"""


def silent(listening: Running, seconds: float) -> bool:
    """Whether it hears nothing for so long, once what was on its way is there."""
    before = len(listening.output())
    end = time.monotonic() + 5
    while True:
        time.sleep(seconds)  # time itself is looked at: nothing comes in it
        if (now := len(listening.output())) == before:
            return True
        if time.monotonic() > end:
            return False
        before = now


@pytest.mark.parametrize("kind", ["namespaces", "proxy"])
def test_a_cut_is_silence_and_after_it_the_same_connection_goes_on(
    kind: Any, source: Source, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "namespaces":
        request.getfixturevalue("namespaces")
    with Road(load_profile("lan"), source.port, tmp_path / "log", kind=kind) as road:
        assert road.kind == kind
        argv = road.at_far_end([sys.executable, "-u", "-c", LISTEN, road.host, str(road.port)])
        listening = spawn(argv, tmp_path / "heard")
        try:
            wait_until(lambda: len(listening.output()) > 20, 30, "bytes arrive")
            road.cut()
            assert silent(listening, 0.5)
            heard = len(listening.output())
            assert (road.facts()["is_up"], road.facts()["is_cut"], listening.is_alive) == (False, True, True)
            road.restore()
            wait_until(lambda: len(listening.output()) > heard + 20, 30, "bytes arrive again")
        finally:
            listening.kill()


@pytest.mark.parametrize("kind", ["namespaces", "proxy"])
def test_outages_of_the_profile_come_and_go_by_themselves(
    kind: Any, source: Source, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "namespaces":
        request.getfixturevalue("namespaces")
    profile = Profile("weather", "", Shape(), Shape(), Outages(first_s=0.6, every_s=1.2, length_s=0.6))
    with Road(profile, source.port, tmp_path / "log", kind=kind) as road:
        for expected in (False, True, False):
            wait_until(lambda expected=expected: road.facts()["is_up"] is expected, 30, "the weather changes")  # type: ignore[misc]
        assert not road.facts()["is_cut"]
        road.reshape(load_profile("lan"))
        assert road.facts()["is_up"]


@pytest.mark.parametrize("source", [200_000], indirect=True)
def test_the_proxy_keeps_to_the_rate_and_to_the_delay(source: Source, tmp_path: Path) -> None:
    profile = load_profile("shop2m")
    with Road(profile, source.port, tmp_path / "log", kind="proxy") as road:
        assert (road.kind, road.why, road.host) == ("proxy", "asked for", "127.0.0.1")
        connect_s, count, took_s = fetched(road)
        assert count == 200_000
        # A quarter second's worth may be in its buffer at once.
        assert connect_s + took_s > 0.6 * count / profile.down.rate_bytes_per_s


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="capabilities are Linux's")
def test_where_namespaces_are_refused_the_link_is_a_proxy_and_says_why(source: Source, tmp_path: Path) -> None:
    program = f"""
import ctypes, os, sys
if sys.argv[1:] == []:
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(24, 21)  # drops CAP_SYS_ADMIN for good
    os.execv(sys.executable, [sys.executable, __file__, "again"])
from pathlib import Path
from heliograph.lab import Road, load_profile
with Road(load_profile("m256"), {source.port}, Path({str(tmp_path / "log")!r})) as road:
    print(road.kind, road.why)
"""
    script = tmp_path / "script.py"
    script.write_text(program)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("proxy no network namespaces with TUN devices here"), done.stdout


@pytest.mark.usefixtures("namespaces")
def test_the_far_end_sees_only_its_link_and_the_machine_sees_nothing_of_it(source: Source, tmp_path: Path) -> None:
    before = sorted(Path("/sys/class/net").iterdir())
    with Road(load_profile("lan"), source.port, tmp_path / "log") as road:
        inside = "import socket; print(sorted(name for _, name in socket.if_nameindex()))"
        argv = [str(part) for part in road.at_far_end([sys.executable, "-c", inside])]
        seen = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True).stdout
        assert "'lo'" in seen and "'road'" in seen
        assert not {"eth0", "docker0"} & set(eval(seen))  # noqa: S307 - our own list
        assert sorted(Path("/sys/class/net").iterdir()) == before


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.usefixtures("namespaces")
def test_whoever_made_the_link_may_be_killed_and_nothing_is_left(source: Source, tmp_path: Path) -> None:
    program = f"""
import signal, subprocess, sys
from pathlib import Path
from heliograph.lab import Road, load_profile, spawn
folder = Path({str(tmp_path)!r})
road = Road(load_profile("lan"), {source.port}, folder / "log")
far = spawn(road.at_far_end(["sleep", "1000"]), folder / "far")
near = spawn(["sleep", "1000"], folder / "near", dies_with_us=True)
print(road.pid, far.process.pid, near.process.pid, flush=True)
signal.pause()
"""
    maker = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    try:
        assert select.select([maker.stdout], [], [], 60)[0]
        pids = [int(pid) for pid in maker.stdout.readline().split()]
        assert len(pids) == 3 and not any(map(is_gone, pids))
        both = [Path(f"/proc/{pid}/comm") for pid in pids[1:]]
        wait_until(lambda: all(comm.read_text() == "sleep\n" for comm in both), 30, "both sleep")
    finally:
        maker.kill()
        maker.wait()
        maker.stdout.close()
    for pid, what in zip(pids, ("the emulator", "what ran at the far end", "what ran beside us"), strict=True):
        wait_until(lambda pid=pid: is_gone(pid), 30, f"{what} is gone")  # type: ignore[misc]


# --- the command ------------------------------------------------------------------------------------------------------


def lab(folder: Path, *args: str) -> Typed | subprocess.CompletedProcess[str]:
    if args[0] != "run":  # which would run for ever, if it didn't fail
        return typed("lab", *args, HELIOGRAPH_LAB=str(folder))
    return subprocess.run(
        [*CLI, "lab", *args], env={**os.environ, "HELIOGRAPH_LAB": str(folder)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def node_facts(folder: Path, ring: str) -> dict[str, Any]:
    status = json.loads(lab(folder, "status", "--json").stdout)
    return next(dict(node) for node in status["nodes"] if node["ring"] == ring)


def processes_of(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words:
            found.append(words)
    return found


def test_a_lab_starts_is_cut_restored_and_killed_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    folder = tmp_path / "lab"
    running = spawn([*CLI, "lab", "run", "--profile", "lan", "--dir", folder], tmp_path / "said")
    try:
        running.wait_for_line("Ctrl-C ends everything", 180)
        wait_until(lambda: lab(folder, "status").returncode == 0, 30, "it answers")
        wait_until(lambda: node_facts(folder, "canary")["connected"], 60, "the canary is connected")
        assert lab(folder, "cut", "canary").stdout == "the link of shop-1/till is down\n"
        assert [node_facts(folder, ring)["link"] for ring in ("canary", "early")] == ["cut", "up"]
        assert lab(folder, "restore", "shop-1/till").returncode == 0
        assert node_facts(folder, "canary")["link"] == "up"
        assert lab(folder, "kill", "general").returncode == 0
        assert not node_facts(folder, "general")["runs"]
        assert lab(folder, "restore", "general").returncode == 0
        assert node_facts(folder, "general")["runs"]
        moon = lab(folder, "cut", "moon")
        assert (moon.returncode, moon.stdout) == (3, "")
        assert moon.stderr.startswith("heliograph: the lab has no node moon: use one of shop-1/till (canary)")
        idle = lab(folder, "load", "canary", "--rps", "5")
        assert idle.returncode == 3 and "serves no model yet" in idle.stderr
        second = lab(folder, "run", "--dir", str(folder))
        assert second.returncode == 4 and "a lab runs in" in second.stderr
    finally:
        running.process.send_signal(signal.SIGINT)
        code = running.terminate() if running.process.poll() is None else running.process.returncode
    assert code == 0, running.output()
    wait_until(lambda: not processes_of(folder), 30, "every process has ended")


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["run", "--profile", "moon"], 3, "there is no profile moon: use one of cut1m"),
        (["status"], 1, "no lab runs in"),
        (["kill", "hub"], 1, "no lab runs in"),
        (["load", "moon", "--rps", "1"], 3, "the lab has no node moon"),
    ],
)
def test_wrong_input_to_the_lab_is_told_in_one_sentence(args: list[str], code: int, told: str, tmp_path: Path) -> None:
    done = lab(tmp_path / "none", *args)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"heliograph: {told}") and done.stderr.count("\n") == 1


def test_a_lab_takes_no_folder_in_which_something_lies(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    done = lab(tmp_path, "run", "--dir", str(tmp_path))
    assert done.returncode == 2 and "is not empty" in done.stderr
    assert (tmp_path / "mine").exists()
