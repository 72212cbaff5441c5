"""What this machine can run, found out without loading any model runtime; and whether a release fits it."""

import importlib.metadata
import os
import platform

from heliograph.documents import Hardware
from heliograph.manifest import Manifest
from heliograph.versions import is_older, why_too_old

RUNTIMES: dict[str, tuple[str, ...]] = {"tflite": ("tflite-runtime", "ai-edge-litert"), "onnx": ("onnxruntime",)}
"""Runtime name to the distributions that provide it, the preferred one first."""


def detect() -> Hardware:
    """This machine, as told to the hub."""
    runtimes: dict[str, str] = {}
    for name, distributions in RUNTIMES.items():
        for distribution in distributions:
            try:
                runtimes.setdefault(name, importlib.metadata.version(distribution))
            except importlib.metadata.PackageNotFoundError:
                pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(arch=platform.machine(), memory_bytes=memory, runtimes=runtimes)


def why_unfit(manifest: Manifest, hardware: Hardware) -> str | None:
    """Why this machine will never run the release, in one sentence; None if a variant fits."""
    too_old = why_too_old(manifest.release, manifest.min_agent)
    if too_old is not None:
        return too_old
    reasons = []
    for variant in manifest.variants:
        runtime = hardware.runtimes.get(variant.runtime)
        if variant.arch and hardware.arch not in variant.arch:
            reason = f"is for {', '.join(variant.arch)}, this is {hardware.arch}"
        elif runtime is None:
            reason = f"needs runtime {variant.runtime}, which isn't installed"
        elif is_older(runtime, variant.min_runtime):
            reason = f"needs {variant.runtime} {variant.min_runtime}, here is {runtime}"
        elif variant.accelerator not in hardware.accelerators:
            reason = f"needs accelerator {variant.accelerator}"
        elif variant.memory_bytes > hardware.memory_bytes:
            reason = f"needs {variant.memory_bytes} bytes of memory, here are {hardware.memory_bytes}"
        else:
            return None
        reasons.append(f"variant {variant.name} {reason}")
    return f"{manifest.release} fits nothing here: " + "; ".join(reasons)
