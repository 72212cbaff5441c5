"""Feeds parsers spoilt inputs, and measures what each costs.

Two feeders share one table: `mutated` spoils good inputs by chance from a seed, so that every run and every machine
tries the same; `guided` is libFuzzer through atheris, which looks for inputs that reach new lines. Both watch for
errors that aren't the parser's own, for more than 5 s on one input, and for more than 64 MiB resident above what stood
before.

    python -m fuzzing [--guided] COUNT SEED [PARSER ...]     one line of JSON a parser; 1 if anything was found
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from fuzzing.parsers import PARSERS, Parser, complaint

MAX_SECONDS = 5.0
MAX_RSS_BYTES = 64 << 20

# Headers that promise what doesn't follow, and what opens a level of anything.
TOKENS = (
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01", b"\xdc\xff\xff", b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xd3\x80\0\0\0\0\0\0\0", b"\xcb\x7f\xf8\0\0\0\0\0\0", b"\xc0", b"\xc1", b"\xd6\xff\0\0\0\0", b"\x28\xb5\x2f\xfd",
    b"null", b"true", b"NaN", b"1e999", b"-1", b"0", b"[]", b"{}", b'""', b'"\\ud800"', b"\\u0000", b"9" * 400,
    b"\xff\xfe", b"\xf0\x9f\x92\xa3", b"\0", b"\n", b"..", b"/", b"'''", b'"""', b"[[", b"]]", b" = ", b"crit",
    b"signed", b"signatures", b"1979-05-27T07:32:00Z", b"0x7fffffffffffffff",
)  # fmt: skip
OPENERS = (
    b"[", b"{", b'{"a":', b"[{", b"\x91", b"\x81\xa1a", b"\x80", b"\x90", b"a.", b"a={", b"a=[", b"[[a]]\n", b"[],",
    b"{},", b"1,", b"'", b'{"":',
)  # fmt: skip


@dataclass
class Tried:
    """What so many inputs of one parser gave."""

    parser: str
    inputs: int
    seconds: float
    slowest_s: float
    rss_bytes: int
    found: str = ""
    input: str = ""
    guided: bool = False
    lines: int = 0

    @property
    def is_sound(self) -> bool:
        """Nothing was found."""
        return not self.found


def spoilt(chance: Random, seeds: list[bytes], max_bytes: int) -> bytes:
    """One of the seeds with some of what bytes can suffer."""
    data = bytearray(chance.choice(seeds))
    first = data[:1]
    for _ in range(chance.choice((1, 1, 1, 2, 3, 5, 12))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(10):
            case 0 | 1 if data:
                data[at % len(data)] ^= 1 << chance.randrange(8)
            case 2 if data:
                data[at % len(data)] = chance.randrange(256)
            case 3:
                data[at:at] = chance.choice(TOKENS)
            case 4:
                data[at : at + chance.randrange(1, 9)] = chance.choice(TOKENS)
            case 5:
                del data[at : at + chance.randrange(1, 1 + max(1, len(data) // chance.choice((2, 16, 64))))]
            case 6:
                other = chance.choice(seeds)
                begin = chance.randrange(len(other) + 1)
                data[at:] = other[begin:]
            case 7:
                run = bytes(data[at : at + chance.randrange(1, 64)])
                data[at:at] = run * chance.choice((1, 2, 40, 400))
            case 8:
                data[at:at] = chance.randbytes(chance.choice((1, 4, 16, 300)))
            case _ if chance.random() < 0.2:
                opener = chance.choice(OPENERS)
                room = max(1, (max_bytes - len(data)) // len(opener))
                data[at:at] = opener * chance.choice((20, 200, 2000, room))
    if chance.random() < 0.7:  # mostly the parser that the first byte names is to be kept
        data[:1] = first
    return bytes(data[:max_bytes])


def mutated(
    name: str, count: int, seed: int, parsers: Mapping[str, Parser] = PARSERS, max_seconds: float = MAX_SECONDS
) -> Tried:
    """Spoils seeds `count` times."""
    parser = parsers[name]
    seeds = parser.seeds()
    for data in seeds:
        assert (error := complaint(parser, data)) is None, (name, data, error)
    chance = Random(f"{seed} {name}")
    slowest, before = 0.0, rss_now()
    tried = Tried(name, 0, 0.0, 0.0, 0)
    began = time.perf_counter()
    for data in (spoilt(chance, seeds, parser.max_bytes) for _ in range(count)):
        at = time.process_time()  # a busy machine is no fault of the parser's
        error = complaint(parser, data)
        took = time.process_time() - at
        slowest = max(slowest, took)
        tried.inputs += 1
        if error is not None or took > max_seconds:
            told = "".join(traceback.format_exception(error)[-4:]) if error else f"took {took:.1f} s"
            tried.found, tried.input = told, _kept(data)
            break
    tried.seconds, tried.slowest_s = time.perf_counter() - began, slowest
    tried.rss_bytes = max(0, rss_peak() - before)
    if tried.rss_bytes > MAX_RSS_BYTES and not tried.found:
        tried.found = f"took {tried.rss_bytes} bytes of memory"
    return tried


def guided(name: str, count: int, seed: int) -> Tried:
    """The same by libFuzzer, in a process of its own: it ends the one that it runs in."""
    parser = PARSERS[name]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for number, data in enumerate(parser.seeds()):
            (corpus / str(number)).write_bytes(data)
        command = [
            sys.executable, "-m", "fuzzing.guided", name, str(corpus), f"-runs={count}", f"-seed={seed % (1 << 31)}",
            f"-max_len={min(parser.max_bytes, 1 << 17)}", f"-timeout={MAX_SECONDS:.0f}", "-rss_limit_mb=0",
            f"-artifact_prefix={folder}/", "-print_final_stats=1", "-verbosity=1",
        ]  # fmt: skip
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, timeout=3600, errors="replace")
        tried = Tried(name, 0, time.perf_counter() - began, 0.0, 0, guided=True)
        said = done.stderr
        if (runs := re.search(r"number_of_executed_units: (\d+)", said)) is not None:
            tried.inputs = int(runs[1])
        if (grown := re.search(r"rss above base: (\d+)", said + done.stdout)) is not None:
            tried.rss_bytes = int(grown[1])
        lines = re.findall(r"cov: (\d+)", said)
        tried.lines = int(lines[-1]) if lines else 0
        crashes = [path for path in Path(folder).iterdir() if path.is_file()]
        if done.returncode or crashes:
            tried.found = said[-3000:]
            tried.input = _kept(crashes[0].read_bytes()) if crashes else ""
    if tried.rss_bytes > MAX_RSS_BYTES and not tried.found:
        tried.found = f"took {tried.rss_bytes} bytes of memory"
    return tried


def tries(count: int, seed: int, names: list[str], *, by_guide: bool = False) -> Iterator[Tried]:
    """Each of the parsers, `count` inputs, or the share of that which the table gives it."""
    for name in names or list(PARSERS):
        yield (guided if by_guide else mutated)(name, max(1, int(count * PARSERS[name].share)), seed)


def _kept(data: bytes) -> str:
    """The input in hex, or the file that it was put in."""
    if len(data) <= 2000:
        return data.hex()
    folder = Path(os.environ.get("HELIOGRAPH_FUZZ_FOUND", tempfile.gettempdir()))
    path = folder / f"found-{os.getpid()}-{len(data)}"
    path.write_bytes(data)
    return str(path)


def rss_now() -> int:
    """Resident bytes; the kernel's peak begins anew from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS:")


def rss_peak() -> int:
    """The most that was resident since then."""
    return _status("VmHWM:")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main() -> int:
    """Runs what argv says."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--guided"]
    sound = True
    for tried in tries(int(arguments[0]), int(arguments[1]), arguments[2:], by_guide="--guided" in sys.argv):
        print(json.dumps(asdict(tried)), flush=True)
        sound = sound and tried.is_sound
    return 0 if sound else 1
