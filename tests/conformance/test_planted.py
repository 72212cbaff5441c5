"""Bugs planted in the TUF core, one at a time: the cases of its clauses must find every one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import heliograph

HERE = Path(__file__).resolve().parent

#: (what is broken, module, text that stands there once, what is put in its place)
PLANTED: tuple[tuple[str, str, str, str], ...] = (
    ("any newer root follows", "workflow", "if version != old.version + 1:", "if version <= old.version:"),
    (
        "the old root needn't sign the new",
        "workflow",
        'verify_role(old, "root", new,',
        'verify_role(new.signed, "root", new,',
    ),
    ("a root needn't sign itself", "workflow", 'verify_role(new.signed, "root", new,', 'verify_role(old, "root", new,'),
    ("a rotation forgets no timestamp", "workflow", "kept = replace(kept, timestamp=None, snapshot=None)", "pass"),
    (
        "only the timestamp's key is looked at",
        "workflow",
        'for role in ("timestamp", "snapshot")',
        'for role in ("timestamp",)',
    ),
    ("a rotation keeps all targets", "workflow", 'not is_verified(new.signed, "targets", kept.targets)', "False"),
    (
        "an expired root is good enough",
        "workflow",
        'require_unexpired("root", self.root.signed, now,',
        'require_unexpired("root", self.root.signed, 0,',
    ),
    (
        "timestamps may go back",
        "workflow",
        'require_not_older("timestamp", held.signed, new.signed)  # 5.4.3.1',
        "pass",
    ),
    (
        "the snapshot named may go back",
        "workflow",
        'require_not_older("snapshot", held.signed.snapshot_meta, new.signed.snapshot_meta)  # 5.4.3.2',
        "pass",
    ),
    ("one version has two timestamps", "workflow", "                new = held\n", "                pass\n"),
    (
        "an expired timestamp is good enough",
        "workflow",
        'require_unexpired("timestamp", new.signed, now,',
        'require_unexpired("timestamp", new.signed, 0,',
    ),
    ("any snapshot will do", "workflow", 'require_listed("snapshot", data, meta)  # 5.5.2', "pass"),
    (
        "any version of the snapshot will do",
        "workflow",
        'require_version("snapshot", new.signed, meta)  # 5.5.4',
        "pass",
    ),
    (
        "an expired snapshot is good enough",
        "workflow",
        'require_unexpired("snapshot", new.signed, now,',
        'require_unexpired("snapshot", new.signed, 0,',
    ),
    ("a snapshot may drop files", "workflow", "if listed is None:", "if listed is None and not name:"),
    ("files that it lists may go back", "workflow", "require_not_older(name, meta, listed)", "pass"),
    (
        "expired targets are good enough",
        "workflow",
        'require_unexpired("targets", new.signed, now,',
        'require_unexpired("targets", new.signed, 0,',
    ),
    (
        "terminating delegations don't end it",
        "workflow",
        "                self._to_visit = []\n",
        "                pass\n",
    ),
    (
        "delegations are walked backwards",
        "workflow",
        "self._to_visit += reversed(children)",
        "self._to_visit += children",
    ),
    ("the search has no bound", "workflow", "len(self._visited) <= MAX_DELEGATIONS", "True"),
    ("expiry itself is still in time", "metadata", "if now >= expiry(signed):", "if now > expiry(signed):"),
    (
        "listed files need no digest",
        "metadata",
        "    require_listed(name, data, meta)\n    metadata = load(Targets",
        "    metadata = load(Targets",
    ),
    (
        "listed files need no version",
        "metadata",
        "    require_version(name, metadata.signed, meta)\n    return",
        "    return",
    ),
    ("listed files need no signature", "metadata", "    verify_role(delegator, name, metadata)\n", ""),
    ("no threshold counts", "metadata", "    if not result:\n", "    if not result.signed:\n"),
    ("a realm takes hash bins", "metadata", "if signed.delegations.roles is None and is_own_only:", "if False:"),
)


@pytest.mark.parametrize(("module", "text", "instead"), [row[1:] for row in PLANTED], ids=[row[0] for row in PLANTED])
def test_every_planted_bug_is_found(tmp_path: Path, seed: int, module: str, text: str, instead: str) -> None:
    source = Path(next(iter(heliograph.__path__)))
    copy = tmp_path / "heliograph"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / f"{module}.py"
    content = file.read_text()
    assert content.count(text) == 1, "the planted bug is stale: its text has changed"
    file.write_text(content.replace(text, instead))
    path = os.pathsep.join([str(tmp_path), str(HERE.parent)])
    run = subprocess.run(
        [sys.executable, "-c", RUNNER, str(HERE / "test_clauses.py"), str(copy), str(seed)],
        env={**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert run.returncode == 1, f"{run.stdout[-2000:]}\n{run.stderr[-2000:]}"


RUNNER = """
import os, sys
from pathlib import Path
import heliograph
assert Path(heliograph.__file__).parent == Path(sys.argv[2]), heliograph.__file__
import pytest

class Seed:
    @pytest.fixture
    def seed(self):
        return int(sys.argv[3])

options = ["-q", "-x", "-p", "no:cacheprovider", "--noconftest", "--import-mode=importlib", "-c", os.devnull]
sys.exit(pytest.main([*options, "--rootdir", sys.argv[2], sys.argv[1]], plugins=[Seed()]))
"""
