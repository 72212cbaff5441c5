"""What an operator types and reads, without a process for each line: Python takes longer to start than commands."""

import contextlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

from heliograph.cli import main


@dataclass(frozen=True)
class Typed:
    """What came of one line."""

    returncode: int
    stdout: str
    stderr: str


def typed(*words: str | Path, **environment: str) -> Typed:
    """Runs `heliograph WORDS` in this process, with these variables too."""
    out, err = io.StringIO(), io.StringIO()
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(word) for word in words])
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return Typed(code, out.getvalue(), err.getvalue())
