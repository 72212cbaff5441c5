"""[IO] Answers asks with offers and wants with chunks.

Rule 1: an offer names only what a directive in force for the node's ring names, and always a full way; a node is kept
    waiting for a recipe only so long, then it is offered full.
Rule 2: `never` is said only of what is denied or no ring is to run: a node between two rings is told `later`.
Rule 3: chunks are served of what the registry knows and is not secret, and of nothing else; what is asked for beyond a
    blob's end is left out. Who gets the next chunk is `heliograph.sender`'s choice.
Rule 4: of a confidential release only sealed ways are offered, with the key for this one node beside them.

Times named `now_s` are seconds of a monotonic clock; `now` is seconds since 1970.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from heliograph.blob import LEAF_BYTES, LEAVES_PER_PAGE, PAGE_SPAN_BYTES, page_count, page_of
from heliograph.deadlines import DEADLINES
from heliograph.delta.recipe import RECIPE_FORMAT
from heliograph.documents import MAX_RANGES, Ask, Chunk, Grant, Offer, Want, Way
from heliograph.errors import IntegrityError, NotFoundError, RefusedError
from heliograph.manifest import Manifest
from heliograph.names import Digest, Ring
from heliograph.sender import Sender
from heliograph.versions import reads
from heliograph_hub.admission import Admission
from heliograph_hub.denial import Denials, why
from heliograph_hub.fleet import Node
from heliograph_hub.pacing import RECIPE_LATER_S, cost
from heliograph_hub.recipes import Recipes
from heliograph_hub.registry import Registry
from heliograph_hub.rollout import Signed
from heliograph_hub.seals import Seals

ROLLOUT_LATER_S = 60
UNSEALED_LATER_S = 60
"""How long a node is put off where something can't be sealed."""
_CACHED_PAGES = 1024
_CACHED_LENGTHS = 4096
_CACHED_PURPOSES = 65_536


def answer(
    registry: Registry,
    recipes: Recipes,
    realm: str,
    node: Node,
    ask: Ask,
    in_force: Mapping[Ring, Mapping[str, Signed]],
    now: int,
    now_s: float,
    denials: Denials | None = None,
    admission: Admission | None = None,
    seals: Seals | None = None,
) -> Offer:
    """The one answer to an ask: ways, or later, or never; reads the manifest, makes nothing but an epoch that is due.

    What `denials` deny is never offered: no release, and no delta by a denied recipe. `admission` says what policy,
    pauses, pace and budget have against it; whom it lets in is on disk when this returns.

    Raises:
        IntegrityError, NotFoundError: the release's own manifest has rotted on the hub.
        RefusedError: the node was removed or replaced meanwhile, and the release is confidential.
    """
    grant: Grant | None = None
    later_s: int | None = None
    reason = ""
    ways: tuple[Way, ...] = ()
    release = registry.by_digest(ask.release)
    directive = in_force.get(node.ring, {}).get(ask.model)
    named_elsewhere = any(
        models[ask.model].release == ask.release for models in in_force.values() if ask.model in models
    )
    denial = denials.denial(ask.model, ask.release) if denials else None

    def later(about_s: float) -> int:
        return admission.later(node, ask.model, about_s, now_s) if admission else int(about_s)

    if denial is not None:
        reason = f"{release.name if release else 'this release'} is denied {why(denial)}"[:400]
    elif release is None or release.model != ask.model:
        reason = f"the hub has no release {ask.release.hex()[:16]} of {ask.model}"
    elif not named_elsewhere:
        reason = f"no ring is to run {release.name} now"
    elif directive is None or directive.release != ask.release or directive.action != "install":
        later_s, reason = later(ROLLOUT_LATER_S), f"{release.name} is not released to ring {node.ring}"
    elif admission and (below := admission.why_never(node, release)):
        reason = below
    elif admission and (paused := admission.why_paused(node, release, directive.number)):
        later_s, reason = later(0), paused
    else:
        reads_recipes = _reads_recipes(node)
        pairs = registry.pairs(release, ask.bases) if reads_recipes else []
        registry.note_asked(pairs, now)
        pending = recipes.request(pairs, now_s)
        if pending:
            waited_s = recipes.waited_s(pending, now_s)
            later_s = admission.recipe_later(node, ask.model, waited_s, now_s) if admission else RECIPE_LATER_S
            reason = f"{len(pending)} of the deltas to {release.name} are being made"
        else:
            is_denied = denials.is_recipe_denied if denials else lambda recipe: False
            is_useless = is_denied if reads_recipes else lambda recipe: True
            manifest = registry.manifest(release)
            unsealed: tuple[float | None, str] | None = None
            if not manifest.confidential:
                ways = registry.ways(manifest, ask.bases, is_useless)
            elif seals is not None:
                ways, grant, unsealed = _sealed_ways(registry, seals, node, manifest, ask, is_useless, now, now_s)
            else:
                unsealed = (None, "this hub seals nothing")
            if unsealed is not None:
                waited, reason = unsealed
                if waited is None:
                    later_s = later(UNSEALED_LATER_S)
                else:
                    later_s = admission.recipe_later(node, ask.model, waited, now_s) if admission else RECIPE_LATER_S
            else:
                waits = admission.admit(node, release, directive.number, cost(ways), now) if admission else None
                if waits is not None:
                    ways, grant, later_s, reason = (), None, later(waits.until - now), waits.reason[:400]
    if admission and later_s is None:
        admission.answered(node, ask.model)
    return Offer(
        realm=realm,
        site=node.site,
        node=node.node,
        key=node.keyid,
        run=ask.run,
        n=ask.n,
        model=ask.model,
        release=ask.release,
        expires=now + int(DEADLINES.offer_s),
        ways=ways,
        later_s=later_s,
        never=bool(reason) and later_s is None,
        reason=reason,
        grant=grant,
    )


def _sealed_ways(
    registry: Registry,
    seals: Seals,
    node: Node,
    manifest: Manifest,
    ask: Ask,
    is_useless: Callable[[bytes], bool],
    now: int,
    now_s: float,
) -> tuple[tuple[Way, ...], Grant | None, tuple[float | None, str] | None]:
    """Ways to a confidential release and the key to them; or how long the node has waited by now, and for what.

    It waits in vain (None) for what can't be sealed.
    """
    try:
        epoch = seals.epochs.newest(manifest.model, now)
    except RefusedError:  # logged where it is made ready; a node is told what it can make use of
        return (), None, (None, f"the hub has no key for {manifest.release}")
    if waiting := seals.missing(manifest, ask.bases, epoch, is_useless):
        seals.request(waiting)
        waited_s = seals.waited_s(waiting, now_s)
        return (), None, (waited_s, f"{len(waiting)} of the ways to {manifest.release} are being sealed")
    ways = registry.ways(manifest, ask.bases, is_useless, seals.ways(epoch.model, epoch.number))
    lacking = {file.sha256 for file in manifest.files} - {way.blob for way in ways} - set(ask.bases)
    if lacking:
        return (), None, (None, f"{len(lacking)} files of {manifest.release} can't be sealed on the hub")
    return ways, seals.epochs.grant(epoch, node.site, node.node, node.keyid) if ways else None, None


def _reads_recipes(node: Node) -> bool:
    """Whether the recipes of this hub are of use to the node, by what it said that it reads; else full is sent."""
    return reads(node.reported.schemas if node.reported else {}, "recipe", RECIPE_FORMAT)


@dataclass(frozen=True, slots=True)
class Purpose:
    """What chunks are for: the release whose blob it is (None: of no release), and the asker's ring."""

    release: Digest | None
    ring: Ring


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One chunk message and whom it is for."""

    site: str
    node: str
    payload: bytes
    content_bytes: int


class Distribution:
    """What is queued for whom, and the bytes of it.

    Args:
        on_sent: is told of every chunk that goes out: site, node, what it is for, bytes of content.

    Attributes:
        content_bytes: leaves and pages sent since the start, by (site, node).
        rotten: reads that found an object missing or short.
    """

    def __init__(
        self,
        registry: Registry,
        sender: Sender[tuple[str, str]],
        on_sent: Callable[[str, str, Purpose, int], None] = lambda site, node, purpose, count: None,
    ) -> None:
        self._registry = registry
        self._sender = sender
        self._on_sent = on_sent
        self._purposes: OrderedDict[tuple[tuple[str, str], Digest], Purpose] = OrderedDict()
        self._lengths: OrderedDict[Digest, int] = OrderedDict()
        self._pages: OrderedDict[tuple[Digest, int], bytes] = OrderedDict()
        self.content_bytes: Counter[tuple[str, str]] = Counter()
        self.rotten = 0

    def take(self, site: str, node: str, want: Want, now_s: float, purpose: Purpose | None = None) -> int:
        """Queues what is wanted and exists, and returns how many chunks are new in the queue.

        Raises:
            NotFoundError: the registry has no such blob.
            RefusedError: it is secret.
        """
        length = self._length(Digest(want.blob))
        if self._registry.is_secret(Digest(want.blob)):
            raise RefusedError(f"blob {want.blob.hex()[:16]} is confidential: only what is sealed of it is sent")
        leaves = -(-length // LEAF_BYTES)
        pages = tuple(page for page in want.pages[:MAX_RANGES] if page < page_count(length))
        ranges = tuple(
            (first, min(count, leaves - first)) for first, count in want.ranges[:MAX_RANGES] if first < leaves
        )
        if purpose is not None:
            self._purposes[(site, node), Digest(want.blob)] = purpose
            self._purposes.move_to_end(((site, node), Digest(want.blob)))
            if len(self._purposes) > _CACHED_PURPOSES:
                self._purposes.popitem(last=False)
        fitting = Want(handle=want.handle, blob=want.blob, pages=pages, ranges=ranges)
        return self._sender.take((site, node), fitting, now_s)

    def next(self, now_s: float) -> Outgoing | None:
        """The next chunk to send, or None if nothing may go now. A blob that can't be read is passed over, counted."""
        while (send := self._sender.next(now_s)) is not None:
            try:
                length = self._length(send.blob)
                if send.page is not None:
                    content = self._page(send.blob, length, send.page)
                    chunk = Chunk(handle=send.handle, page=send.page, bytes=content)
                else:
                    size = min(send.length, length - send.offset)
                    content = self._registry.objects.read_range(send.blob, send.offset, size)
                    chunk = Chunk(handle=send.handle, offset=send.offset, bytes=content)
            except (NotFoundError, IntegrityError):
                self.rotten += 1
                continue
            self.content_bytes[send.node] += len(content)
            if (purpose := self._purposes.get((send.node, send.blob))) is not None:
                self._on_sent(*send.node, purpose, len(content))
            return Outgoing(send.node[0], send.node[1], chunk.encode(), len(content))
        return None

    def next_time(self, now_s: float) -> float | None:
        """When `next` will have something; None while nothing is queued."""
        return self._sender.next_time(now_s)

    def drop(self, is_closed: Callable[[Purpose], bool]) -> int:
        """Forgets what is queued for purposes that are closed now; returns how many chunks those were."""

        def is_dropped(node: tuple[str, str], blob: Digest) -> bool:
            purpose = self._purposes.get((node, blob))
            return purpose is not None and is_closed(purpose)

        return self._sender.drop(is_dropped)

    def forget_lengths(self) -> None:
        """Blobs were dropped: what is asked for from now on is looked up anew."""
        self._lengths.clear()

    def forget(self, site: str, node: str) -> None:
        """The node is gone: what it asked for is dropped."""
        self._sender.forget((site, node))

    def _length(self, blob: Digest) -> int:
        length = self._lengths.get(blob)
        if length is None:
            length = self._registry.blob_length(blob)
            if length is None:
                raise NotFoundError(f"no blob {blob.hex()[:16]} in the registry")
            self._lengths[blob] = length
            if len(self._lengths) > _CACHED_LENGTHS:
                self._lengths.popitem(last=False)
        return length

    def _page(self, blob: Digest, length: int, index: int) -> bytes:
        """The leaf digests of one MiB; made once while it is asked for often."""
        page = self._pages.get((blob, index))
        if page is None:
            offset = index * PAGE_SPAN_BYTES
            span = self._registry.objects.read_range(blob, offset, min(PAGE_SPAN_BYTES, length - offset))
            page = self._pages[blob, index] = page_of(span)
            assert len(page) <= LEAVES_PER_PAGE * 16
            if len(self._pages) > _CACHED_PAGES:
                self._pages.popitem(last=False)
        return page
