"""What keeping a release sealed costs a node: time and peak memory of finishing, verifying, rebuilding and loading it.

    python tests/bench/confidential.py [--json FILE] [--bytes N] [--runs R]

Each step runs in a process of its own, which tells its VmHWM (the most that was ever resident) before and after; the
difference is what the step took on top of the loaded program. Times are the best of R. The file is random bytes; the
delta changes a twentieth of it in ten places. `finish` is from the last chunk to the file in the store (checked, on
disk), `verify` reads the image back before it is activated, `rebuild` makes it from a base and a whole patch, `load` is
what a worker does before the runtime gets the bytes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from heliograph.blob import sha256
from heliograph.delta import recipe as recipes
from heliograph.delta.apart import Apart
from heliograph.manifest import File, Manifest
from heliograph.names import Digest
from heliograph.sealing import leaf_key
from heliograph.transfer import BlobFetch
from heliograph_site.rebuilding import Rebuild
from heliograph_site.serving.worker import read_verified
from heliograph_site.slots import PartialBlob, Slots

sys.path.append(str(Path(__file__).resolve().parents[1]))
from sealed import NODE_KEY, Vault, manifest_of

STEPS = ("finish", "verify", "rebuild", "load")
VAULT = Vault()


def peak_rss_bytes() -> int:
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM:"))


def contents(length: int) -> tuple[bytes, bytes]:
    """A file and the next version of it."""
    old = Random(1).randbytes(length)
    new, piece = bytearray(old), length // 200
    for number in range(10):
        at = number * length // 10
        new[at : at + piece] = Random(2 + number).randbytes(piece)
    return old, bytes(new)


def put(slots: Slots, name: str, content: bytes, *, is_sealed: bool) -> Path:
    """Writes what a fetch has left when the last chunk came."""
    path = slots.path(sha256(content), name)
    path.write_bytes(VAULT.sealed(content) if is_sealed else content)
    return path


def prepare(folder: Path, length: int, *, is_sealed: bool) -> None:
    """All files that the steps start from, by a process whose memory isn't looked at."""
    from heliograph.delta.diff import make

    slots = Slots(folder, NODE_KEY.open_box)
    old, new = contents(length)
    manifests = {name: manifest_of({"m": data}).encode() for name, data in (("old", old), ("new", new))}
    for name, data in manifests.items():
        (folder / name).write_bytes(data)
    recipe, patch = make(old, new)
    (folder / "recipe").write_bytes(recipes.encode(recipe))
    put(slots, "patch", patch, is_sealed=is_sealed).rename(folder / "patch")
    (folder / "held").write_bytes(VAULT.sealed(new) if is_sealed else new)
    file = manifest_of({"m": old}).files[0]
    settle(slots, file, put(slots, "part", old, is_sealed=is_sealed), is_sealed=is_sealed)


def settle(slots: Slots, file: File, path: Path, *, is_sealed: bool) -> None:
    if is_sealed:
        slots.settle_sealed(file, path, VAULT.grant())
    else:
        slots.settle(file.sha256, path)


def one(step: str, folder: Path, *, is_sealed: bool) -> dict[str, Any]:
    """Does a step once, in this process."""
    slots = Slots(folder, NODE_KEY.open_box)
    data = [(folder / name).read_bytes() for name in ("new", "old")]
    new, old = (Manifest.parse(one, sha256(one), len(one)) for one in data)
    target, base = (Digest(manifest.files[0].sha256) for manifest in (new, old))
    recipe = recipes.parse((folder / "recipe").read_bytes())
    key, patch_key = (
        leaf_key(VAULT.epoch_key, digest) if is_sealed else b"" for digest in (target, recipe.patch_sha256)
    )
    child_bytes = 0
    path = slots.path(target, "part")
    if step == "finish":
        subprocess.run(["cp", str(folder / "held"), str(path)], check=True)
    work: Callable[[], object]
    if step == "finish":
        work = lambda: settle(slots, new.files[0], path, is_sealed=is_sealed)  # noqa: E731
    elif step == "verify":
        work = lambda: slots.verify(old)  # noqa: E731
    elif step == "load":
        held = slots.holdings.find(base)
        assert held is not None
        work = lambda: read_verified(held.path, base, old.files[0].length, held.key)  # noqa: E731
    else:
        joined: list[Apart] = []

        def join(*sources: Any) -> Apart:
            joined.append(Apart(*sources))
            return joined[0]

        fetch = BlobFetch(recipe.patch_sha256, recipe.patch_length, recipe.patch_pages, b"hndl")
        patch = PartialBlob(folder / "patch", folder / "patch-pages", fetch)
        rebuild = Rebuild(folder / "out", recipe, slots.holdings, join, key=key, patch_key=patch_key)

        def work() -> None:
            nonlocal child_bytes
            rebuild.open()
            for index in range(len(recipe.segments)):
                rebuild.make(index, patch)
            child_bytes = joined[0].peak_rss_bytes()
            rebuild.close()

    before, began = peak_rss_bytes(), time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "extra_rss_bytes": peak_rss_bytes() - before, "child_rss_bytes": child_bytes}


def measure(length: int, runs: int) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for is_sealed in (False, True):
            folder = Path(name) / ("sealed" if is_sealed else "plain")
            folder.mkdir()
            again(folder, "prepare", is_sealed=is_sealed, length=length)
            for step in STEPS:
                found = []
                for _ in range(runs):
                    (folder / "out").unlink(missing_ok=True)
                    found.append(again(folder, step, is_sealed=is_sealed, length=length))
                best = {key: min(row[key] for row in found) for key in found[0]}
                rows.append({"step": step, "sealed": is_sealed, **best})
    return rows


def again(folder: Path, step: str, *, is_sealed: bool, length: int) -> dict[str, Any]:
    """Has a new process do a step."""
    arguments = [step, str(folder), str(int(is_sealed)), str(length)]
    done = subprocess.run(
        [sys.executable, __file__, "--step", *arguments], check=True, capture_output=True, env=dict(os.environ)
    )
    return dict(json.loads(done.stdout))


def main() -> None:
    if sys.argv[1:2] == ["--step"]:
        step, folder, is_sealed, length = sys.argv[2], Path(sys.argv[3]), sys.argv[4] == "1", int(sys.argv[5])
        if step == "prepare":
            prepare(folder, length, is_sealed=is_sealed)
            print("{}")
        else:
            print(json.dumps(one(step, folder, is_sealed=is_sealed)))
        return
    parser = argparse.ArgumentParser(description="what keeping a release sealed costs a node")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--bytes", type=int, default=20_000_000)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    rows = measure(arguments.bytes, arguments.runs)
    print(f"{arguments.bytes} bytes, best of {arguments.runs}")
    print(f"{'step':10}{'form':8}{'seconds':>9}{'extra RSS, MiB':>16}{'child RSS, MiB':>16}")
    for row in rows:
        form = "sealed" if row["sealed"] else "plain"
        extra, child = row["extra_rss_bytes"] / (1 << 20), row["child_rss_bytes"] / (1 << 20)
        print(f"{row['step']:10}{form:8}{row['seconds']:9.3f}{extra:16.1f}{child:16.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"bytes": arguments.bytes, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
