"""The dependency rules of pyproject.toml: they cover what they should, and they bite."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTRACTS: dict[str, dict[str, Any]] = {
    contract["id"]: contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
}
PACKAGES = {"heliograph": "shared", "heliograph_hub": "hub", "heliograph_site": "site"}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)


def test_every_module_that_is_free_of_io_is_held_to_it(graph: grimp.ImportGraph) -> None:
    contract = CONTRACTS["pure"]
    impure = set(contract["forbidden_modules"])
    free = set()
    for module in graph.modules:
        is_ours = module.partition(".")[0] in PACKAGES and not graph.find_children(module)
        if is_ours and not graph.find_upstream_modules(module) & impure:
            free.add(module)
    assert sorted(free - set(contract["source_modules"])) == []


PLANTED = [
    ("sides", "site/heliograph_site/machine.py", "import heliograph_hub"),
    ("sides", "shared/heliograph/names.py", "import heliograph_site"),
    ("shared-layers", "shared/heliograph/names.py", "import heliograph.documents"),
    ("shared-layers", "shared/heliograph/brand_new.py", ""),
    ("delta-layers", "shared/heliograph/delta/brand_new.py", ""),
    ("lab-layers", "shared/heliograph/lab/brand_new.py", ""),
    ("site-layers", "site/heliograph_site/brand_new.py", ""),
    ("hub-layers", "hub/heliograph_hub/brand_new.py", ""),
    ("hub-api-layers", "hub/heliograph_hub/api/brand_new.py", ""),
    ("hub-commands-layers", "hub/heliograph_hub/commands/brand_new.py", ""),
    ("pure", "shared/heliograph/wire.py", "import time"),
    ("pure", "site/heliograph_site/machine.py", "import heliograph.objects"),
    ("pure", "hub/heliograph_hub/rollout.py", "def f():\n    import sqlite3"),
    ("mqtt", "hub/heliograph_hub/fleet.py", "import aiomqtt"),
    ("x509", "site/heliograph_site/identity.py", "import cryptography.x509"),
    ("x509", "hub/heliograph_hub/access.py", "import cryptography.x509"),
    ("runtime", "site/heliograph_site/serving/gateway.py", "import tflite_runtime.interpreter"),
    ("runtime", "site/heliograph_site/serving/inference.py", "import numpy"),
    ("agent", "site/heliograph_site/journal.py", "import rich.console"),
    ("agent", "site/heliograph_site/slots.py", "import heliograph_site.serving.runtime"),
    ("server", "site/heliograph_site/serving/spawn.py", "import heliograph_site.serving.forkserver"),
    ("serving-layers", "site/heliograph_site/serving/brand_new.py", ""),
    ("serving-layers", "site/heliograph_site/serving/inference.py", "import heliograph_site.serving.gateway"),
]


@pytest.fixture(scope="module")
def clean_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("copy")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for package, folder in PACKAGES.items():
        shutil.copytree(ROOT / folder / package, copy / folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def _lint(copy: Path, contract: str) -> subprocess.CompletedProcess[str]:
    # Packages are found in the copy first; the contract's own text is what scripts/check runs.
    paths = [str(copy / folder) for folder in PACKAGES.values()]
    code = f"import sys; sys.path[:0] = {paths!r}; from importlinter.cli import lint_imports_command as c; c()"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-logo", "--no-cache", "--contract", contract],
        cwd=copy, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("contract", "file", "line"), PLANTED, ids=[f"{c}-{Path(f).stem}-{li}"[:60] for c, f, li in PLANTED]
)
def test_a_planted_violation_breaks_its_rule(clean_copy: Path, contract: str, file: str, line: str) -> None:
    path = clean_copy / file
    before = path.read_text() if path.exists() else None
    path.write_text((before or '"""Planted."""\n') + f"\n{line}\n")
    try:
        result = _lint(clean_copy, contract)
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_text(before)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "BROKEN" in result.stdout
    assert path.stem in result.stdout


def test_every_rule_has_a_planted_violation() -> None:
    assert {contract for contract, _, _ in PLANTED} == set(CONTRACTS)


def test_the_rules_hold_in_the_copy_without_a_planted_violation(clean_copy: Path) -> None:
    result = _lint(clean_copy, "pure")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 kept" in result.stdout
