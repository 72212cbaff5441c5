"""Keys rotated at a hub that runs, under nodes that are connected: they follow, and what they serve goes on."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from agents import QUICK, Hub, Node, at_rest_with
from heliograph.cli import main
from heliograph_hub.client import HubClient
from heliograph_hub.keys import load_key
from heliograph_site.agent import Agent
from heliograph_site.joining import join
from waits import until

MODEL = "digits"
BY_ROOT = ("root", "timestamp", "snapshot")
BY_TARGETS = (
    "targets", "assign", "recipes", "ring-canary", f"sign-{MODEL}", f"approve-{MODEL}", "deny", "deny-key", "policy",
)  # fmt: skip


class Keys:
    """All keys of a development realm, and the ceremony of changing them."""

    def __init__(self, hub: Hub) -> None:
        self._hub, self.folder = hub, hub.folder / "keys"
        self._client = HubClient(str(hub.folder))

    def of(self, role: str) -> list[str]:
        return [key["keyid"] for key in self._client.get("/v1/keys") if key["role"] == role]

    def rotate(self, *roles: str) -> set[str]:
        """Gives each role other keys only, by one change; the key ids that count no more. The new files take the
        names of the old."""
        renamed, gone = [], set()
        for role in roles:
            arguments: list[str] = []
            for old in self.of(role):
                path = self._file(old)
                assert main(["key", "make", str(path.with_stem(f"{path.stem}-new"))]) == 0
                arguments += ["--add", str(path.with_name(f"{path.stem}-new.pub")), "--remove", old]
                renamed.append(path)
            gone |= set(self.of(role))
            self._hub.operate("key", "rotate", role, *arguments)
        self._have_signed()
        for path in renamed:
            path.with_stem(f"{path.stem}-new").rename(path)
        return gone

    def _have_signed(self) -> None:
        """Carries to their keys what waits for signatures, until nothing does."""
        file = self._hub.folder.parent / "carried.json"
        while asks := self._client.get("/v1/keys/requests"):
            self._hub.operate("hub", "sign-request", "--out", str(file))
            wanted = {keyid for ask in asks for group in ask["groups"] for keyid in group["keyids"]}
            keys = [str(path) for path in self.folder.glob("*.key") if load_key(path).keyid.hex() in wanted]
            assert main(["key", "sign", str(file), *(part for key in keys for part in ("--key", key))]) == 0
            self._hub.operate("key", "add", str(file))
            file.unlink()

    def _file(self, keyid: str) -> Path:
        return next(path for path in self.folder.glob("*.key") if load_key(path).keyid.hex() == keyid)


def follows(agent: Agent, role: str, version: int) -> Callable[[], bool]:
    def holds() -> bool:
        trusted = agent._belief.trusted
        return trusted.is_complete and trusted.versions[role] == version

    return holds


def test_every_role_is_rotated_under_connected_nodes_which_follow_and_serve_on(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub(tmp_path_factory.mktemp("hub"))
    keys, nodes = Keys(hub), []
    for site in ("left", "right"):
        asyncio.run(join(hub.token(capsys, f"{site}/n1"), tmp_path / site, 0, Random(1), QUICK))
        hub.operate("fleet", "assign", site, "canary")
        nodes.append(Node(tmp_path / site))

    async def live() -> None:
        async with contextlib.AsyncExitStack() as stack:
            agents = [await stack.enter_async_context(node.running()) for node in nodes]

            async def all_serve(version: str) -> None:
                for agent in agents:
                    await until(at_rest_with(agent, MODEL, version), f"{version} is proven")

            await asyncio.to_thread(hub.release, tmp_path, MODEL, "1.0.0", Random(1).randbytes(5000))
            await all_serve("1.0.0")
            rows = [node.server.row[MODEL] for node in nodes]
            for roles in (BY_ROOT, BY_TARGETS):
                before = [agent._belief.trusted.versions[roles[0]] for agent in agents]
                gone = await asyncio.to_thread(keys.rotate, *roles)
                for agent, version in zip(agents, before, strict=True):
                    await until(follows(agent, roles[0], version + 1), "it follows")
                    trusted = agent._belief.trusted
                    counts = {keyid.hex() for role in roles for keyid in trusted.role_keys(role)[1]}
                    assert len(counts) == len(gone) and not counts & gone
                assert all(at_rest_with(agent, MODEL, "1.0.0")() for agent in agents)
                assert all(node.server.row[MODEL] is row for node, row in zip(nodes, rows, strict=True)), "never left"
            await asyncio.to_thread(hub.policy, tmp_path, "max_offline_s = 86400\n")
            await asyncio.to_thread(hub.release, tmp_path, MODEL, "1.1.0", Random(2).randbytes(5000))
            await all_serve("1.1.0")
            assert [agent._incidents.count for agent in agents] == [0, 0], "nothing came before the keys that signed it"
            await asyncio.to_thread(hub.deny, f"{MODEL}@1.1.0", 1)
            await all_serve("1.0.0")
            assert all(agent.policy.max_offline_s == 86400 for agent in agents)

    try:
        asyncio.run(live())
    finally:
        hub.stop()
