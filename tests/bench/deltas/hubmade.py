"""Makes a delta as a hub does, in its bounded child, and again with too little memory; in a process of its own.

    python -P hubmade.py OLD NEW DELTA

Prints JSON: how much address space the child may take on top of the loaded program's, how much it took, the most it had
resident, its CPU; and with `SHARE` of what it took, how it ended, what it said, and what it left on the disk.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from heliograph.delta.making import MEMORY_BYTES, MEMORY_PER_BYTE, Making
from heliograph.errors import RefusedError

SHARE = 0.5


class Watch:
    """Reads what the kernel says of this process's child whenever that tells how far it is.

    Attributes:
        peaks: in bytes, as /proc/PID/status names them.
        limit: of its address space, in bytes, as a word.
    """

    def __init__(self) -> None:
        self.limit = ""
        self.peaks = {"VmPeak": 0, "VmHWM": 0}

    def __call__(self, done: int, whole: int) -> None:
        """A progress callback."""
        me = os.getpid()
        for child in Path(f"/proc/{me}/task/{me}/children").read_text().split():
            limits = Path(f"/proc/{child}/limits").read_text().splitlines()
            self.limit = next(line.split()[3] for line in limits if line.startswith("Max address space"))
            for line in Path(f"/proc/{child}/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in self.peaks:
                    self.peaks[name] = max(self.peaks[name], 1024 * int(value.split()[0]))


def main() -> None:
    """Makes one delta, and doesn't make it."""
    old, new, delta = map(Path, sys.argv[1:4])
    watch, begun = Watch(), time.monotonic()
    failed = ""
    try:
        Making().make(old, new, delta, watch)
    except RefusedError as error:
        failed = str(error)
    wall_s = time.monotonic() - begun
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    made_bytes = 0 if failed else delta.stat().st_size
    delta.unlink(missing_ok=True)
    bound = MEMORY_BYTES + MEMORY_PER_BYTE * (old.stat().st_size + new.stat().st_size)
    taken = watch.peaks["VmPeak"] - (int(watch.limit) - bound)
    too_little = int(SHARE * taken)
    command = [sys.executable, "-P", "-m", "heliograph.delta.making", *map(str, (old, new, delta, too_little))]
    refused = subprocess.run(command, stdin=_open_end(), capture_output=True, text=True, check=False)
    print(json.dumps({
        "failed": failed,
        "bytes": made_bytes,
        "bound_bytes": bound,
        "taken_bytes": taken,
        "resident_bytes": usage.ru_maxrss * 1024,
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "wall_s": round(wall_s, 1),
        "too_little_bytes": too_little,
        "ended": refused.returncode,
        "is_refused": refused.returncode == RefusedError.exit_code,
        "said": ((refused.stdout + refused.stderr).strip().splitlines() or [""])[-1],
        "left": sorted(path.name for path in delta.parent.iterdir()),
    }))  # fmt: skip


def _open_end() -> int:
    """A stdin that nothing comes from, and that ends with this process."""
    return os.pipe()[0]


if __name__ == "__main__":
    main()
