"""Goodput of a transfer and the latency of a denial behind it, through a real broker over emulated links.

    python tests/bench/link.py [--json FILE] [--profile NAME ...] [--seconds S] [--congestion NAME]

For each profile, all at once: Mosquitto, a link of namespaces and TUN devices (a TCP proxy without root), our transfer
saturating it, and every 2.5 s a message of 300 bytes by QoS 1. Beside it, on a second link of the same
kind, one plain TCP connection. Goodput is the blob's bytes over what the link could carry as IP packets while it was
up, from the first to the last that came. No TLS: that costs another 1 to 2 %.
"""

import argparse
import asyncio
import contextlib
import json
import platform
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

from heliograph.blob import LEAF_BYTES, PAGE_SPAN_BYTES, describe, page_of
from heliograph.connection import Broker
from heliograph.documents import Chunk, Want
from heliograph.errors import TransportError
from heliograph.lab import Road, free_port, load_profile, start_mosquitto
from heliograph.lab.link import Profile
from heliograph.mosquitto import Listener
from heliograph.mqtt import Mqtt
from heliograph.sender import Sender
from heliograph.transfer import BlobFetch, Fetcher

NODE = "heliograph/v1/bench/node/shop-1/till"
WANT, CHUNK, DENY = f"{NODE}/up/want", f"{NODE}/down/chunk", "heliograph/v1/bench/deny/all"
PROFILES = ("sat64", "m256", "cut1m")
GOALS = {
    "sat64": "goodput ≥ 94 %",
    "m256": "goodput ≥ plain TCP - 3 %; denial ≤ 0.5 s median, ≤ 1 s worst",
    "cut1m": "goodput ≥ 90 % of the time up",
}
IDLE_DENIALS, DENIAL_EVERY_S = 3, 2.5


def blob_of(length: int) -> bytes:
    return Random(0).randbytes(length)


# --- the far end ------------------------------------------------------------------------------------------------------


async def far(host: str, port: int, length: int, seconds: float) -> dict[str, Any]:
    """Hears a few denials on the idle link, then fetches for so long; what it saw."""
    digest, pages = describe(blob_of(length))
    rng = Random(1)
    fetch = BlobFetch(digest, length, pages, rng.randbytes(4))
    fetcher = Fetcher()
    wake, idle_done, up = asyncio.Event(), asyncio.Event(), asyncio.Event()
    idle: list[float] = []
    busy: list[float] = []
    sizes: list[int] = []
    connects = 0
    arrivals: list[tuple[float, int]] = []

    async def on_message(topic: str, payload: bytes, _retained: bool) -> None:
        if topic == DENY:
            sent = struct.unpack_from("<d", payload)[0]
            (busy if idle_done.is_set() else idle).append(time.monotonic() - sent)
            if len(idle) >= IDLE_DENIALS:
                idle_done.set()
            return
        fetcher.on_chunk(Chunk.decode(payload), time.monotonic())
        fetch.pages_to_keep()
        arrivals.append((time.monotonic(), fetch.bytes_held))
        sizes.append(fetcher.window.size_bytes)
        wake.set()

    async def on_link(is_up: bool) -> None:
        nonlocal connects
        connects += is_up
        if is_up:
            up.set()
        else:
            up.clear()
            fetcher.on_link_lost(lambda: rng.randbytes(4))
        wake.set()

    mqtt = Mqtt(Broker(host, port), "till", [(DENY, 1), (CHUNK, 0)], rng, on_message, on_link)
    running = asyncio.create_task(mqtt.run())
    await idle_done.wait()
    fetcher.add(fetch)
    began = time.monotonic()
    while (left := began + seconds - time.monotonic()) > 0 and not fetch.complete:
        wake.clear()
        if up.is_set():
            if fetcher.on_time(time.monotonic()):
                await mqtt.probe(5.0)
            with contextlib.suppress(TransportError):
                for want in fetcher.wants(time.monotonic()):
                    await mqtt.publish(WANT, want.encode(), qos=0)
        deadline = fetcher.next_deadline(time.monotonic()) if up.is_set() else None
        wait_s = left if deadline is None else min(left, max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(wake.wait(), wait_s)
    running.cancel()
    window = fetcher.window
    leaves = [arrival for arrival in arrivals if arrival[1]]
    return {
        "bytes": leaves[-1][1] - leaves[0][1],
        "began": leaves[0][0],
        "ended": leaves[-1][0],
        "idle_s": idle,
        "denial_s": busy,
        "resent": fetch.bytes_resent,
        "connects": connects,
        "window_bytes": statistics.median(sizes) if sizes else None,
        "smallest_rtt_s": window.smallest_s,
    }


PLAIN = """
import json, socket, sys, time
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
end = time.monotonic() + float(sys.argv[3])
sock.settimeout(1)
sock.recv(1)
began, count = time.monotonic(), 0
while time.monotonic() < end:
    try:
        count += len(sock.recv(65536))
    except TimeoutError:
        pass
print(json.dumps({"bytes": count, "began": began, "ended": time.monotonic()}))
"""


# --- the hub's end ----------------------------------------------------------------------------------------------------


async def serve(port: int, blob: bytes, road: Road) -> None:
    """Answers wants through the product's `Sender`, and denies something every now and then while the link is up."""
    sender: Sender[str] = Sender()
    wake, up = asyncio.Event(), asyncio.Event()

    async def on_message(_topic: str, payload: bytes, _retained: bool) -> None:
        sender.take("till", Want.decode(payload), time.monotonic())
        wake.set()

    async def on_link(is_up: bool) -> None:
        if is_up:
            up.set()
        else:
            up.clear()

    mqtt = Mqtt(Broker("127.0.0.1", port), "hub", [(WANT, 0)], Random(2), on_message, on_link)

    async def deny() -> None:
        await up.wait()
        while True:
            await asyncio.sleep(DENIAL_EVERY_S)
            if (await asyncio.to_thread(road.facts))["is_up"]:
                await mqtt.publish(DENY, struct.pack("<d", time.monotonic()).ljust(300, b"\0"), qos=1)

    async def send() -> None:
        while True:
            wake.clear()
            while (found := sender.next(time.monotonic())) is not None:
                if found.page is not None:
                    start = found.page * PAGE_SPAN_BYTES
                    chunk = Chunk(
                        handle=found.handle, page=found.page, bytes=page_of(blob[start : start + PAGE_SPAN_BYTES])
                    )
                else:
                    part = blob[found.offset : found.offset + found.length]
                    chunk = Chunk(handle=found.handle, offset=found.offset, bytes=part)
                await mqtt.publish(CHUNK, chunk.encode(), qos=0)
            await wake.wait()

    async with asyncio.TaskGroup() as group:
        for task in (mqtt.run(), deny(), send()):
            group.create_task(task)


async def pour(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends for ever."""
    with contextlib.suppress(OSError):
        while True:
            writer.write(bytes(16384))
            await writer.drain()


# --- together ---------------------------------------------------------------------------------------------------------


async def at_far_end(road: Road, argv: list[str]) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *map(str, road.at_far_end(argv)), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    try:
        out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        raise TransportError(f"the far end of {road.profile.name} ended with {process.returncode}")
    return dict(json.loads(out))


def up_s(profile: Profile, from_s: float, to_s: float) -> float:
    """How long the link was up between two times, counted from when it was made."""
    step = 0.01
    marks = range(int((to_s - from_s) / step))
    return sum(step for mark in marks if not (profile.outages and profile.outages.is_down(from_s + mark * step)))


async def measure(name: str, seconds: float, congestion: str | None, folder: Path) -> dict[str, Any]:
    profile = load_profile(name)
    capacity = profile.down.rate_bytes_per_s
    length = int(capacity * seconds * 1.1) // LEAF_BYTES * LEAF_BYTES
    port = free_port()
    broker = await asyncio.to_thread(start_mosquitto, folder / name, Listener(port))
    plain = await asyncio.start_server(pour, "127.0.0.1", 0)
    plain_port = int(plain.sockets[0].getsockname()[1])
    try:
        log = folder / f"{name}.log"
        with (
            await asyncio.to_thread(Road, profile, port, log, congestion=congestion) as road,
            await asyncio.to_thread(Road, profile, plain_port, log, congestion=congestion, seed=1) as beside,
        ):
            made = time.monotonic()
            hub = asyncio.create_task(serve(port, blob_of(length), road))
            here = [sys.executable, __file__, "--far", road.host, str(road.port), str(length), str(seconds)]
            try:
                ours, tcp = await asyncio.gather(
                    at_far_end(road, here),
                    at_far_end(beside, [sys.executable, "-c", PLAIN, beside.host, str(beside.port), str(seconds)]),
                )
            finally:
                hub.cancel()
                await asyncio.wait({hub})
            facts = await asyncio.to_thread(road.facts)
            kind = road.kind
    finally:
        plain.close()
        broker.kill()

    def share(seen: dict[str, Any]) -> float:
        return float(seen["bytes"] / capacity / up_s(profile, seen["began"] - made, seen["ended"] - made))

    denials = sorted(ours["denial_s"])
    return {
        "links": kind,
        "goodput_share": round(share(ours), 3),
        "tcp_share": round(share(tcp), 3),
        "idle_denial_s": round(statistics.median(ours["idle_s"]), 3),
        "denials": len(denials),
        "denial_median_s": round(statistics.median(denials), 3) if denials else None,
        "denial_worst_s": round(denials[-1], 3) if denials else None,
        "resent_share": round(ours["resent"] / max(1, ours["bytes"]), 4),
        "connects": ours["connects"],
        "window_bytes": ours["window_bytes"],
        "smallest_rtt_s": ours["smallest_rtt_s"],
        "down": facts["down"],
        "goal": GOALS.get(name, ""),
    }


async def measure_all(names: list[str], seconds: float, congestion: str | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        found = await asyncio.gather(*(measure(name, seconds, congestion, Path(folder)) for name in names))
    return dict(zip(names, found, strict=True))


def main() -> None:
    if sys.argv[1:2] == ["--far"]:
        host, port, length, seconds = sys.argv[2:]
        print(json.dumps(asyncio.run(far(host, int(port), int(length), float(seconds)))))
        return
    parser = argparse.ArgumentParser(prog="scripts/bench link", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--profile", action="append", metavar="NAME", help=f"repeatable; default {' '.join(PROFILES)}")
    parser.add_argument("--seconds", type=float, default=75.0, help="of saturation (default 75)")
    parser.add_argument("--congestion", metavar="NAME", help="TCP's way to send from the hub: cubic, bbr, ...")
    args = parser.parse_args()
    used = args.congestion or Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    figures = asyncio.run(measure_all(args.profile or list(PROFILES), args.seconds, args.congestion))
    print(f"{args.seconds:g} s of saturation, TCP sends by {used}, without TLS")
    print(f"{'link':8} {'goodput':>8} {'TCP':>7} {'denial: idle':>13} {'median':>8} {'worst':>8} {'window':>8}  goal")
    for name, seen in figures.items():
        print(
            f"{name:8} {seen['goodput_share']:8.1%} {seen['tcp_share']:7.1%} {seen['idle_denial_s']:11.2f} s "
            f"{seen['denial_median_s'] or 0:6.2f} s {seen['denial_worst_s'] or 0:6.2f} s "
            f"{seen['window_bytes'] or 0:8.0f}  {seen['goal']}"
        )
    if args.json:
        facts = {"machine": platform.machine(), "seconds": args.seconds, "congestion": used, "links": figures}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
