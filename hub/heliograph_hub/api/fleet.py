"""[IO] The fleet: nodes as they last reported, and what was stated of them."""

from collections.abc import Iterable, Mapping
from typing import Any

from starlette.requests import Request

from heliograph.documents import ModelReport
from heliograph_hub.api.messages import Answer, Routes, link, now
from heliograph_hub.api.part import Part
from heliograph_hub.figures import Figures
from heliograph_hub.fleet import Node

MAX_OUTCOME = 400
"""Characters shown of what a node says came of a command."""
ByNode = Mapping[tuple[str, str], Mapping[str, str]]


class Fleet(Part):
    """What is asked about nodes and sites."""

    def routes(self) -> Routes:
        """Where it is asked."""

        def names(request: Request) -> tuple[str, str]:
            return request.path_params["site"], request.path_params["node"]

        def lane(request: Request) -> str:
            return str(request.path_params["lane"])

        return [
            ("GET", "/v1/fleet", lambda r, b: self.list_fleet()),
            ("GET", "/v1/fleet/{site}/{node}", lambda r, b: self.show_node(*names(r))),
            ("GET", "/v1/fleet/{site}/{node}/records/{lane}", lambda r, b: self.list_records(*names(r), lane(r))),
        ]

    async def list_fleet(self) -> Answer:
        """Every node as it last reported."""
        names, assignments = self.names(), self._service.assignments
        labels, pins = assignments.labels(), assignments.pins()
        alarms = self._service.fleet.alarms()
        return [
            self._node(node, names, labels, pins) | {"alarm": _alarm(alarms, node)}
            for node in self._service.fleet.nodes()
        ]

    async def show_node(self, site: str, name: str) -> Answer:
        """One node, with all it said."""
        fleet = self._service.fleet
        node = fleet.node(site, name, removed_too=True)
        said = node.reported
        names = self.names()
        models = {}
        for model, report in said.models.items() if said else ():
            models[model] = _model(report, names) | {
                "fallback": _tuple(report.fallback, None, names),
                "held": [digest.hex() for digest in report.held],
                "refused": [
                    {
                        "release": names.get(refusal.release),
                        "digest": refusal.release.hex(),
                        "number": refusal.number,
                        "reason": refusal.reason,
                    }
                    for refusal in report.refused
                ],
                "waiting": report.waiting,
                "stale": list(report.stale),
            }
        assignments = self._service.assignments
        waiting = assignments.proposals(site, name)
        sent = self._service.ledger.bytes_by_release(site, name)
        outcomes = _outcomes(fleet.records(site, name, "audit"))
        return self._node(node, names, assignments.labels(), assignments.pins()) | {
            "models": models,
            "relay": node.relay,
            "protected": node.protected or node.ring == "protected",
            "removed_at": node.removed_at,
            "waiting_assignment": {
                "number": waiting[0].document.number,
                "ring": waiting[0].document.ring,
                "have": len(waiting[0].signatures),
                "need": waiting[0].need,
            }
            if waiting
            else None,
            "commands": [
                {
                    "number": given.number,
                    "kind": given.kind,
                    "model": given.model,
                    "given_at": given.given_at,
                    "state": "done" if given.done_at else "ended" if given.ended_at else "waiting",
                    "at": given.done_at or given.ended_at,
                    "outcome": outcomes.get(given.number),
                }
                for given in assignments.given(site, name)
            ],
            "former_keys": [
                {"key": f.keyid.hex(), "enrolled_at": f.enrolled_at, "ended_at": f.ended_at, "why": f.why}
                for f in self._service.enrolment.former_keys(site, name)
            ],
            "key": node.keyid.hex(),
            "enrolled_at": node.enrolled_at,
            "agent": said.agent if said else None,
            "estimate": said.estimate if said else None,
            "clock": said.clock if said else "",
            "run": node.run.hex() if node.run else None,
            "trust": {"versions": dict(said.tuf) if said else {}},
            "assignment": {"number": node.assignment, "echoed": said.assignment if said else None},
            "deny": {
                "count": said.deny.count if said else 0,
                "digest": said.deny.digest.hex() if said else "",
                "acknowledged": said is not None and said.deny == self._service.denials.head,
            },
            "bytes_sent": sum(sent.values()),
            "bytes_by_release": [
                {"release": names.get(release), "digest": release.hex(), "bytes_sent": count}
                for release, count in sent.items()
            ],
            "serving": {
                model: [_figures(release, names) for release in releases]
                for model, releases in fleet.serving(site, name).items()
            },
            "records": fleet.lanes(site, name),
            "not_counted": fleet.counts(site, name),
            "alarm": _alarm(fleet.alarms(), node),
            "returned": self.returned(site, name, names),
        }

    async def list_records(self, site: str, name: str, lane: str) -> Answer:
        """The newest records of one lane of one node."""
        self._service.fleet.node(site, name, removed_too=True)
        return self._service.fleet.records(site, name, lane)

    def _node(self, node: Node, names: dict[bytes, str], labels: ByNode, pins: ByNode) -> dict[str, Any]:
        said = node.reported
        return {
            "site": node.site,
            "node": node.node,
            "ring": node.ring,
            "models": {model: _model(report, names) for model, report in (said.models if said else {}).items()},
            "last_heard": node.last_heard,
            "link": link(node.is_up(now())),
            "bytes_received": said.bytes_received if said else 0,
            "labels": labels.get((node.site, node.node), {}),
            "pins": pins.get((node.site, node.node), {}),
            "policy": said.policy if said else None,
            "declined": [d.model_dump() for d in said.declined] if said else [],
            "spent": said.spent.model_dump() if said else {"day": 0, "month": 0},
        }


def _outcomes(audit: Iterable[dict[str, Any]]) -> dict[int, str]:
    """What came of the hub's commands, by number, as the node's newest records say in words."""
    found: dict[int, str] = {}
    for record in audit:
        match record:
            case {"kind": "ordered", "body": {"by": "hub", "number": int(number), "outcome": str(outcome)}}:
                found.setdefault(number, "".join(char for char in outcome[:MAX_OUTCOME] if char.isprintable()))
    return found


def _alarm(alarms: Mapping[tuple[str, str], tuple[int, str]], node: Node) -> dict[str, Any] | None:
    count, last = alarms.get((node.site, node.node), (0, ""))
    return {"count": count, "went_back": last} if count else None


def _model(report: ModelReport, names: dict[bytes, str]) -> dict[str, Any]:
    return {
        "phase": report.phase,
        "active": _tuple(report.tuple, report.since, names),
        "verdict": report.verdict,
    }


def _tuple(value: Any, since: int | None, names: dict[bytes, str]) -> dict[str, Any] | None:
    if value is None:
        return None
    return {
        "release": names.get(value.release),
        "digest": value.release.hex(),
        "config": value.config,
        "policy": value.policy,
        "since": since,
    }


def _figures(figures: Figures, names: dict[bytes, str]) -> dict[str, Any]:
    return {
        "release": names.get(figures.release),
        "digest": figures.release.hex(),
        "records": figures.records,
        "from": figures.begin,
        "to": figures.end,
        "requests": figures.requests,
        "errors": figures.errors,
        "restarts": figures.restarts,
        "p50_ms": figures.latency_ms(0.5),
        "p95_ms": figures.latency_ms(0.95),
    }
