"""The agent's one inbox: whatever happens to a node waits here for its turn."""

import asyncio
from dataclasses import dataclass

from heliograph_site.happenings import Happening

INBOX_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Message:
    """Something the broker sent."""

    topic: str
    payload: bytes
    is_live: bool
    """Sent just now, not kept by the broker from before."""


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """The link came or went."""

    is_up: bool


@dataclass(frozen=True, slots=True)
class Answered:
    """A task's answer, for the machine of its model."""

    model: str
    happening: Happening


@dataclass(frozen=True, slots=True)
class Older:
    """What the list of denials had no room for."""

    blob: bytes


@dataclass(frozen=True, slots=True)
class ReplyIsLate:
    """What waits for the hub's reply waits no longer."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Ordered:
    """People want this of the model's machine."""

    model: str
    happening: Happening
    followed: asyncio.Future[bool]
    """Whether anything did."""


@dataclass(frozen=True, slots=True)
class LookAgain:
    """The levels of every model are to be looked at again."""


Item = Message | LinkChanged | Answered | Older | ReplyIsLate | Ticked | Ordered | LookAgain


class Inbox(asyncio.Queue[Item]):
    """As many as fit; whoever brings more waits."""

    def __init__(self) -> None:
        super().__init__(INBOX_LENGTH)
