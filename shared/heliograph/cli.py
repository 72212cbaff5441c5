"""[IO] `heliograph`: the entrance, which loads nothing before it can end as Ctrl-C should.

| ending | exit code |
|---|---|
| a HeliographError | its family's (`heliograph.errors`), the message on one line |
| wrong usage | 2 |
| Ctrl-C | 130 |
| the reader of our stdout went away | 1, quietly |
| the operating system refused something | 1, one line |
"""

import sys


def main(args: list[str] | None = None) -> int:
    """Runs one command line (default: the process's) and returns its exit code."""
    try:
        from heliograph.subcommands import run  # half a second on a slow machine, in which somebody may think again

        return run(sys.argv[1:] if args is None else args)
    except KeyboardInterrupt:
        print("heliograph: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
