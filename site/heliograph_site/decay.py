"""How records are thinned: which kinds merge, field by field, and into what.

Records of one kind merge if they agree in the fields that say what they are about; every other field is folded by the
way its kind declares. A kind that is not declared, a field its kind doesn't know, or a value of the wrong type is never
guessed at: such a record stays as it is until it is sent or lost. When and what to thin is `outbox.py`'s decision.

A merged body carries `span`: [first, last], the times of the first and the last record it covers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from heliograph.errors import IntegrityError
from heliograph.sketch import Sketch
from heliograph.wire import pack

SPAN = "span"
PERIODS_S: Final = (3600, 86400)
"""What a record covers at most after its first and its second thinning: an hour, a day, as UTC cuts them."""
MAX_COUNT = 1 << 62

Merge = Callable[[Any, Any], Any]
"""(earlier, later) -> both in one. Raises ValueError if they can't be."""


def add(earlier: Any, later: Any) -> int:
    """The sum of two counters."""
    if type(earlier) is not int or type(later) is not int or not 0 <= earlier + later <= MAX_COUNT:
        raise ValueError("not two counters")
    return earlier + later


def last(_: Any, later: Any) -> Any:
    """What was so at the end."""
    return later


def sketch(earlier: Any, later: Any) -> bytes:
    """Two sketches (their bytes) as one."""
    try:
        return Sketch.decode(earlier).merge(Sketch.decode(later)).encode()
    except (IntegrityError, TypeError) as error:
        raise ValueError("not two sketches") from error


@dataclass(frozen=True, slots=True)
class Kind:
    """What the records of a kind are about, and how their other fields merge."""

    about: tuple[str, ...]
    fields: Mapping[str, Merge]


KINDS: Final[Mapping[str, Kind]] = {
    "serving": Kind(
        about=("model", "release"),
        fields={"state": last, "requests": add, "errors": add, "restarts": add, "latency": sketch},
    ),
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A record, or what records were merged into: the times of its first and last record, and its body."""

    at: int
    until: int
    body: dict[str, Any]


def subject(kind: str, body: Mapping[str, Any]) -> bytes | None:
    """What a record is about: records that agree in it merge. None: it doesn't merge with any."""
    known = KINDS.get(kind)
    if known is None or not set(known.about) <= body.keys() <= {SPAN, *known.about, *known.fields}:
        return None
    return pack([kind, *(body[name] for name in known.about)])


def merge(kind: str, pieces: Sequence[Piece]) -> Piece | None:
    """One piece for all, which are about the same and in order of time; None if their values don't merge.

    A field that only some have is merged over those.
    """
    fields = KINDS[kind].fields
    body: dict[str, Any] = {}
    try:
        for piece in pieces:
            for name, value in piece.body.items():
                body[name] = fields[name](body[name], value) if name in body and name in fields else value
    except ValueError:
        return None
    at, until = min(piece.at for piece in pieces), max(piece.until for piece in pieces)
    return Piece(at, until, body | {SPAN: [at, until]})
