"""How a node gets a certificate: it signs what it asks for, the hub challenges, it signs that, the hub certifies.

The same two questions bring the first certificate, the next, and one after the last has ended; only the way there
differs, and that is the caller's. What is asked twice, because an answer was lost, is answered twice.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable

from heliograph.documents import Certified, Renew
from heliograph.errors import RefusedError, TransportError
from heliograph.signing import PrivateKey, sign_statement

MAX_CHALLENGES = 3
"""A hub that starts anew between our questions knows its challenge no more, and gives another."""


class Renewal:
    """One node's questions for certificates, one at a time."""

    def __init__(self, realm: str, site: str, node: str, key: PrivateKey) -> None:
        self._names = {"realm": realm, "site": site, "node": node}
        self._key = key
        self._asked: tuple[bytes, asyncio.Future[Certified]] | None = None

    async def run(self, send: Callable[[bytes], Awaitable[None]], answer_s: float) -> Certified:
        """Asks until there is a certificate; each answer may take so long.

        Raises:
            TransportError: no answer, or no way there.
            RefusedError: the hub goes on challenging.
        """
        challenge: bytes | None = None
        for _ in range(1 + MAX_CHALLENGES):
            nonce = os.urandom(16)
            answer: asyncio.Future[Certified] = asyncio.get_running_loop().create_future()
            self._asked = nonce, answer
            renew = Renew(**self._names, nonce=nonce, challenge=challenge)
            try:
                async with asyncio.timeout(answer_s):
                    await send(sign_statement("renew", renew.encode(), [self._key]))
                    certified = await answer
            except TimeoutError:
                raise TransportError(f"the hub certified nothing within {answer_s:g} s") from None
            finally:
                self._asked = None
            if certified.certificate:
                return certified
            challenge = certified.challenge
        raise RefusedError(f"the hub gave {MAX_CHALLENGES} challenges and no certificate")

    def take(self, certified: Certified) -> None:
        """The hub's answer, verified; one to another question is nobody's."""
        if self._asked is not None and self._asked[0] == certified.nonce and not self._asked[1].done():
            self._asked[1].set_result(certified)
