"""Programs on this machine: the ports they are given, and how they are ended."""

import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from heliograph.lab import free_port, spawn

PORTS = """
import sys
from heliograph.lab import free_port
print(*(free_port() for _ in range(int(sys.argv[1]))), flush=True)
sys.stdin.read()
"""
KERNELS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_a_port_that_is_chosen_stays_free_whatever_other_processes_choose_or_the_kernel_gives() -> None:
    argv = [sys.executable, "-c", PORTS, "40"]
    with ExitStack() as stack:
        others = [
            stack.enter_context(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(3)
        ]
        lines = [other.stdout.readline() for other in others if other.stdout is not None]
        chosen = [int(port) for line in lines for port in line.split()] + [free_port() for _ in range(40)]
    assert len(set(chosen)) == len(chosen) == 160
    lowest, highest = map(int, KERNELS.read_text().split())
    assert not [port for port in chosen if lowest <= port <= highest]


def test_a_port_on_which_somebody_listens_is_not_given() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        assert port not in {free_port() for _ in range(300)}


DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(1000)
"""


@pytest.mark.timeout(60)
def test_what_does_not_end_when_it_is_told_to_is_ended_when_the_time_is_up(tmp_path: Path) -> None:
    deaf = spawn([sys.executable, "-c", DEAF], tmp_path / "log")
    deaf.wait_for_line("deaf")
    assert deaf.terminate(0.1) == -signal.SIGKILL
    assert not deaf.is_alive
