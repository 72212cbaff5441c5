"""[IO] Recipes on their way: which are waited for, which one is being made and how far it is, and which nobody needs.

Rule 1: one is made at a time, in the background; whoever asked for it waits so long and no longer.
Rule 2: what can't be made is remembered with why, and tried again when the release is added again.
Rule 3: what a node holds is what it said last, whenever that was: a node that is away comes back.

Times named `now_s` are seconds of a monotonic clock; `now` is seconds since 1970.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from heliograph.delta.file import make_file
from heliograph.errors import HeliographError, IntegrityError, NotFoundError
from heliograph.names import Digest
from heliograph_hub.fleet import Node
from heliograph_hub.registry import Maker, Registry, Release

Pair = tuple[Digest, Digest]
RECIPE_PATIENCE_S = 60.0
"""How long a node is told `later` for one recipe; then it is offered full."""
State = Literal["waiting", "being made", "failed"]


@dataclass(frozen=True, slots=True)
class Pending:
    """A pair that has no recipe.

    Attributes:
        seconds: since it was asked for, or since it is being made.
        done_bytes: of the new file, as far as it is made.
        why: it failed.
    """

    base: Digest
    target: Digest
    state: State
    seconds: float = 0.0
    done_bytes: int = 0
    why: str = ""


class Recipes:
    """Pairs waiting for their recipe, made one at a time by whoever calls `make` in a thread."""

    def __init__(self, registry: Registry, make: Maker = make_file) -> None:
        """`make` writes the delta file of one pair."""
        self._registry = registry
        self._make = make
        self._lock = threading.Lock()
        self._waiting: deque[Pair] = deque()
        self._asked: dict[Pair, float] = {}
        self._begun: dict[Pair, tuple[float, int]] = {}
        """Of the pair that is being made: when it was begun, and how many bytes are done."""
        self.failed: dict[Pair, str] = {}
        """Pairs for which none could be made, and why."""

    def request(self, pairs: Collection[Pair], now_s: float) -> list[Pair]:
        """Those that are still being made and worth waiting for; what was not asked for before is queued."""
        pending = []
        for pair in self._registry.missing_recipes(pairs):
            if pair in self.failed:
                continue
            with self._lock:
                if pair not in self._asked:
                    self._asked[pair] = now_s
                    self._waiting.append(pair)
                if now_s - self._asked[pair] < RECIPE_PATIENCE_S:
                    pending.append(pair)
        return pending

    def retry(self, targets: Iterable[bytes]) -> None:
        """What could not be made to these files may be asked for again."""
        wanted = set(targets)
        with self._lock:
            for pair in [pair for pair in self.failed if pair[1] in wanted]:
                del self.failed[pair]

    def waited_s(self, pairs: Iterable[Pair], now_s: float) -> float:
        """How long the newest of these has been waited for."""
        with self._lock:
            return min((now_s - self._asked[pair] for pair in pairs if pair in self._asked), default=0.0)

    def take(self) -> Pair | None:
        """The next pair to make, if any."""
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def make(self, pair: Pair, now: int, clock: Callable[[], float] = time.monotonic) -> str:
        """Makes one recipe (seconds of work) and returns a sentence about it; if it fails, full is sent.

        `clock` gives seconds of a monotonic clock.
        """
        begun_s = clock()

        def note(done: int, _whole: int) -> None:
            with self._lock:
                self._begun[pair] = (begun_s, done)

        note(0, 0)
        try:
            delta = self._registry.make_recipe(*pair, now, self._make, note)
        except (HeliographError, OSError) as error:  # a full disk, say
            with self._lock:
                self.failed[pair] = str(error)
            return f"no recipe from {pair[0].hex()[:12]} to {pair[1].hex()[:12]}: {error}"
        finally:
            with self._lock:
                self._begun.pop(pair, None)
                self._asked.pop(pair, None)
        return f"made a recipe to {pair[1].hex()[:12]}: {delta.cost_bytes} bytes in {delta.seconds:.1f} s"

    def pending(self, targets: Collection[bytes], now_s: float) -> list[Pending]:
        """What is waited for, being made, or could not be made to these files: in the order in which it is made."""
        with self._lock:
            found = [
                Pending(*pair, "being made", now_s - begun_s, done)
                for pair, (begun_s, done) in self._begun.items()
                if pair[1] in targets
            ]
            found += [
                Pending(*pair, "waiting", now_s - self._asked.get(pair, now_s))
                for pair in self._waiting
                if pair[1] in targets
            ]
            found += [Pending(*pair, "failed", why=why) for pair, why in self.failed.items() if pair[1] in targets]
        return found


def held_releases(nodes: Iterable[Node]) -> dict[str, dict[bytes, int]]:
    """Per model, the releases that nodes said they hold, and how many nodes each; removed nodes don't count."""
    held: dict[str, dict[bytes, int]] = {}
    for node in nodes:
        if node.removed_at is not None or node.reported is None:
            continue
        for model, report in node.reported.models.items():
            tuples = (report.tuple, report.fallback)
            for release in {*report.held, *(bytes(t.release) for t in tuples if t is not None)}:
                counts = held.setdefault(model, {})
                counts[release] = counts.get(release, 0) + 1
    return held


def files_of(registry: Registry, release: bytes) -> list[bytes]:
    """The digests of a release's files, as its manifest lists them; none of one that is unknown or has rotted."""
    known = registry.by_digest(release)
    try:
        return [file.sha256 for file in registry.manifest(known).files] if known is not None else []
    except (IntegrityError, NotFoundError):
        return []


def pairs_for(registry: Registry, release: Release, held: dict[bytes, int]) -> list[Pair]:
    """The pairs that nodes will need to get a release: from what most of them hold first, then from its predecessor."""
    pairs: dict[Pair, None] = {}
    for base in sorted(held, key=lambda digest: (-held[digest], digest)):
        if base != release.digest:
            for pair in registry.pairs(release, files_of(registry, base)):
                pairs[pair] = None
    for pair in registry.likely_pairs(release):
        pairs[pair] = None
    return list(pairs)
