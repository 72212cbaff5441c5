"""What each subject of the API stands on: the service, and how releases are found, named and shown as denied."""

import time
from typing import TYPE_CHECKING, Any

from heliograph.errors import RefusedError
from heliograph.names import parse_release
from heliograph_hub.denial import why
from heliograph_hub.registry import Release
from heliograph_hub.telling import ROLLED_BACK
from heliograph_hub.timeline import returns

if TYPE_CHECKING:
    from heliograph_hub.service import Service

MAX_RETURNS = 1000
"""Newest records of ways back that are looked at."""


class Part:
    """One method per thing an operator can ask; arguments are checked here, answers are plain JSON values."""

    def __init__(self, service: "Service") -> None:
        self._service = service

    def find(self, name: str) -> Release:
        """The release of this name."""
        return self._service.registry.find(*parse_release(name))

    def names(self) -> dict[bytes, str]:
        """Every release's name, by digest."""
        return {release.digest: release.name for release in self._service.registry.all()}

    def returned(self, site: str, node: str, names: dict[bytes, str]) -> list[dict[str, Any]]:
        """Releases that a node came back to at least twice, as its records here tell."""
        ways = self._service.fleet.told(site, node, MAX_RETURNS, kind=ROLLED_BACK)
        return [one.plain(names) for one in returns(ways)]

    def holders(self, model: str) -> dict[bytes, list[str]]:
        """Which releases of a model have a file of this digest."""
        holders: dict[bytes, list[str]] = {}
        for release in self._service.registry.all():
            if release.model == model:
                for file in self._service.registry.manifest(release).files:
                    holders.setdefault(file.sha256, []).append(release.name)
        return holders

    def making(self, release: Release) -> list[dict[str, Any]]:
        """Deltas to a release that aren't made yet: how far each is, in the order in which they are made."""
        files = {file.sha256: file for file in self._service.registry.manifest(release).files}
        pending = self._service.workshop.recipes.pending(files, time.monotonic())
        holders = self.holders(release.model) if pending else {}
        return [
            {
                "file": files[one.target].name,
                "base": one.base.hex(),
                "from": holders.get(one.base, []),
                "state": one.state,
                "seconds": round(one.seconds, 1),
                "done_bytes": one.done_bytes,
                "bytes": files[one.target].length,
                "why": one.why,
            }
            for one in pending
        ]

    def refuse_denied(self, release: Release) -> None:
        """Nothing is done for a denied release."""
        denial = self._service.denials.denial(release.model, release.digest)
        if denial is not None:
            raise RefusedError(f"{release.name} is denied {why(denial)}; that is for good, release a new version")

    def denied(self, release: Release) -> dict[str, Any] | None:
        """What denies a release, for people; None if nothing does."""
        denial = self._service.denials.denial(release.model, release.digest)
        if denial is None or denial.document is None:
            return None
        return {
            "type": denial.type,
            "reason": denial.document.reason,
            "at": denial.document.at,
            "final": self._service.denials.is_final(release.model, release.digest),
        }
