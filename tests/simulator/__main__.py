"""`python -m simulator SEED [COUNT]`: the trace of one world, or how many of COUNT worlds from SEED on hold."""

import sys
import time
from collections import Counter

from simulator.world import run


def main() -> int:
    """Runs what argv says; 1 if anything did not hold."""
    if len(sys.argv) == 2:
        outcome = run(int(sys.argv[1]), is_told=True)
        print("\n".join(outcome.trace))
        print(outcome.message or f"all held in {outcome.events} events")
        return 1 if outcome.message else 0
    first, count = int(sys.argv[1]), int(sys.argv[2])
    broken: Counter[str] = Counter()
    met: Counter[str] = Counter()
    began, events = time.monotonic(), 0
    for seed in range(first, first + count):
        outcome = run(seed)
        events += outcome.events
        met += outcome.met
        if outcome.violation:
            broken[outcome.violation] += 1
            print(f"{seed}: {outcome.message.strip()}")
    took = time.monotonic() - began
    print(f"{count} worlds, {events} events, {count / took:.1f} worlds/s, broken: {dict(broken)}")
    print(dict(sorted(met.items())))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
