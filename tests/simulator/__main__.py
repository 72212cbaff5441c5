"""`python -m simulator SEED [COUNT [--hunt [SEED]]] [--hostile]`: one world's trace; how COUNT fared; the first broken.

A hunt tries the world named after it before all others.
"""

import sys

from heliograph_site.machine import TABLE
from simulator import memory
from simulator.many import run_many
from simulator.world import run


def main() -> int:
    """Runs what argv says; 1 if anything did not hold."""
    memory.install()
    is_hostile = "--hostile" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--hostile"]
    if len(sys.argv) == 2:
        outcome = run(int(sys.argv[1]), is_told=True, is_hostile=is_hostile)
        print("\n".join(outcome.trace))
        print(outcome.message or f"all held in {outcome.events} events")
        return 1 if outcome.message else 0
    first, count = int(sys.argv[1]), int(sys.argv[2])
    if sys.argv[3:4] == ["--hunt"]:
        for seed in (*map(int, sys.argv[4:]), *range(first, first + count)):
            if (outcome := run(seed, is_hostile=is_hostile)).violation:
                print(f"{outcome.message}\nbroken {seed} {outcome.violation}")
                return 1
        print(f"held {count}")
        return 0
    summary = run_many(range(first, first + count), is_hostile=is_hostile)
    print(summary)
    never = [
        f"{row.phase} {row.event.__name__}" for row in TABLE if (row.phase, row.event.__name__) not in summary.rows
    ]
    rare = {f"{phase} {event}": n for (phase, event), n in summary.rows.items() if n < 10}
    print(f"rows never taken: {never}\nrarely: {rare}")
    for outcome in summary.broken:
        print(f"{outcome.seed}: {outcome.message.strip()}")
    return 1 if summary.broken else 0


if __name__ == "__main__":
    sys.exit(main())
