"""A hub as a process, its operator, and agents: what is stated reaches a node, what has ended counts no more."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

import warm
from heliograph.cli import main
from heliograph.deadlines import Deadlines
from heliograph.errors import TransportError, WaitError
from heliograph.lab import free_port
from heliograph_site.agent import Agent
from heliograph_site.folder import JoinString, agent_lock, read_node_file
from heliograph_site.joining import join
from waits import until_asked

QUICK = Deadlines(check_in_s=0.5, reply_s=1.0)


class Hub:
    """A hub process and the operator in front of it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder / "hub", capsys
        assert main(["hub", "init", str(self.folder), "--realm", "lab"]) == 0
        argv = ["hub", "run", self.folder, "--plain-port", str(free_port())]
        self.process = warm.spawn("heliograph.cli", argv, folder / "hub.log")
        try:
            self.process.wait_for_line("link to the broker is up")
        except WaitError:
            self.process.terminate()
            raise

    def say(self, *args: str) -> str:
        """What a command prints."""
        self._capsys.readouterr()
        assert main([*args, "--hub", str(self.folder)]) == 0, args
        return self._capsys.readouterr().out

    def ask(self, *args: str) -> Any:
        """What a command answers."""
        return json.loads(self.say(*args, "--json"))

    def show(self, name: str) -> dict[str, Any]:
        """What `fleet show` knows."""
        shown: dict[str, Any] = self.ask("fleet", "show", name)
        return shown

    def token(self, name: str, *options: str) -> JoinString:
        return JoinString.parse(self.say("fleet", "token", name, *options).strip().splitlines()[-1])

    def sign(self, file: Path, *numbers: int) -> None:
        """Signs a request file with protected's keys, away from the hub."""
        keys = [arg for n in numbers for arg in ("--key", str(self.folder / "keys" / f"ring-protected-{n}.key"))]
        assert main(["fleet", "sign", str(file), *keys]) == 0


@pytest.fixture
def hub(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Hub]:
    found = Hub(tmp_path, capsys)
    yield found
    found.process.terminate()


class NoServer:
    """No server process: nothing is ever served here."""

    async def _absent(self, *_: Any, **__: Any) -> dict[str, Any]:
        raise TransportError("the server can't be reached")

    check = serve = drop = status = _absent

    async def stop(self, *_: Any) -> None:
        raise TransportError("the server can't be reached")

    async def tune(self, *_: Any) -> None:
        raise TransportError("the server can't be reached")


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Agent]:
    """The agent of a folder."""
    stop = asyncio.Event()
    with agent_lock(folder):
        agent = Agent(folder, rng=Random(7), server=NoServer(), deadlines=QUICK)
        task = asyncio.ensure_future(agent.run(stop))
        try:
            yield agent
        finally:
            stop.set()
            await task


def test_what_is_stated_reaches_its_node_and_a_command_is_given_until_it_is_done(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "node"
    asyncio.run(join(hub.token("lab/pi-1"), folder, 0, Random(1), QUICK))

    async def live() -> None:
        async with running(folder) as agent:
            hub.say("fleet", "assign", "lab", "early")
            hub.say("fleet", "label", "lab", "time-zone=Europe/Lisbon")
            hub.say("fleet", "label", "lab/pi-1", "kind=till")
            hub.say("fleet", "relay", "lab/pi-1", "10.0.0.7")
            await until_asked(lambda: agent.assignment == 5, "the newest assignment")
            assigned = agent._belief.assignment
            assert assigned is not None and (assigned.ring, assigned.relay) == ("early", "10.0.0.7")
            assert assigned.labels == {"time-zone": "Europe/Lisbon", "kind": "till"}
            await until_asked(lambda: hub.show("lab/pi-1")["assignment"]["echoed"] == 5, "acknowledged")
            given = hub.ask("fleet", "command", "lab/pi-1", "report")
            assert (given["number"], given["new"]) == (1, True)

            def is_done() -> bool:
                shown = hub.show("lab/pi-1")
                return [c["state"] for c in shown["commands"]] == ["done"] and shown["assignment"]["echoed"] == 7

            await until_asked(is_done, "the command is done, and given no more")
            assert agent._belief.assignment is not None and agent._belief.assignment.commands == ()
            drift = hub.ask("fleet", "drift")
            assert (drift["nodes"], drift["level"], drift["gaps"]) == (1, 1, [])
            assert hub.ask("fleet", "stale")["silent"] == []
            assert "1 of 1 nodes have all that they are told" in hub.say("fleet", "drift")
            assert "none of 1 nodes is further behind than its policy allows" in hub.say("fleet", "stale")
            shown = hub.say("fleet", "show", "lab/pi-1")
            assert "stated: kind=till, time-zone=Europe/Lisbon, relay 10.0.0.7" in shown
            assert "command 1 report: done at " in shown

    asyncio.run(live())


def test_replaced_and_removed_hardware_is_refused_and_counted(hub: Hub, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    asyncio.run(join(hub.token("lab/pi-1"), old, 0, Random(1), QUICK))

    def refusals(of: str) -> int:
        counted: int = hub.show("lab/pi-1")["not_counted"].get(of, {"count": 0})["count"]
        return counted

    async def live() -> None:
        async with running(old):
            await until_asked(lambda: hub.show("lab/pi-1")["agent"], "the old one reported")
            key = hub.show("lab/pi-1")["key"]
            await join(hub.token("lab/pi-1"), new, 0, Random(2), QUICK)
            shown = hub.show("lab/pi-1")
            assert (shown["assignment"]["number"], shown["agent"]) == (2, None)
            assert [(k["key"], k["why"]) for k in shown["former_keys"]] == [(key, "replaced")]
            await until_asked(lambda: refusals("not signed by the node") >= 2, "the old one's messages are counted")
            assert hub.show("lab/pi-1")["agent"] is None, "and say nothing of the new one"
        async with running(new) as agent:
            await until_asked(lambda: hub.show("lab/pi-1")["assignment"]["echoed"] == 2, "the new one reports")
            removed = hub.ask("fleet", "remove", "lab/pi-1")
            assert removed["key"] == hub.show("lab/pi-1")["key"] and removed["remains"]
            await until_asked(lambda: refusals("refused") >= 2, "a removed node's messages are counted")
            assert hub.ask("fleet", "list") == []
            assert agent.assignment == 2

    asyncio.run(live())


def test_a_node_for_protected_joins_once_both_its_keys_have_signed_by_file(hub: Hub, tmp_path: Path) -> None:
    folder, file = tmp_path / "node", tmp_path / "lab.json"
    string, soon = hub.token("lab/pi-1", "--protected"), replace(QUICK, enroll_s=3.0)
    assert string.protected

    async def live() -> None:
        joining = asyncio.ensure_future(join(string, folder, 0, Random(1), soon))

        def ask() -> bool:
            return main(["fleet", "request", "lab", "--out", str(file), "--hub", str(hub.folder)]) == 0

        await until_asked(ask, "the node has asked")
        hub.sign(file, 1)
        assert hub.ask("fleet", "add", str(file))[0]["done"] is False
        await asyncio.wait([joining], timeout=2 * soon.enroll_s)
        assert not joining.done(), "one of two keys is none"
        hub.sign(file, 2)
        assert hub.ask("fleet", "add", str(file))[0]["done"] is True
        assignment = await joining
        assert (assignment.number, assignment.ring) == (1, "general")
        assert read_node_file(folder).protected
        async with running(folder) as agent:
            await until_asked(lambda: hub.show("lab/pi-1")["assignment"]["echoed"] == 1, "reported")
            assert hub.ask("fleet", "label", "lab/pi-1", "kind=till")["waiting"] == ["pi-1"]
            hub.say("fleet", "request", "lab/pi-1", "--out", str(file))
            hub.sign(file, 1, 2)
            hub.say("fleet", "add", str(file))
            await until_asked(lambda: agent.assignment == 2, "what both signed")

    asyncio.run(live())
