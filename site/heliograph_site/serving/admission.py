"""Which requests are let in. Pure.

A request that can't be answered in time is refused at once, never queued to die: the bound on how many wait is what
keeps the wait short.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one model, and the gateway as a whole, takes on."""

    waiting: int = 64
    """Admitted requests of one model: in its worker and in its queue."""
    request_s: float = 30.0
    """From admission to answer, and the longest a worker may be busy with one request."""
    body_bytes: int = 64 << 20
    """Largest request."""
    bodies_bytes: int = 128 << 20
    """All requests that are being read or answered, together."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not let in, for people and for programs, and when to come again."""

    reason: str
    sentence: str
    retry_after_s: int = 1


def admit(model: str, waiting: int, restart_in_s: float, limits: Limits) -> Refusal | None:
    """None when the request may wait for an answer.

    Args:
        model: its name, for the sentence.
        waiting: requests of the model admitted and not answered.
        restart_in_s: until its worker is started again; 0 when it runs or is just starting.
        limits: the bounds.
    """
    if restart_in_s >= 1.0:
        seconds = int(restart_in_s) + 1
        return Refusal("worker-restarting", f"the worker of {model} ended and starts again in {seconds} s", seconds)
    if waiting >= limits.waiting:
        return Refusal("queue-full", f"{waiting} requests of {model} are waiting already; try again in a second")
    return None
