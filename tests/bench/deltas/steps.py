"""Runs one step of a peer that is a Python package; in the peers' environment, in a process of its own.

    python -I steps.py TOOL make OLD NEW PATCH
    python -I steps.py TOOL apply OLD PATCH NEW

Prints JSON with this process's VmHWM. `bare` as tool does nothing: the memory of a bare interpreter.
"""

import json
import sys
from pathlib import Path


def make_bsdiff4(old: str, new: str, patch: str) -> None:
    import bsdiff4

    bsdiff4.file_diff(old, new, patch)


def apply_bsdiff4(old: str, patch: str, new: str) -> None:
    import bsdiff4

    bsdiff4.file_patch(old, new, patch)


def make_hdiffpatch(old: str, new: str, patch: str) -> None:
    import hdiffpatch

    config = hdiffpatch.Lzma2Config(level=9)
    data = hdiffpatch.diff(Path(old).read_bytes(), Path(new).read_bytes(), config, validate=False)
    Path(patch).write_bytes(data)


def apply_hdiffpatch(old: str, patch: str, new: str) -> None:
    import hdiffpatch

    Path(new).write_bytes(hdiffpatch.apply(Path(old).read_bytes(), Path(patch).read_bytes()))


def make_detools(old: str, new: str, patch: str) -> None:
    import detools

    detools.create_patch_filenames(old, new, patch, compression="lzma", patch_type="sequential")


def apply_detools(old: str, patch: str, new: str) -> None:
    import detools

    detools.apply_patch_filenames(old, patch, new)


def make_brotli(old: str, new: str, patch: str) -> None:
    import brotli

    Path(patch).write_bytes(brotli.compress(Path(new).read_bytes(), quality=11, lgwin=24))


def apply_brotli(old: str, patch: str, new: str) -> None:
    import brotli

    Path(new).write_bytes(brotli.decompress(Path(patch).read_bytes()))


STEPS = {
    ("bsdiff4", "make"): make_bsdiff4,
    ("bsdiff4", "apply"): apply_bsdiff4,
    ("hdiffpatch", "make"): make_hdiffpatch,
    ("hdiffpatch", "apply"): apply_hdiffpatch,
    ("detools", "make"): make_detools,
    ("detools", "apply"): apply_detools,
    ("brotli", "make"): make_brotli,
    ("brotli", "apply"): apply_brotli,
}


def peak_bytes() -> int:
    """The most this process has had resident."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


if __name__ == "__main__":
    if sys.argv[1] != "bare":
        STEPS[sys.argv[1], sys.argv[2]](*sys.argv[3:6])
    print(json.dumps({"peak_rss_bytes": peak_bytes()}))
