"""The tools that are compared: how each is got, asked for its version, and told to make and apply."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.deltas.getting import NotMadeError, environment, run, say

OURS = "heliograph"
STEPS = Path(__file__).with_name("steps.py")
SEGMENTS = Path(__file__).with_name("segments.py")
MOST_BYTES = 100_000_000
"""Of a new file: tools that take 2 CPU s for each MB are not begun on more, nor those that make nothing of the old file
and so can't win where it is near; what both do is seen on smaller ones."""
PACKAGES = ("bsdiff4", "hdiffpatch", "detools", "brotli", "matplotlib", "numpy")
# Debian package -> the libraries beyond those that every Debian has.
_DEBIAN = {
    "xdelta3": ["xdelta3"],
    "rdiff": ["rdiff", "librsync2", "libpopt0", "libb2-1"],
    "casync": ["casync", "libfuse2"],
    "zstd": ["zstd"],
    "xz": ["xz-utils"],
}
Command = list[str]


@dataclass(frozen=True, slots=True)
class Work:
    """Paths of one measurement: what is given, and where results go."""

    old: Path
    new: Path
    patch: Path
    out: Path


Commands = Callable[[Work], list[Command]]


@dataclass(frozen=True, slots=True)
class Tool:
    """One way to ship the new file.

    Attributes:
        name: as in the table.
        version: what it says of itself.
        options: what it was told, for the reader.
        make, apply: the commands for it, run one after the other; `Work.patch` may become a folder.
        delta: whether it uses the old file.
        speaks: its last command prints JSON with its own peak memory.
        after: what is to be done between making and weighing, on nobody's account.
        probe: commands that make the new file once more, and print JSON of what is to be known beyond that.
        most_bytes: of the new file; it isn't begun on a larger one. 0: on any.
    """

    name: str
    version: str
    options: str
    make: Commands
    apply: Commands
    delta: bool = True
    speaks: bool = False
    after: Callable[[Work], None] = field(default=lambda work: None)
    probe: Commands = field(default=lambda work: [])
    most_bytes: int = 0


class Shed:
    """Gets tools into one cache folder."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._root = cache / "debian" / "root"

    def peers_python(self) -> Path:
        """The Python of the peers' environment."""
        return environment(self._cache / "peers", PACKAGES)

    def libraries(self) -> str:
        """Where the unpacked Debian libraries are, for LD_LIBRARY_PATH."""
        return ":".join(sorted({str(path.parent) for path in self._root.rglob("*.so.*")}))

    def get(self, name: str) -> Tool:
        """The tool, installed.

        Raises:
            NotMadeError: it can't be had here.
        """
        return MAKERS[name](self)

    def program(self, name: str) -> str:
        """A program on PATH, or one out of Debian's packages, unpacked into the cache (no root needed)."""
        found = shutil.which(name)
        if found:
            return found
        program = self._root / "usr" / "bin" / name
        if not program.exists():
            self._unpack(_DEBIAN[name])
        if not program.exists():
            raise NotMadeError(f"Debian's {_DEBIAN[name][0]} has no {name}")
        return str(program)

    def _unpack(self, packages: list[str]) -> None:
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            raise NotMadeError(f"not on PATH, and there is no apt-get to download {packages[0]} with")
        say(f"downloading Debian's {', '.join(packages)}")
        folder = self._cache / "debian"
        self._root.mkdir(parents=True, exist_ok=True)
        for package in packages:
            result = subprocess.run(
                ["apt-get", "download", "-q", package], cwd=folder, capture_output=True, text=True, check=False
            )
            files = sorted(folder.glob(f"{package}_*.deb"))
            if result.returncode or not files:
                raise NotMadeError(
                    f"apt-get download {package}: {(result.stderr.strip() or 'no file').splitlines()[-1]}"
                )
            run(["dpkg-deb", "-x", str(files[-1]), str(self._root)], f"unpacking {package}")

    def said(self, *command: str) -> str:
        """The first line a program prints, wherever it prints it."""
        environment = {**os.environ, "LD_LIBRARY_PATH": self.libraries()}
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
        lines = (result.stdout + result.stderr).strip().splitlines()
        if not lines or result.returncode:
            raise NotMadeError(f"{Path(command[0]).name} doesn't start: {lines[-1] if lines else result.returncode}")
        return lines[0]


def _python(name: str, options: str, delta: bool = True, most_bytes: int = 0) -> Callable[[Shed], Tool]:
    """A peer that is a Python package."""

    def get(shed: Shed) -> Tool:
        python = str(shed.peers_python())
        version = shed.said(python, "-c", f"import importlib.metadata as m; print(m.version({name!r}))")
        step = [python, "-I", str(STEPS), name]
        return Tool(
            name if delta else f"{name} full", version, options,
            lambda work: [[*step, "make", str(work.old), str(work.new), str(work.patch)]],
            lambda work: [[*step, "apply", str(work.old), str(work.patch), str(work.out)]],
            delta=delta, speaks=True, most_bytes=most_bytes,
        )  # fmt: skip

    return get


def _ours(shed: Shed) -> Tool:
    command = [sys.executable, "-m", "heliograph.cli", "delta"]
    version = shed.said(sys.executable, "-m", "heliograph.cli", "--version").removeprefix("heliograph ")
    return Tool(
        OURS, version, "delta make, delta apply",
        lambda work: [[*command, "make", "--json", str(work.old), str(work.new), str(work.patch)]],
        lambda work: [[*command, "apply", "--json", str(work.old), str(work.patch), str(work.out)]],
        speaks=True,
        probe=lambda work: [[sys.executable, "-P", str(SEGMENTS), str(work.old), str(work.patch), str(work.out)]],
    )  # fmt: skip


def _window(work: Work) -> int:
    """log2 of a window over both files, as zstd takes it."""
    return min(31, max(10, (work.old.stat().st_size + work.new.stat().st_size).bit_length()))


def _zstd_version(shed: Shed, program: str) -> str:
    return next(word for word in shed.said(program, "--version").replace(",", " ").split() if word[:2] == "v1")[1:]


def _zstd_patch(shed: Shed) -> Tool:
    zstd = shed.program("zstd")
    return Tool(
        "zstd --patch-from", _zstd_version(shed, zstd), "-19 --long=W, window over both files",
        lambda work: [[zstd, "-19", "-f", "-q", f"--long={_window(work)}", f"--patch-from={work.old}", str(work.new),
                       "-o", str(work.patch)]],
        lambda work: [[zstd, "-d", "-f", "-q", "--memory=2048MB", f"--long={_window(work)}", f"--patch-from={work.old}",
                       str(work.patch), "-o", str(work.out)]],
    )  # fmt: skip


def _zstd(shed: Shed) -> Tool:
    zstd = shed.program("zstd")
    return Tool(
        "zstd full", _zstd_version(shed, zstd), "-19",
        lambda work: [[zstd, "-19", "-f", "-q", str(work.new), "-o", str(work.patch)]],
        lambda work: [[zstd, "-d", "-f", "-q", str(work.patch), "-o", str(work.out)]],
        delta=False, most_bytes=MOST_BYTES,
    )  # fmt: skip


def _xz(shed: Shed) -> Tool:
    xz = shed.program("xz")
    return Tool(
        "xz full", shed.said(xz, "--version").split()[-1], "-9e",
        lambda work: [[xz, "-9e", "-T1", "-c", str(work.new), ">", str(work.patch)]],
        lambda work: [[xz, "-d", "-T1", "-c", str(work.patch), ">", str(work.out)]],
        delta=False, most_bytes=MOST_BYTES,
    )  # fmt: skip


def _xdelta3(shed: Shed) -> Tool:
    program = shed.program("xdelta3")

    def source(work: Work) -> list[str]:
        buffer = 1 << max(19, min(31, (work.old.stat().st_size - 1).bit_length()))
        return ["-f", "-q", "-B", str(buffer), "-s", str(work.old)]

    return Tool(
        "xdelta3", shed.said(program, "-V").split()[2].strip(","), "-9 -S lzma -I 0, source buffer over the old file",
        lambda work: [[program, "-e", "-9", "-S", "lzma", "-I", "0", *source(work), str(work.new), str(work.patch)]],
        lambda work: [[program, "-d", *source(work), str(work.patch), str(work.out)]],
    )  # fmt: skip


def _rdiff(shed: Shed) -> Tool:
    rdiff, zstd = shed.program("rdiff"), shed.program("zstd")

    def make(work: Work) -> list[Command]:
        signature, delta = f"{work.patch}.signature", f"{work.patch}.delta"
        return [
            [rdiff, "-f", "signature", str(work.old), signature],
            [rdiff, "-f", "delta", signature, str(work.new), delta],
            [zstd, "-19", "-f", "-q", delta, "-o", str(work.patch)],
        ]

    def apply(work: Work) -> list[Command]:
        delta = f"{work.patch}.undone"
        return [
            [zstd, "-d", "-f", "-q", str(work.patch), "-o", delta],
            [rdiff, "-f", "patch", str(work.old), delta, str(work.out)],
        ]

    version = shed.said(rdiff, "--version").split()[-1].strip(")")
    return Tool("rdiff", version, "defaults, the delta by zstd -19; signature not counted", make, apply)


def _casync(shed: Shed) -> Tool:
    casync = shed.program("casync")
    words = ["--compression=zstd"]

    def make(work: Work) -> list[Command]:
        have = work.patch.with_name("have")
        for folder in (work.patch, have):
            folder.mkdir(exist_ok=True)
        return [
            [casync, "make", *words, f"--store={have}", str(have / "old.caibx"), str(work.old)],
            [casync, "make", *words, f"--store={work.patch}", str(work.patch / "new.caibx"), str(work.new)],
        ]

    def prune(work: Work) -> None:
        """What the old file's chunks hold isn't sent."""
        have = work.patch.with_name("have")
        for chunk in have.rglob("*.cacnk"):
            (work.patch / chunk.relative_to(have)).unlink(missing_ok=True)

    def apply(work: Work) -> list[Command]:
        return [[casync, "extract", f"--store={work.patch}", f"--seed={work.old}", "--seed-output=no",
                 str(work.patch / "new.caibx"), str(work.out)]]  # fmt: skip

    version = shed.said(casync, "--version").split()[-1]
    return Tool("casync", version, "chunks of 64 KiB on average, zstd; index and new chunks", make, apply, after=prune)


MAKERS: dict[str, Callable[[Shed], Tool]] = {
    OURS: _ours,
    "bsdiff4": _python("bsdiff4", "defaults (bzip2)"),
    "hdiffpatch": _python("hdiffpatch", "lzma2 level 9"),
    "xdelta3": _xdelta3,
    "zstd-patch": _zstd_patch,
    "detools": _python("detools", "sequential, bsdiff, lzma", most_bytes=MOST_BYTES),
    "rdiff": _rdiff,
    "casync": _casync,
    "zstd": _zstd,
    "xz": _xz,
    "brotli": _python("brotli", "quality 11, window 2^24", delta=False, most_bytes=MOST_BYTES),
}
