"""Runs commands one after the other and says what they took; small itself, since a child starts at its parent's memory.

    python -I -S launch.py CPU_SECONDS MEMORY_BYTES COMMANDS

`COMMANDS` is JSON: lists of words; `>` and a path at the end take the output. A bound of 0 is none. Prints JSON: CPU
seconds (user and system, of all), the largest ru_maxrss in bytes, what the last one printed, and of a failure the
command, its status and its last words.

Lead a process group, with a stdin that nothing is ever written to: when that ends, however whoever holds its other end
came to end, the whole group is killed.
"""

import json
import os
import resource
import select
import signal
import sys
import tempfile
import time


def main() -> None:
    """Runs them."""
    cpu_s, memory_bytes, commands = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    for what, bound in ((resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_AS, memory_bytes)):
        if bound:
            resource.setrlimit(what, (bound, bound))
    facts = {"cpu_s": 0.0, "wall_s": 0.0, "maxrss_bytes": 0, "said": "", "failed": ""}
    for command in commands:
        path = None
        if ">" in command:
            *command, _, path = command
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
            target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666) if path else out.fileno()
            begun = time.monotonic()
            pid = os.posix_spawnp(
                command[0],
                command,
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, target, 1),
                    (os.POSIX_SPAWN_DUP2, errors.fileno(), 2),
                ],
            )
            await_end(pid)
            _, status, usage = os.wait4(pid, 0)
            facts["wall_s"] += time.monotonic() - begun
            facts["cpu_s"] += usage.ru_utime + usage.ru_stime
            facts["maxrss_bytes"] = max(facts["maxrss_bytes"], usage.ru_maxrss * 1024)
            out.seek(0)
            facts["said"] = out.read().decode(errors="replace")
            if status:
                errors.seek(0)
                words = errors.read().decode(errors="replace").strip().splitlines()[-1:]
                code = os.waitstatus_to_exitcode(status)
                facts["failed"] = f"{command[0].rpartition('/')[2]} ended with {code}: {' '.join(words)[:200]}"
                break
    print(json.dumps(facts))


def await_end(pid: int) -> None:
    """Returns when this child has ended, and not at all if stdin ends before."""
    child = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(child, select.POLLIN)
    poll.register(0, select.POLLIN)
    if 0 in dict(poll.poll()):
        os.killpg(0, signal.SIGKILL)
    os.close(child)


if __name__ == "__main__":
    main()
