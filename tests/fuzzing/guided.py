"""`python -m fuzzing.guided PARSER CORPUS [libFuzzer options]`: one parser under libFuzzer, for so many runs."""

import sys

import atheris

with atheris.instrument_imports(include=["heliograph", "heliograph_hub", "heliograph_site"]):
    from fuzzing import driver
    from fuzzing.parsers import PARSERS, complaint


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    name = sys.argv.pop(1)
    parser = PARSERS[name]
    for data in parser.seeds():
        complaint(parser, data)
    before = driver.rss_now()
    peak = [0]

    def one(data: bytes) -> None:
        error = complaint(parser, data)
        if error is not None:
            raise error
        grown = driver.rss_peak() - before
        if grown > peak[0] + (1 << 20):
            peak[0] = grown
            print(f"rss above base: {grown}", flush=True)

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
