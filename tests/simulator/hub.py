"""The hub's shell: the real rollout rules, sender, denials and counting of records, around rows kept in memory.

What is in a database at the real hub survives here; what waits in queues does not.
"""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from heliograph.blob import LEAF_BYTES, page_of, sha256
from heliograph.deny import DenySet, encode_list
from heliograph.documents import Assignment, Chunk, Command, Deny, DenyKey, Directive, Numbers, Records, Want
from heliograph.errors import NotFoundError, RefusedError
from heliograph.names import Digest, Ring
from heliograph.policy import Config, Policy
from heliograph.sender import Sender
from heliograph.trust import TrustedSet
from heliograph.wire import pack
from heliograph_hub import rollout
from heliograph_hub.fleet import _fresh_rows
from heliograph_hub.rollout import Signed
from heliograph_site import belief
from simulator import catalogue
from simulator.clock import Clock
from simulator.papers import Papers
from simulator.road import Message, Road

LIFE_S = 30 * 86_400


class Hub:
    """One hub.

    Attributes:
        step, form: which metadata is published.
        heads: the digests of denials that each timestamp version names, for the oracle.
        denied: when each release was denied first, by (release).
        ordered: every (node, command, model) that was ever given.
        content: bytes of chunks sent, by node.
    """

    def __init__(self, clock: Clock, rng: Random, road: Road, effect: Callable[[str, str], None], step: int,
                 seed: int) -> None:  # fmt: skip
        self._clock, self._rng, self._road, self._effect = clock, rng, road, effect
        self.is_up = True
        self.step = step
        self.form = rng.randrange(2)
        self.may_use_form_1 = True
        self.version = 0
        self.made_at = 0
        self.rows: list[Signed] = []
        self.statements: dict[tuple[str, str, int], bytes] = {}
        self.rings: dict[str, Ring] = {}
        self.assignments: dict[str, tuple[int, bytes]] = {}
        self.commands: dict[str, tuple[Command, ...]] = {}
        self.ordered: set[tuple[str, str, str]] = set()
        self.papers = Papers(Random(f"papers {seed}"))
        self.denials = DenySet()
        self.listed: list[bytes] = []
        self.truth: dict[bytes, tuple[Deny | DenyKey, object]] = {}
        self.heads: dict[int, frozenset[bytes]] = {}
        self.content: dict[str, int] = {}
        self.lanes: dict[tuple[str, bytes, str], dict[str, int]] = {}
        self.records: dict[tuple[str, bytes, str], list[tuple[int, int, str]]] = {}
        self.handles: dict[tuple[str, bytes, int | None, int], bytes] = {}
        self.wrong_handles = 0
        self.trusted: TrustedSet = catalogue.first_trust()
        self.files: tuple[bytes, bytes] = (b"", b"")
        self._rate = rng.choice([None, 40_000.0, 1_500.0])
        self._pace_s = rng.choice([0.0, 0.0, 0.3, 2.0])
        self._sender: Sender[str] = Sender(None, self._rate)
        self._is_sending = False
        self._recipes: dict[tuple[str, bytes], float] = {}
        self.republish()

    def now(self) -> int:
        return catalogue.NOW + int(self._clock.true_s)

    # --- what operators do --------------------------------------------------------------------------------------------

    def enroll(self, name: str, ring: Ring) -> None:
        self.assign(name, ring)

    def assign(self, name: str, ring: Ring) -> None:
        number = self.assignments.get(name, (0, b""))[0] + 1
        site, node = name.split("/")
        keyid = catalogue.key(name).keyid
        document = Assignment(
            realm=catalogue.REALM, site=site, node=node, key=keyid, number=number, ring=ring,
            commands=self.commands.get(name, ()),
        )  # fmt: skip
        self.rings[name] = ring
        self.assignments[name] = (
            number,
            catalogue.signed("assignment", document.encode(), catalogue.signers("assign")),
        )
        if self.is_up and name in self._road.links:
            self._road.down(name, self._assigned(name), qos=1)

    def order(self, name: str, kind: str, model: str) -> None:
        """A command in the node's assignment, after the last few that it may not have seen yet."""
        known = self.commands.get(name, ())
        number = known[-1].number + 1 if known else 1
        self.commands[name] = (*known[-3:], Command(number=number, kind=kind, model=model))
        self.ordered.add((name, kind, model))
        self.assign(name, self.rings[name])

    def start(self, model: str, release: bytes, *, is_premature: bool = False) -> None:
        """A rollout; premature ones are what a thief of the rings' keys would sign.

        Raises:
            RefusedError: signed or approved it is not.
        """
        known = catalogue.releases()[Digest(release)]
        is_listed = [release in catalogue.listed(self.step, duty) or is_premature for duty in ("sign", "approve")]
        directives = rollout.start(
            self.rows, realm=catalogue.REALM, model=model, version=known.version, release=release,
            signed=is_listed[0], approved=is_listed[1], now=self.now(),
        )  # fmt: skip
        for directive in directives:
            self._add(replace_expiry(directive, self.now()), released=directive.ring == "canary")
        self._announce_desired("canary")

    def promote(self, model: str) -> None:
        """Releases the newest rollout to the next ring.

        Raises:
            RefusedError, NotFoundError: nothing waits.
        """
        newest = rollout.newest_signed(row for row in self.rows if row.model == model)
        if "canary" not in newest:
            raise NotFoundError("no rollout")
        release = newest["canary"].release
        version = catalogue.releases()[Digest(release)].version
        for row in rollout.promote(self.rows, model=model, version=version, release=release, to=None):
            self.rows[self.rows.index(row)] = replace(row, released=True)
            self._announce_desired(row.ring)

    def direct(self, ring: Ring, model: str, release: bytes, action: str) -> None:
        """One directive of one ring, in force at once: hold and return have no command of their own yet."""
        number = max((row.number for row in self.rows if (row.ring, row.model) == (ring, model)), default=0) + 1
        directive = Directive.model_validate(
            {"realm": catalogue.REALM, "ring": ring, "model": model, "release": release, "number": number,
             "action": action, "expires": self.now() + LIFE_S}
        )  # fmt: skip
        self._add(directive, released=True)
        self._announce_desired(ring)

    def deny(self, release: bytes, by: int) -> None:
        """One signature of the role `deny`, by its first or second key."""
        known = catalogue.releases()[Digest(release)]
        document = Deny(
            realm=catalogue.REALM, releases=(release,), reason=f"bad {known.version} {by}", at=catalogue.NOW
        )
        statement = catalogue.signed("deny", document.encode(), catalogue.staffed("deny")[by : by + 1])
        self._deny(statement, document, by)

    def deny_key(self, model: str, keep: tuple[bytes, ...]) -> None:
        """The approver that only form 1 needs is out; metadata goes on in form 0."""
        keyid = catalogue.staffed(f"approve-{model}")[2].public.keyid
        document = DenyKey(realm=catalogue.REALM, keys=(keyid,), keep=keep, at=catalogue.NOW)
        self._deny(catalogue.signed("deny-key", document.encode(), catalogue.signers("deny-key")), document, "two")
        if self.form == 1:
            self.step, self.form = self.step + 1, 0
            self.republish()
        self.may_use_form_1 = False

    def publish_step(self) -> None:
        """The next metadata: one release more, or another pair of approvers."""
        if self.form or not self.may_use_form_1 or self._rng.random() < 0.7:
            self.step, self.form = self.step + 1, int(self.may_use_form_1 and self._rng.random() < 0.5)
        else:
            self.form = 1
        self.republish()

    def in_force(self, name: str, model: str) -> Signed | None:
        """What the newest released directive says to this node."""
        return rollout.in_force(self.rows).get(self.rings[name], {}).get(model)

    def republish(self) -> None:
        """Signs a new timestamp and tells of it."""
        self.version += 1
        self.made_at = self.now() // 3600 * 3600
        head = self.denials.head
        self.files = catalogue.packed_set(
            self.version, self.step, self.form, (head.count, head.digest), max(self.made_at, catalogue.NOW),
            self.papers.heads(),
        )  # fmt: skip
        self.heads[self.version] = frozenset(self.denials.denials)
        self.trusted = belief.with_set(self.trusted, self.files[1], self.now())  # type: ignore[attr-defined]
        self.denials = self.denials.with_trusted(self.trusted)
        if self.is_up:
            self._announce_set()

    def _add(self, directive: Directive, *, released: bool) -> None:
        role = f"ring-{directive.ring}"
        statement = catalogue.signed("directive", directive.encode(), catalogue.signers(role))
        row = Signed(directive.ring, directive.model, directive.number, directive.release, directive.action, released)
        self.rows.append(row)
        self.statements[row.ring, row.model, row.number] = statement

    def _deny(self, statement: bytes, document: Deny | DenyKey, by: object) -> None:
        if statement in self.listed:
            return
        self.truth[sha256(document.encode())] = (document, by)
        self.denials = self.denials.with_statement(statement, self.trusted)
        self.listed.insert(0, statement)
        if self.is_up:
            self._announce_denials()
        if self._rng.random() < 0.5:
            self.republish()
        else:
            self._clock.after(self._rng.uniform(1, 60), self.republish)

    # --- what it tells ------------------------------------------------------------------------------------------------

    def announce(self) -> None:
        """Everything, as after a restart of hub or broker."""
        self._announce_denials()
        self._announce_set()
        for ring in ("canary", "early", "general"):
            self._announce_desired(ring)
            self._announce_paper("policy", ring)
        for model in catalogue.MODELS:
            self._announce_paper("config", model)

    def _deny_message(self) -> Message:
        return ("deny", {}, encode_list(self.listed)[0])

    def _announce_denials(self) -> None:
        if self.listed:
            self._road.publish(("deny", ""), self._deny_message())

    def _announce_set(self) -> None:
        self._road.publish(("set", ""), ("set", {}, self.files[1]))
        self._road.publish(("head", ""), ("head", {}, self.files[0]))

    def _desired(self, ring: Ring) -> Message:
        models = rollout.in_force(self.rows).get(ring, {})
        listed = [self.statements[ring, model, row.number] for model, row in sorted(models.items())]
        return ("desired", {"ring": ring}, pack(listed))

    def _announce_desired(self, ring: Ring) -> None:
        if self.is_up:
            self._road.publish(("desired", ring), self._desired(ring))

    def set_policy(self, ring: Ring, rng: Random) -> Policy:
        """The next policy of a ring; the timestamp that names it may come later, or never before the next."""
        policy = self.papers.set_policy(ring, self.now())
        self._published("policy", ring, rng)
        return policy

    def outlaw(self, ring: Ring, model: str, versions: list[str]) -> None:
        """A policy that forbids these versions, now."""
        self.papers.outlaw(ring, model, versions, self.now())
        self._announce_paper("policy", ring)
        self.republish()

    def set_config(self, model: str, rng: Random) -> Config:
        """The next config of a model."""
        config = self.papers.set_config(model, self.now())
        self._published("config", model, rng)
        return config

    def _published(self, kind: str, scope: str, rng: Random) -> None:
        if rng.random() < 0.5:
            self._announce_paper(kind, scope)
        self._clock.after(rng.choice([0.0, 30.0, 300.0]), self.republish)

    def _announce_paper(self, kind: str, scope: str) -> None:
        message = self.papers.message(kind, scope)
        if self.is_up and message is not None:
            self._road.publish((kind, scope), message)

    def _assigned(self, name: str) -> Message:
        site, node = name.split("/")
        return ("assigned", {"site": site, "node": node}, self.assignments[name][1])

    # --- life ---------------------------------------------------------------------------------------------------------

    def die(self) -> None:
        self.is_up = False
        self._sender = Sender(None, self._rate)
        self._recipes.clear()

    def start_up(self) -> None:
        self.is_up = True
        self._road.hub_is_back()
        self.announce()

    # --- what nodes say -----------------------------------------------------------------------------------------------

    def on_message(self, name: str, message: Message) -> None:
        """Takes what the broker brought."""
        if not self.is_up:
            return
        kind, _, body = message
        match kind:
            case "hello":
                self._on_hello(name, *body)
            case "ask":
                self._on_ask(name, *body)
            case "want":
                self._on_want(name, body)
            case "records":
                self._on_records(name, body)

    def _on_hello(self, name: str, nonce: bytes, version: int, deny: bytes, numbers: Numbers, lacks: Numbers) -> None:
        documents: list[Message] = []
        if self.listed and deny != self.denials.digest:
            documents.append(self._deny_message())
        if version < self.version:
            documents.append(("set", {}, self.files[1]))
        documents += [self._assigned(name), self._desired(self.rings[name])]
        documents += self.papers.answers(self.rings[name], numbers, lacks)
        self._rng.shuffle(documents)
        self._road.down(name, ("reply", {}, (nonce, documents, self.now())), qos=1)

    def _on_ask(self, name: str, run: bytes, number: int, model: str, release: bytes, bases: tuple[bytes, ...]) -> None:
        known = catalogue.releases()[Digest(release)]
        row = self.in_force(name, model)
        named = any(
            models[model].release == release for models in rollout.in_force(self.rows).values() if model in models
        )
        vouchers = {k for duty in ("sign", "approve") for k in self.trusted.signers(f"{duty}-{model}")}
        answer: tuple[str, object]
        if self.denials.is_denied(release, vouchers):
            answer = ("never", "denied")
        elif not named:
            answer = ("never", "no ring is to run it")
        elif row is None or row.release != release or row.action != "install":
            answer = ("later", 60.0)
        elif self._clock.now - self._recipes.setdefault((model, release), self._clock.now) < 3.0:
            answer = ("later", 2.0)
        else:
            answer = ("ways", tuple(way for way in known.ways if way.base is None or way.base in bases))
        offer = (run, number, model, release, *answer)
        self._road.down(name, ("offer", {}, offer), qos=1)
        if self._rng.random() < self._road.weather.stale:
            self._road.weather.met["stale offer"] += 1
            late = self._rng.uniform(1, 300)
            self._clock.after(late, lambda: self._road.down(name, ("offer", {}, offer), qos=1))

    def _on_want(self, name: str, want: Want) -> None:
        if Digest(want.blob) not in catalogue.blobs():
            return
        parts = [(page, 0) for page in want.pages]
        parts += [(None, leaf) for first, count in want.ranges for leaf in range(first, first + count)]
        for page, leaf in parts:
            self.handles[name, want.blob, page, leaf] = want.handle
        self._sender.take(name, want, self._clock.now)
        self._send()

    def _send(self) -> None:
        """Sends what may go now; looks again when more may."""
        if not self.is_up or self._is_sending:
            return
        while (send := self._sender.next(self._clock.now)) is not None:
            content = catalogue.blobs()[send.blob]
            if send.page is not None:
                chunk = Chunk(handle=send.handle, page=send.page, bytes=page_of(content))
            else:
                data = content[send.offset : send.offset + send.length]
                chunk = Chunk(handle=send.handle, offset=send.offset, bytes=data)
            part = (send.node, send.blob, send.page, send.offset // LEAF_BYTES)
            if self.handles.get(part, send.handle) != send.handle:
                self.wrong_handles += 1
            self.content[send.node] = self.content.get(send.node, 0) + len(chunk.bytes)
            self._road.down(send.node, ("chunk", {}, chunk.encode()), qos=0)
            if self._pace_s:
                break
        due = self._sender.next_time(self._clock.now)
        if due is not None:
            self._is_sending = True

            def again() -> None:
                self._is_sending = False
                self._send()

            self._clock.after(max(0.001, self._pace_s, due - self._clock.now), again)

    def _on_records(self, name: str, batch: Records) -> None:
        key = (name, batch.run, batch.lane)
        state = self.lanes.get(key) or dict.fromkeys(("next", "kept", "merged", "lost", "missing"), 0)
        self._effect("hub", "commit of records")
        fresh, state = _fresh_rows(batch, state)
        self.lanes[key] = state
        self.records.setdefault(key, []).extend((row["seq"], row["count"], row["kind"]) for row in fresh)
        self._effect("hub", "receipt")
        self._road.down(name, ("receipt", {}, (batch.run, batch.lane, state["next"])), qos=1)


def replace_expiry(directive: Directive, now: int) -> Directive:
    """The same, good for a month."""
    return directive.model_copy(update={"expires": now + LIFE_S})


def can(what: Callable[[], None]) -> bool:
    """Whether the operator's command was obeyed."""
    try:
        what()
    except (RefusedError, NotFoundError):
        return False
    return True
