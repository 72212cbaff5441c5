"""How tests wait for what tells nobody when it changes: other processes above all. Events are waited for as such."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_S = 60.0
LOOK_S = 0.01


async def until(condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Returns once it holds; `what` is for whoever reads the failure."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        await asyncio.sleep(LOOK_S)


async def until_asked(condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    """As `until`, for a condition that has to ask somebody else: the loop goes on meanwhile."""
    deadline = time.monotonic() + timeout_s
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        await asyncio.sleep(LOOK_S)


def eventually(condition: Callable[[], T], what: str, timeout_s: float = PATIENCE_S) -> T:
    """The first true value of `condition`, which is asked again until then."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(LOOK_S)
    return value


async def turns(number: int) -> None:
    """Lets whatever is ready in the loop run, so many times: no time passes."""
    for _ in range(number):
        await asyncio.sleep(0)
