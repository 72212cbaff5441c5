"""Many worlds at once, in two processes, and what they met all together."""

import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.pool import Pool

from simulator import memory
from simulator.world import Outcome, run

WORKERS = 2


@dataclass
class Summary:
    """What many worlds gave."""

    worlds: int = 0
    events: int = 0
    seconds: float = 0.0
    met: Counter[str] = field(default_factory=Counter)
    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    broken: list[Outcome] = field(default_factory=list)
    is_hostile: bool = False

    def __str__(self) -> str:
        lines = [f"{self.worlds} worlds, {self.events} events, {self.worlds / max(self.seconds, 1e-9):.1f} worlds/s"]
        lines += [f"  {count:8}  {what}" for what, count in sorted(self.met.items())]
        return "\n".join(lines)

    def failures(self) -> str:
        """The first broken worlds, each with its trace and the line that repeats it."""
        told = []
        for outcome in self.broken[:3]:
            trace = run(outcome.seed, is_told=True, is_hostile=self.is_hostile).trace[-60:]
            how = " --hostile" * self.is_hostile
            line = f"PYTHONPATH=tests python -m simulator {outcome.seed}{how}"
            told.append("\n".join([f"seed {outcome.seed}: {outcome.message}", *trace, f"repeat with: {line}"]))
        seeds = ", ".join(str(outcome.seed) for outcome in self.broken[:50])
        return f"{len(self.broken)} of {self.worlds} worlds broke (seeds {seeds})\n\n" + "\n\n".join(told)


def _begin() -> None:
    """Of a worker: it ends when it is told to, whatever the process that it was forked from makes of signals."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    memory.install()


def pool_of(workers: int) -> Pool:
    """Processes that live worlds."""
    return multiprocessing.get_context("fork").Pool(workers, _begin)


def run_many(seeds: Iterable[int], *, workers: int = WORKERS, stops: bool = False, is_hostile: bool = False) -> Summary:
    """Runs the worlds of these seeds; `stops` at the first that breaks."""
    summary, began = Summary(is_hostile=is_hostile), time.monotonic()
    with pool_of(workers) as pool:
        for outcome in pool.imap_unordered(partial(run, is_hostile=is_hostile), seeds, chunksize=5):
            summary.worlds += 1
            summary.events += outcome.events
            summary.met.update(outcome.met)
            summary.rows.update(outcome.rows)
            if outcome.violation:
                summary.broken.append(outcome)
                if stops:
                    pool.terminate()
                    break
    summary.broken.sort(key=lambda outcome: outcome.seed)
    summary.seconds = time.monotonic() - began
    return summary
