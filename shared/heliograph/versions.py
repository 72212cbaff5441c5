"""Older and newer versions of ourselves: which of two agents is older, and what the other side is known to read.

A document says by `min_agent` from which agent on it means what it says; an older agent declines it in words and goes
on as it was. An agent says by `schemas`, in hello and reported, up to which version it reads each format; what needs a
newer one isn't sent to it. How each format may grow stands in shared/FORMATS.md, "How formats grow".
"""

import re
from collections.abc import Mapping

import heliograph

FIRST_SCHEMA = 1
"""What a reader that doesn't name a format is taken to read of it: there was no agent before."""
_PARTS = 4


def numbers_of(version: str) -> tuple[int, ...]:
    """The numbers in a version, for comparing: `1.10` is newer than `1.9`, and `1.0.0` the same as `1`.

    What isn't a number is left out, so that any text is a version; one without numbers is the oldest.
    """
    numbers = [int(part) for part in re.findall(r"[0-9]{1,9}", version)[:_PARTS]]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def is_older(version: str, than: str) -> bool:
    """Whether `version` comes before `than`."""
    return numbers_of(version) < numbers_of(than)


def why_too_old(what: str, min_agent: str, agent: str = heliograph.__version__) -> str | None:
    """Why an agent (this one, if none is named) must not obey `what`, in one sentence; None if it may.

    `what` names the document and its number: `policy 7 of ring canary`.
    """
    return f"{what} needs agent {min_agent}, this is {agent}" if is_older(agent, min_agent) else None


def reads(schemas: Mapping[str, int], form: str, version: int) -> bool:
    """Whether somebody who says these `schemas` reads this version of a format."""
    return version <= schemas.get(form, FIRST_SCHEMA)
