"""What a node is and has, read from its folder alone, whether its processes run or not."""

import asyncio
from pathlib import Path
from typing import Any

from heliograph.deny import DenySet
from heliograph.documents import LANES, Lane
from heliograph.errors import RefusedError, TransportError
from heliograph.names import Digest
from heliograph.trust import state_from_bytes
from heliograph.wire import pack, unpack
from heliograph_site.belief import Belief
from heliograph_site.estimate import Estimate
from heliograph_site.folder import is_agent_running, read_node_file
from heliograph_site.identity import key_store, read_certificate
from heliograph_site.journal import JOURNAL_FILE, Journal
from heliograph_site.memory import Memory, Pointer
from heliograph_site.outbox import OUTBOX_FILE, LaneStatus, Outbox
from heliograph_site.reporting import flag, held
from heliograph_site.serving.control import ServerControl
from heliograph_site.slots import Slots
from heliograph_site.vigil import CLOCK, OFFLINE, STALE, begun_from

_NO_RECORDS = LaneStatus(0, 0, 0, 0, 0, 0, 0)
_LOOK_S = 2.0


def status(folder: Path) -> dict[str, Any]:
    """The document of `node status --json`; every key is always there.

    Raises:
        ConfigError: not a node's folder, or its files can't be read.
    """
    file = read_node_file(folder)
    with Journal(folder / JOURNAL_FILE, read_only=True) as journal:
        waiting = journal.waiting()
        state = journal.trusted()
        versions = state_from_bytes(state).versions if state is not None else {}
        denials = journal.denials()
        deny = (DenySet() if denials is None else DenySet.from_bytes(denials)).head
        mark = journal.time_mark()
        models = {
            model: _model(journal, journal.load(model), waiting.pop(model, ""))
            for model in sorted({*journal.models(), *waiting})
        }
        begun = begun_from(journal)
        holds = dict(unpack(journal.state("holds") or pack({})))
        for model, found in models.items():
            found["stale"] = begun.get(f"{STALE} {model}", "")
            found["flag"] = found["flag"] or begun.get(f"{OFFLINE} {model}", "")
            found["held_by_site"] = holds.get(model, "")
        documents = _documents(journal, folder) if state is not None else {"policy": 0, "candidates": []}
        received = journal.counter("bytes_received")
        is_up = journal.link() == "up" and is_agent_running(folder)
    lanes: dict[Lane, LaneStatus] = dict.fromkeys(LANES, _NO_RECORDS)
    if (folder / OUTBOX_FILE).exists():
        with Outbox(folder / OUTBOX_FILE, None) as outbox:
            lanes |= outbox.status()
    return {
        "site": file.site,
        "node": file.node,
        "link": "up" if is_up else "down",
        "bytes_received": received,
        "certificate": _certificate(folder) if file.ca else None,
        "models": models,
        "documents": documents,
        "trust": {
            "versions": versions,
            "deny": {"count": deny.count, "digest": deny.digest.hex() or None},
            "estimate": mark.at if mark else None,
            "clock": begun.get(CLOCK, ""),
        },
        "outbox": {
            lane: {
                "next_seq": ledger.next_seq,
                "acked_seq": ledger.acked_seq,
                "kept": ledger.kept,
                "merged": ledger.merged,
                "lost": ledger.lost,
            }
            for lane, ledger in lanes.items()
        },
        "http": _http(folder, file.http_host, file.http_port),
    }


def _certificate(folder: Path) -> dict[str, Any]:
    """Until when the broker lets the node in without another certificate."""
    found = read_certificate(folder)
    return {"expires": found.expires if found is not None else None}


def _documents(journal: Journal, folder: Path) -> dict[str, Any]:
    """The policy in force for the node, and which documents are held and not in force: until when, and why."""
    file = read_node_file(folder)
    names, slots = (file.realm, file.site, file.node), Slots(folder)
    keyid = key_store(folder, file.key_store).keyid()
    belief = Belief(journal, names, keyid, Estimate(journal).now, manifests=lambda d: slots.manifest(Digest(d)))
    memories = belief.memories
    return {
        "policy": belief.rules.node_policy_number(memories),
        "candidates": [
            {
                "document": found.document,
                "number": found.number,
                "since": found.came,
                "until": found.until,
                "reason": found.reason,
            }
            for found in belief.rules.candidates(memories)
        ],
    }


def _model(journal: Journal, memory: Memory, waiting: str) -> dict[str, Any]:
    def name(release: bytes) -> dict[str, Any]:
        return {"release": journal.release_name(release), "digest": release.hex()}

    def pointer(found: Pointer | None) -> dict[str, Any] | None:
        if found is None:
            return None
        numbers = {"config": found.config, "policy": found.policy, "since": found.activated_at}
        return {**name(found.release), **numbers, "verdict": found.verdict}

    return {
        "phase": memory.phase,
        "active": pointer(memory.active),
        "fallback": pointer(memory.fallback),
        "held": [name(release) for release in held(memory)],
        "refused": [{**name(r.release), "number": r.number, "reason": r.reason} for r in memory.refused],
        "target": name(memory.target.release) if memory.target else None,
        "verdict": memory.active.verdict if memory.active else None,
        "flag": flag(memory),
        "reason": memory.reason,
        "waiting": waiting,
    }


def _http(folder: Path, host: str, port: int) -> str | None:
    """Where inference is served; a port that the system chose is asked of the server."""
    if port == 0:
        try:
            answer = asyncio.run(asyncio.wait_for(ServerControl(folder / "control.sock").status(), _LOOK_S))
        except (TransportError, RefusedError, TimeoutError):
            return None
        found = answer.get("http")
        return str(found) if found else None
    return f"http://{host}:{port}"
