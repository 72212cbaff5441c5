"""The agent's sign of life: one byte into a pipe of its supervisor's, whenever its one consumer goes round.

The pipe is named in the environment, `HELIOGRAPH_PULSE="FD EVERY_S SILENT_S"`: the descriptor to write to, how often at
least, and for how long the agent before was silent when it was killed for that (0: it wasn't). Without it, and where
it names no pipe, nothing is written: the agent runs by itself then, or under something else.

Source: FORMATS.md, "Sign of life". Standard library only, as the supervisor is.
"""

import math
import os
import stat

VARIABLE = "HELIOGRAPH_PULSE"


class Pulse:
    """Where signs of life go.

    Attributes:
        every_s: a sign is expected this often, at least.
        silent_s: how long the agent before gave none, when it was killed for that; 0: it wasn't.
    """

    def __init__(self, fd: int | None = None, every_s: float = math.inf, silent_s: float = 0.0) -> None:
        """`fd`: the writing end of a pipe, which is nobody else's from now on; None: nobody listens."""
        self._fd = fd
        self.every_s = every_s
        self.silent_s = silent_s

    @classmethod
    def inherited(cls) -> "Pulse":
        """What the environment names, which is taken out of it: no child of this process is to find it there."""
        said = os.environ.pop(VARIABLE, "").split()
        try:
            fd, every_s, silent_s = int(said[0]), float(said[1]), float(said[2])
            if not (stat.S_ISFIFO(os.fstat(fd).st_mode) and 0 < every_s < math.inf and 0 <= silent_s < math.inf):
                return cls()
            os.set_inheritable(fd, False)
            os.set_blocking(fd, False)
        except (IndexError, ValueError, OverflowError, OSError):
            return cls()
        return cls(fd, every_s, silent_s)

    def beat(self) -> None:
        """Gives one sign; never waits, and doesn't mind whether it is heard."""
        if self._fd is None:
            return
        try:
            os.write(self._fd, b"\0")
        except BlockingIOError:
            pass  # a supervisor that stands still has enough to read when it goes on
        except OSError:
            self._fd = None  # it is gone
