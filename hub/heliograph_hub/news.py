"""[IO] What a hello is answered with: all that is retained and newer, in an order in which it can be believed.

Rule 1: a document in a reply has the same payload as where it is retained, so that a reader treats both alike.
Rule 2: denials come before everything; then roots, the set that names the keys; then what those sign: the
    assignment, which says the ring, before what is of a ring.
"""

from collections.abc import Iterable, Iterator, Mapping

from heliograph.documents import Hello, LaneReceipt, Reply
from heliograph.protocol import below_realm, topic
from heliograph_hub.authority import Authority
from heliograph_hub.control import SCOPES, Control, Kind
from heliograph_hub.denial import Denials
from heliograph_hub.desired import Desired
from heliograph_hub.fleet import Node
from heliograph_hub.rollout import in_force

MAX_REPLY_DOCUMENT_BYTES = 57 * 1024
"""What the documents of one reply may take of a statement's 60 KiB."""


class News:
    """What is new to a node."""

    def __init__(self, authority: Authority, denials: Denials, desired: Desired, control: Control) -> None:
        self._authority = authority
        self._denials = denials
        self._desired = desired
        self._control = control

    def replies(
        self, node: Node, hello: Hello, acked: tuple[LaneReceipt, ...], retained: Mapping[str, bytes], now: int
    ) -> list[Reply]:
        """All that is newer than what the hello names, in as few replies as its size allows."""
        parts: list[list[tuple[str, bytes]]] = [[]]
        room = MAX_REPLY_DOCUMENT_BYTES
        for document in self._news(node, hello, retained):
            size = len(document[0]) + len(document[1])
            if size > room and parts[-1]:
                parts.append([])
                room = MAX_REPLY_DOCUMENT_BYTES
            parts[-1].append(document)
            room -= size
        return [
            Reply(
                realm=self._authority.realm,
                site=node.site,
                node=node.node,
                key=node.keyid,
                nonce=hello.nonce,
                at=now,
                heads=self._authority.set.heads,
                acked=acked[:64] if index == 0 else (),
                documents=tuple(documents),
                more=index + 1 < len(parts),
            )
            for index, documents in enumerate(parts)
        ]

    def _news(self, node: Node, hello: Hello, retained: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        """(topic below the realm, payload) of what the node lacks: denials, then roots, since all else hangs on them.

        Denials come once more after a set, which may bring the keys that they are signed with.
        """
        versions = self._authority.set.versions
        deny = topic("deny").build(self._authority.realm)
        is_behind = deny in retained and hello.deny != self._denials.head
        if is_behind:
            yield below_realm(deny), retained[deny]
        for number in range(hello.tuf.get("root", 0) + 1, versions["root"] + 1):
            full = topic("root").build(self._authority.realm, number=number)
            yield below_realm(full), retained[full]
        if hello.tuf != versions:
            full = topic("set").build(self._authority.realm)
            yield below_realm(full), retained[full]
            if is_behind:
                yield below_realm(deny), retained[deny]
        if node.assigned and node.assignment != hello.numbers.assignment:
            yield "assigned", node.assigned
        newest = in_force(self._desired.rows()).get(node.ring, {})
        yield from self._control_news(node, hello, newest)
        if {model: row.number for model, row in newest.items()} != hello.numbers.directives:
            full = topic("desired").build(self._authority.realm, ring=node.ring)
            if full in retained:
                yield below_realm(full), retained[full]

    def _control_news(self, node: Node, hello: Hello, directed: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Policies and configs that are newer than the node's, and older ones that it asks for by number."""
        numbers, lacks = hello.numbers, hello.lacks
        has_moved = node.assignment != numbers.assignment  # perhaps from a ring with higher numbers
        wanted: list[tuple[Kind, str, int, int]] = [
            ("policy", node.ring, 0 if has_moved else numbers.policy, lacks.policy)
        ]
        models = sorted({*directed, *numbers.config, *lacks.config})
        wanted += [("config", model, numbers.config.get(model, 0), lacks.config.get(model, 0)) for model in models]
        for kind, scope, held, asked in wanted:
            newest = self._control.newest(kind).get(scope)
            if newest is None:
                continue
            older = self._control.at_most(kind, scope, asked) if 0 < asked < newest.number else None
            is_due = newest.number > held or asked >= newest.number
            full = topic(kind).build(self._authority.realm, **{SCOPES[kind]: scope})
            for stored in (older, newest if is_due else None):
                if stored is not None:
                    yield below_realm(full), stored.statement
