"""The server process of a node, with its workers: another process than the agent, and as mortal."""

from pathlib import Path
from typing import Protocol

from heliograph.names import Digest
from heliograph_site.slots import Slots
from simulator import catalogue


class Pointers(Protocol):
    """The committed pointers."""

    def active(self) -> dict[str, bytes]:
        """The release that is to serve, by model."""

    def tuples(self) -> dict[str, tuple[int, int]]:
        """The numbers of config and policy that go with it."""


class Server:
    """What answers, per model.

    Attributes:
        serving: the release that answers, by model.
        passed: every (model, release) that gave its golden outputs here: what must be true of whatever serves.
        broken: releases whose worker dies, whatever they did before.
        standby: by model, what answered before.
        tuned: by model, the numbers of config and policy that it answers with.
        given_up: by model, what should answer and doesn't.
    """

    def __init__(self, folder: Path, pointers: Pointers) -> None:
        self._slots = Slots(folder)
        self._pointers = pointers
        self.is_up = True
        self.serving: dict[str, bytes] = {}
        self.passed: set[tuple[str, bytes]] = set()
        self.broken: set[bytes] = set()
        self.given_up: dict[str, bytes] = {}
        self.standby: dict[str, bytes] = {}
        self.tuned: dict[str, tuple[int, int]] = {}

    def boot(self) -> None:
        """Alone, from the committed pointers."""
        self.is_up = True
        self.serving, self.given_up, self.tuned = {}, {}, self._pointers.tuples()
        for model, release in self._pointers.active().items():
            if self._loads(release) and release not in self.broken:
                self.serving[model] = release
            else:
                self.given_up[model] = release

    def die(self) -> None:
        self.is_up = False
        self.serving = {}

    def check(self, model: str, release: bytes) -> str:
        """Loads the release in a spare worker and compares its golden outputs; why not, or empty."""
        if not self._loads(release):
            return "its files are not what their digests say"
        if catalogue.releases()[Digest(release)].kind == "golden":
            return "golden outputs differ"
        if release in self.broken:
            return "its worker died"
        self.passed.add((model, release))
        return ""

    def serve(self, model: str, release: bytes | None, tuned: tuple[int, int] = (0, 0)) -> str:
        """Makes it the one that answers, or nothing; why not, or empty."""
        self.given_up.pop(model, None)
        if release is None:
            self.serving.pop(model, None)
            return ""
        if self.serving.get(model) == release and release not in self.broken:
            self.tuned[model] = tuned
            return ""
        if not self._loads(release):
            return "its files are not what their digests say"
        if release in self.broken:
            return "its worker died"
        if model in self.serving:
            self.standby[model] = self.serving[model]
        self.serving[model], self.tuned[model] = release, tuned
        return ""

    def stop(self, model: str, release: bytes) -> None:
        """Nothing answers any more, if this release does."""
        if self.serving.get(model) == release:
            del self.serving[model]

    def tune(self, model: str, release: bytes, tuned: tuple[int, int]) -> None:
        """Answers with these numbers from now on, if the release is what answers."""
        if self.serving.get(model) == release:
            self.tuned[model] = tuned

    def breaks(self, model: str, release: bytes) -> None:
        """The release's worker dies, as often as it is started."""
        self.broken.add(release)
        if self.serving.get(model) == release:
            del self.serving[model]
            self.given_up[model] = release

    def _loads(self, release: bytes) -> bool:
        known = catalogue.releases()[Digest(release)]
        store = self._slots.store
        return store.has(known.digest) and all(store.verify(digest) for digest in known.files)
