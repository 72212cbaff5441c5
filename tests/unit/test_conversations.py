"""What older nodes and hubs said, replayed against this version of the other side: whatever breaks one goes red here.

An older node goes on if the hub takes each of its messages and answers it with what that node can read, which is told
from the answer that it got when the conversation was recorded. An older hub is gone on with if the node ends each of
the recorded steps as it did then.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest

import conversation
from conversation import MODEL, NAMES, REALM, Conversation, Line, read, records
from ends import HubEnd, NodeEnd, is_heard
from heliograph.blob import LEAF_BYTES, Digest, sha256
from heliograph.delta import recipe as recipes
from heliograph.protocol import below_realm, topic
from heliograph.statement import parse
from heliograph.wire import decompress, pack, unpack
from heliograph_hub.database import blobs
from heliograph_hub.database import recipes as table
from heliograph_hub.registry import Delta
from waits import until

each_record = pytest.mark.parametrize("path", records(), ids=[path.stem for path in records()])
UP, DOWN = "node/shop/till/up/", "node/shop/till/down/"


def _statement(data: bytes) -> dict[str, Any]:
    payload: dict[str, Any] = unpack(parse(data).payload)
    return payload


def _read(below: str, payload: bytes) -> Any:
    """A message of the hub as plain values, statements opened, as far as an older node looks into it."""
    match below.rpartition("/")[2]:
        case "all" | "chunk":
            return unpack(payload)
        case "set":
            return {name: None for name in unpack(decompress(payload, max_bytes=4 << 20)) if name != "delegated"}
        case "assigned" | "offer" | "receipt" | "reply":
            return {"type": parse(payload).type} | _statement(payload)
    if below.startswith("desired/"):
        return [{"type": parse(data).type} | _statement(data) for data in unpack(payload)]
    if below.startswith(("policy/", "config/")):
        return {"type": parse(payload).type} | _statement(payload)
    return payload


def _lacks(then: Any, now: Any, place: str) -> list[str]:
    """What an older reader, who got `then`, would miss or not understand in `now`."""
    if then is None or now is None:
        return []  # whatever may be absent may also be there
    if type(then) is not type(now):
        return [f"{place} is {type(now).__name__}, was {type(then).__name__}"]
    if isinstance(then, dict):
        found = [f"{place}.{name} is gone" for name in then if name not in now]
        if now.get("crit"):
            found.append(f"{place}.crit demands {now['crit']}")
        return found + [
            item for name in then if name in now for item in _lacks(then[name], now[name], f"{place}.{name}")
        ]
    if isinstance(then, list) and then and now and not isinstance(then[0], list):
        return [item for value in now for item in _lacks(then[0], value, f"{place}[]")]
    return []


class OldNode:
    """The node of a record, speaking to the hub of today."""

    def __init__(self, folder: Path, record: Conversation) -> None:
        self.record = record
        self.hub = HubEnd(folder, self._hear)
        self.heard: list[tuple[str, bytes]] = []
        self.chunks: dict[tuple[bytes, object, object], bytes] = {}

    async def _hear(self, full: str, payload: bytes) -> None:
        if is_heard(below_realm(full)):
            self.heard.append((below_realm(full), payload))

    async def play(self) -> None:
        """Says everything again and looks at each answer."""
        self.hub.service.begin()
        for index, line in enumerate(self.record.lines):
            if line.who == "!":
                if line.what not in ("start", "cut", "back"):
                    await self.hub.operate(line.what, self.record.bytes_of("token"))
                if line.what.startswith("release"):
                    self._keep_what_the_old_hub_had()
            elif line.who == ">":
                self.heard.clear()
                full = f"heliograph/v1/{REALM}/{line.what}"
                await self.hub.take(full, line.payload)
                counts = self.hub.service.fleet.counts("shop", "till") | self.hub.service.fleet.uncounted()
                assert not counts, f"{line.what}: {counts}"
                self._judge(line, self.record.lines[index + 1 :])

    def _keep_what_the_old_hub_had(self) -> None:
        """An upgraded hub has the recipes and patches that the older one made, in its database and on its disk."""
        registry = self.hub.service.registry
        with registry._database.write() as connection:
            known = {row.digest for row in connection.execute(blobs.select())}
            for blob, content in self.record.blobs().items():
                if blob not in known:
                    registry.objects.put(content)
                    connection.execute(blobs.insert().values(digest=blob, length=len(content), kind="recipe"))
        for line in self.record.lines:
            if line.what == DOWN + "offer":
                for way in _statement(line.payload)["ways"]:
                    if content := way["recipe"] and self.record.blobs().get(way["recipe"]["sha256"]):
                        self._keep_recipe(recipes.parse(content), content)

    def _keep_recipe(self, recipe: recipes.Recipe, content: bytes) -> None:
        registry = self.hub.service.registry
        pair = Digest(recipe.base), Digest(recipe.target)
        with registry._database.write() as connection:
            connection.execute(table.delete().where(table.c.base == pair[0], table.c.target == pair[1]))
        patch = recipe.patch_sha256, recipe.patch_length
        registry._note_recipe(Delta(*pair, sha256(content), len(content), *patch, 1.0), 0)

    def _judge(self, line: Line, later: list[Line]) -> None:
        kind = line.what.rpartition("/")[2]
        match kind:
            case "till":  # enroll
                self._fits("assigned", later)
            case "hello":
                self._fits("reply", later)
                replies = [_statement(data) for below, data in self.heard if below == DOWN + "reply"]
                assert {reply["nonce"] for reply in replies} == {unpack(line.payload)["nonce"]}
                assert [reply["more"] for reply in replies][-1] is False
                lacked = {
                    below for other in self._of("reply", later)[:1] for below, _ in _statement(other)["documents"]
                }
                brought = {below: data for reply in replies for below, data in reply["documents"]}
                assert lacked <= set(brought), "what it lacked then it lacks now"
                for other in self._of("reply", later)[:1]:
                    for below, data in _statement(other)["documents"]:
                        assert not _lacks(_read(below, data), _read(below, brought[below]), below)
            case "ask":
                self._fits("offer", later)
                (answer,) = [_statement(data) for below, data in self.heard if below == DOWN + "offer"]
                offer = _statement(self._of("offer", later)[0])
                assert (answer["run"], answer["n"]) == (offer["run"], offer["n"])
                reached: dict[bytes, set[str]] = {way["blob"]: set() for way in offer["ways"]}
                for way in answer["ways"]:
                    reached.setdefault(way["blob"], set()).add(way["kind"])
                assert all("full" in kinds for kinds in reached.values())
            case "want":
                for below, data in self.heard:
                    if below == DOWN + "chunk":
                        chunk = unpack(data)
                        assert set(chunk) == {"handle", "page", "offset", "bytes"}, "chunks never grow"
                        self.chunks[chunk["handle"], chunk["page"], chunk["offset"]] = chunk["bytes"]
            case "records":
                self._fits("receipt", later)
                (receipt,) = [_statement(data) for below, data in self.heard if below == DOWN + "receipt"]
                batch = _statement(line.payload)
                end = batch["first"] + sum(row[0] for row in batch["rows"])
                assert (receipt["lane"], receipt["run"], receipt["next"]) == (batch["lane"], batch["run"], end)

    def _of(self, kind: str, later: list[Line]) -> list[bytes]:
        return [line.payload for line in later if line.what == DOWN + kind]

    def _fits(self, kind: str, later: list[Line]) -> None:
        """The hub answered by this, and the older node can read it."""
        answers = [data for below, data in self.heard if below == DOWN + kind]
        assert answers, f"no {kind}"
        then = _read(DOWN + kind, self._of(kind, later)[0])
        for data in answers:
            assert not _lacks(then, _read(DOWN + kind, data), kind)


@each_record
def test_a_node_of_an_earlier_version_is_understood_and_can_go_on_with_this_hub(path: Path, tmp_path: Path) -> None:
    record = read(path)
    node = OldNode(tmp_path, record)
    asyncio.run(node.play())
    for version in ("1.0.0", "1.1.0"):
        digest = node.hub.service.registry.find(MODEL, version).digest
        assert digest == record.bytes_of(f"release-{version}"), "the same bundle is the same release for ever"
    got: dict[tuple[bytes, object, object], bytes] = {}
    for line in record.lines:
        if line.what == DOWN + "chunk":
            chunk = unpack(line.payload)
            got[chunk["handle"], chunk["page"], chunk["offset"]] = chunk["bytes"]
    assert {key: data for key, data in node.chunks.items() if key in got} == got
    told = node.hub.service.fleet.node("shop", "till").reported
    last = [_statement(line.payload) for line in record.lines if line.what == UP + "reported"][-1]
    assert told is not None
    assert (told.n, told.agent) == (last["n"], record.header["agent"])
    report = told.models[MODEL]
    assert (report.phase, report.tuple and report.tuple.release) == ("idle", record.bytes_of("release-1.0.0"))
    assert all(lane["missing"] == lane["lost"] == 0 for lane in node.hub.service.fleet.lanes("shop", "till").values())
    node.hub.close()


class OldHub:
    """The hub of a record, speaking to the node of today."""

    def __init__(self, folder: Path, record: Conversation) -> None:
        self.record = record
        self.node = NodeEnd(folder, self._hear)
        self.said: list[str] = []
        self.reported: dict[str, Any] = {}
        self._blobs = record.blobs()
        self._pages = self._recorded_pages()
        self._part: list[Line] = []
        self._replies: list[bytes] = []
        self._tasks: list[asyncio.Task[None]] = []

    def _recorded_pages(self) -> dict[tuple[bytes, int], dict[str, Any]]:
        wanted: dict[bytes, bytes] = {}
        found: dict[tuple[bytes, int], dict[str, Any]] = {}
        for line in self.record.lines:
            if line.what == UP + "want":
                want = unpack(line.payload)
                wanted[want["handle"]] = want["blob"]
            elif line.what == DOWN + "chunk" and (chunk := unpack(line.payload))["page"] is not None:
                found[wanted[chunk["handle"]], chunk["page"]] = chunk
        return found

    async def _tell(self, below: str, payload: bytes) -> None:
        await self.node.agent.on_message(f"heliograph/v1/{REALM}/{below}", payload, False)

    async def _hear(self, full: str, payload: bytes) -> None:
        kind = below_realm(full).rpartition("/")[2]
        self.said.append(kind)
        match kind:
            case "reported":
                self.reported = _statement(payload)
            case "hello":
                mine = [line.payload for line in self._part if line.what == DOWN + "reply"]
                self._replies = mine or self._replies
                nonces = [_statement(reply)["nonce"] for reply in self._replies]
                nth = min(self.said.count("hello"), len(set(nonces))) if mine else 1
                nonce = list(dict.fromkeys(nonces))[nth - 1]
                self.node.agent._link.nonce = nonce
                for reply, its in zip(self._replies, nonces, strict=True):
                    if its == nonce:
                        await self._tell(DOWN + "reply", reply)
            case "ask":
                ask = unpack(payload)
                offers = [line.payload for line in self.record.lines if line.what == DOWN + "offer"]
                for offer in offers:
                    if (said := _statement(offer))["release"] == ask["release"] and said["n"] == ask["n"]:
                        await self._tell(DOWN + "offer", offer)
            case "want":
                want = unpack(payload)
                for page in want["pages"]:
                    recorded = self._pages[want["blob"], page]
                    await self._chunk(want, recorded | {"handle": want["handle"]})
                for first, count in want["ranges"]:
                    begin = first * LEAF_BYTES
                    data = self._blobs[want["blob"]][begin : begin + count * LEAF_BYTES]
                    await self._chunk(want, {"handle": want["handle"], "page": None, "offset": begin, "bytes": data})

    async def _chunk(self, want: dict[str, Any], chunk: dict[str, Any]) -> None:
        # A node that waits for its want to be sent must not be given the answer within it.
        told = asyncio.ensure_future(self._tell(DOWN + "chunk", pack(chunk)))
        self._tasks.append(told)

    async def play(self) -> None:
        """Says everything again and looks at what the node makes of each step."""
        lines = self.record.lines
        joining = self.node.join(self.record.bytes_of("root"), self.record.bytes_of("token"))
        start = lines.index(Line("!", "start"))
        for line in lines[:start]:
            if line.who == "<":
                await joining.hear(f"heliograph/v1/{REALM}/{line.what}", line.payload)
            elif line.who == ">":
                assert joining.enroll() == (topic("enroll").build(REALM, **NAMES), line.payload)
        assert joining.finish().ring == "canary"
        steps = self.record.steps[self.record.steps.index("start") :]
        self._part = self.record.after("start")
        async with self.node.running(self.record.bytes_of("run")) as agent:
            for step in steps:
                self.said.clear()
                self._part = self.record.after(step)
                if step in ("cut", "back"):
                    await self.node.set_link(step == "back")
                for line in self._part:
                    if line.who == "<" and not line.what.startswith(DOWN):
                        await self._tell(line.what, line.payload)
                    elif line.what == DOWN + "assigned":
                        await self._assign(line.payload)
                await self._as_then(step)
                for line in self._part:
                    if line.what == DOWN + "receipt":
                        await self._tell(line.what, line.payload)
            await until(lambda: agent._inbox.empty(), "everything heard")
            assert agent._incidents.count == 0, "nothing an older hub says is refused"

    async def _assign(self, assigned: bytes) -> None:
        """The next is sent only when the node has said that it has this one, and that its commands are done."""
        await self._tell(DOWN + "assigned", assigned)
        then = _statement(assigned)
        done = max((command["number"] for command in then["commands"]), default=0)
        await until(
            lambda: self.reported.get("assignment") == then["number"] and self.reported.get("done", 0) >= done,
            f"assignment {then['number']} taken and command {done} done",
        )

    async def _as_then(self, step: str) -> None:
        """Waits until the node is as the recorded one was at the end of this step."""
        if any(line.what == DOWN + "reply" for line in self._part):
            await until(lambda: "hello" in self.said and self.node.agent._link.nonce is None, f"{step}: a reply taken")
        reports = [_statement(line.payload) for line in self._part if line.what == UP + "reported"]
        if not reports or not (models := reports[-1]["models"]):
            return
        then = models[MODEL]
        expected = (then["phase"], then["tuple"]["release"].hex(), then["verdict"])
        await until(lambda: self.node.told() == expected, f"{step}: {expected}, is {self.node.told()}")
        numbers = (then["tuple"]["config"], then["tuple"]["policy"])
        await until(lambda: self.node.numbers() == numbers, f"{step}: {numbers}")
        for name in ("assignment", "policy", "done"):
            told = reports[-1].get(name, 0)
            await until(lambda name=name, told=told: self.reported[name] == told, f"{step}: {name} {told}")  # type: ignore[misc]
        memory = self.node.agent.memories[MODEL]
        assert [r.release for r in memory.refused] == [r["release"] for r in then["refused"]]


@each_record
def test_this_node_understands_a_hub_of_an_earlier_version_and_ends_where_the_older_one_did(
    path: Path, tmp_path: Path
) -> None:
    hub = OldHub(tmp_path, read(path))
    asyncio.run(hub.play())


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    for path in records():
        record = read(path)
        assert record.text() == path.read_text("ascii")
    assert {"1.0", "1.1"} <= {path.stem for path in records()}
    assert conversation.FORMAT == 1
