"""[IO] What a hub does again and again by the clock: signs in time, writes what waits, drops what is kept no longer.

Each of these is a task for ever. A hub that is killed in the midst of one does it again after the next start.
"""

import asyncio
import logging
import time

from heliograph.errors import HeliographError
from heliograph_hub import retention
from heliograph_hub.service import Service

log = logging.getLogger("heliograph.hub")

RENEW_EVERY_S = 3600.0
"""How often it is looked whether the timestamp is a day old."""
FLUSH_EVERY_S = 5.0
DROP_EVERY_S = 86400.0


async def renew(service: Service) -> None:
    """Keeps the timestamp younger than a day, and directives in force."""
    while True:
        await asyncio.sleep(RENEW_EVERY_S)
        try:
            service.ledger.tidy(_now())
            for worded in service.rollouts.renew(_now()):
                log.info("renewed directive %s of ring %s", worded.directive.number, worded.directive.ring)
            service.announce()
        except HeliographError as error:
            log.error("the timestamp can't be renewed: %s", error)


async def keep_doors(service: Service) -> None:
    """Has the broker's certificate and lists made anew in time, once a day."""
    while True:
        await asyncio.sleep(DROP_EVERY_S)
        if service.access is not None:
            service.access.renew(_now())


async def flush(service: Service) -> None:
    """Writes counts of refused messages and the log; a flood of them costs one transaction every few seconds."""
    while True:
        await asyncio.sleep(FLUSH_EVERY_S)
        flush_now(service)


def flush_now(service: Service) -> None:
    """Writes all that waits; on disk when this returns."""
    service.fleet.flush_counts()
    service.ledger.flush()
    service.duties.flush()


async def drop_old(service: Service) -> None:
    """Drops what is kept no longer (records, sealed blobs, recipes), once a day."""
    while True:
        dropped = await asyncio.to_thread(
            retention.drop_old, service.database, lambda ring: service.control.policy_of(ring).telemetry, _now()
        )
        if dropped:
            log.info("dropped %d records that are older than policy keeps them", dropped)
        sealed = await asyncio.to_thread(service.workshop.seals.drop_old, _now())
        if sealed:
            log.info("dropped %d sealed blobs of epochs that are over", sealed)
        if said := await asyncio.to_thread(service.workshop.drop_recipes):
            service.distribution.forget_lengths()
            log.info(said)
        await asyncio.sleep(DROP_EVERY_S)


def _now() -> int:
    return int(time.time())
