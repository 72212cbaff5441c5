"""What tests of the machine share: releases, what is denied, and how one happening follows another."""

from dataclasses import dataclass, field
from typing import get_args

from heliograph.documents import Phase
from heliograph_site.happenings import Directed, Happening
from heliograph_site.machine import Command, classify, step
from heliograph_site.memory import Memory, Target

PHASES: tuple[Phase, ...] = get_args(Phase)
A, B, C, D = b"a" * 32, b"b" * 32, b"c" * 32, b"d" * 32


def install(release: bytes, number: int) -> Directed:
    return Directed("install", Target(release, number))


def after(memory: Memory, *happenings: Happening) -> tuple[Memory, Command | None]:
    """Where these lead, one after the other; the command of the last."""
    command = None
    for happening in happenings:
        event = classify(memory, happening)
        assert event is not None, f"{happening} is nothing new in {memory.phase}"
        memory, command = step(memory, event)
    return memory, command


@dataclass
class Denied:
    """A deny set in memory."""

    releases: dict[bytes, int] = field(default_factory=dict)
    keys: set[bytes] = field(default_factory=set)

    def is_denied(self, release: bytes, vouchers: tuple[bytes, ...]) -> bool:
        return release in self.releases or not self.keys.isdisjoint(vouchers)

    def is_final(self, release: bytes, vouchers: tuple[bytes, ...]) -> bool:
        return self.releases.get(release, 0) > 1 or not self.keys.isdisjoint(vouchers)
