"""Planted bugs: each is a change of the real source (or of the simulator's shells) that worlds must find.

A mutant is planted in a private copy of the packages, in a process of its own: `hunt` says which invariant killed it.
"""

# ruff: noqa: E501 - source stands here as it stands there

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT = Path(__file__).parents[2]
PACKAGES = (
    ROOT / "shared" / "heliograph",
    ROOT / "hub" / "heliograph_hub",
    ROOT / "site" / "heliograph_site",
    ROOT / "tests" / "simulator",
)
MACHINE = "heliograph_site/machine.py"
MOVED, PERFORMED, REMEMBERED = "simulator/machines.py", "simulator/tasks.py", "heliograph_site/memory.py"
WEIGHING, CHANGES = "heliograph_site/weighing.py", "heliograph_site/changes.py"
RULEBOOK, TUPLES = "heliograph_site/rulebook.py", "heliograph/tuples.py"


@dataclass(frozen=True)
class Mutant:
    """One planted bug.

    Attributes:
        changes: (file, text, what stands there instead); each text occurs exactly once.
        killers: invariants of which one must find it.
    """

    name: str
    killers: tuple[str, ...]
    changes: tuple[tuple[str, str, str], ...]


MUTANTS: Final = (
    Mutant(
        "the pointer flips before the golden outputs are compared",
        ("golden",),
        (
            (
                MACHINE,
                'Row("staging",      Staged,           "activating",   keep,          Command.ACTIVATE),',
                'Row("staging",      Staged,           "proving",      flip,          Command.PROVE),',
            ),
            (CHANGES, "assert isinstance(event, Passed) and memory.target is not None", "assert memory.target"),
            (CHANGES, "        event.at,\n", "        memory.epoch,\n"),
            (
                CHANGES,
                "        fail_mode=event.fail_mode,\n        config=event.config,\n        policy=event.policy,\n    )\n    others",
                '        fail_mode="safe",\n    )\n    others',
            ),
            (CHANGES, "        unfit=None,\n        policy=event.policy,\n        ring=event.ring,\n        cuts=0", "        cuts=0"),
        ),
    ),
    Mutant(
        "a command runs before the memory is saved",
        ("saved",),
        (
            (
                MOVED,
                '        self._do("journal save", save)\n',
                "        if command is not None:\n            self._begin(command, after)\n"
                '        self._do("journal save", save)\n',
            ),
        ),
    ),
    Mutant(
        "a late answer is obeyed",
        ("golden", "verified", "admitted", "refused", "fallback", "reason", "end"),
        (
            (MACHINE, "_answered(memory, happening) if happening.epoch == memory.epoch else None", "_answered(memory, happening)"),
            (MACHINE, "if row is None or (epoch is not None and epoch != memory.epoch):", "if row is None:"),
        ),
    ),
    Mutant(
        "a denied release stays the fallback",
        ("denied",),
        ((WEIGHING, "    if spare & held.denied:\n", "    if False:\n"),),
    ),
    Mutant(
        "what is denied serves on beside a fallback",
        ("denied",),
        ((WEIGHING, "if memory.fallback is not None or (is_less_denied", "if (is_less_denied"),),
    ),
    Mutant(
        "a closed model serves on though two have denied its last release",
        ("denied",),
        ((WEIGHING, 'if is_final and active.fail_mode == "closed":', "if False:"),),
    ),
    Mutant(
        "what is superseded before the server has switched goes on answering",
        ("pointer",),
        (
            (
                PERFORMED,
                "        if memory.active is not None:\n            failed = yield from self._reach(memory)\n            if failed",
                "        if memory.active is not None:\n            failed = None\n            self._reaching.discard(memory.model)\n            if failed",
            ),
        ),
    ),
    Mutant(
        "a fallback that still answers is forgotten when it is denied",
        ("pointer",),
        ((CHANGES, "resort=_other(memory.active, active),", "resort=None if best else _other(memory.active, active),"),),
    ),
    Mutant(
        "what answers is forgotten before the server has stopped it",
        ("pointer",),
        ((CHANGES, "resort=memory.resort or memory.active,", "resort=None,"),),
    ),
    Mutant(
        "what nothing names goes on answering where nothing else could be served",
        ("pointer",),
        ((REMEMBERED, 'is_over = self.active is not None and self.active.verdict == "failed"', "is_over = False"),),
    ),
    Mutant(
        "what is denied answers unflagged where no fallback serves",
        ("pointer",),
        (
            (
                MACHINE,
                "    if memory.fallback is not None or may_resort:\n        return ActiveLost(reason, answered)\n",
                "    if memory.fallback is not None:\n        return ActiveLost(reason, answered)\n",
            ),
        ),
    ),
    Mutant(
        "what was refused is tried again under the same number",
        ("refused",),
        (
            (
                MACHINE,
                "is_refused = any((r.release, r.number) == (wanted.release, wanted.number) for r in memory.refused)",
                "is_refused = False",
            ),
        ),
    ),
    Mutant(
        "what is under way keeps the number of an older directive",
        ("number",),
        ((MACHINE, "return Renumbered(wanted) if is_same else Wanted(wanted)", "return None if is_same else Wanted(wanted)"),),
    ),
    Mutant(
        "what is active keeps the number of an older directive",
        ("end",),
        ((MACHINE, "return Renumbered(wanted) if active.number != wanted.number and not is_refused else None", "return None"),),
    ),
    Mutant(
        "a node in a ring that has no directive waits for ever",
        ("end",),
        (
            (
                "heliograph_site/belief.py",
                'return Directed("", Target(b"", 0)), ""',
                'return None, ""',
            ),
        ),
    ),
    Mutant(
        "an unproven release goes before a proven one",
        ("fallback",),
        ((WEIGHING, "for c in (*proven, *unproven) if not c.denied", "for c in (*unproven, *proven) if not c.denied"),),
    ),
    Mutant(
        "a restart in staging starts nothing",
        ("end",),
        ((MACHINE, '    Row("staging",      Restarted,        "staging",      keep,          Command.STAGE),\n', ""),),
    ),
    Mutant(
        "a probation outlives two power cuts",
        ("probation",),
        ((MACHINE, "if memory.is_healthy and memory.cuts == 0:", "if memory.is_healthy:"),),
    ),
    Mutant(
        "a machine is stuck and does not say why",
        ("reason",),
        (
            (
                CHANGES,
                "    refused = refuse(drop_target(memory, event), (memory.target,), event.reason)\n"
                "    return replace(refused, reason=event.reason[:REASON_LENGTH])\n",
                "    return refuse(drop_target(memory, event), (memory.target,), event.reason)\n",
            ),
        ),
    ),
    Mutant(
        "a delta that leads astray is gone again and again",
        ("bytes", "reason", "end"),
        ((CHANGES, "return replace(memory, full_only=True, tries=memory.tries + 1)", "return memory"),),
    ),
    Mutant(
        "rolling back goes to what answered before instead of what is named",
        ("pointer", "denied", "reason", "end"),
        (
            (
                PERFORMED,
                "self.server.serve(memory.model, release, self._tuned(memory)))",
                "self.server.serve(memory.model, self.server.standby.get(memory.model, release), self._tuned(memory)))",
            ),
        ),
    ),
    Mutant(
        "denials are forgotten by a restart",
        ("denied",),
        (("heliograph_site/belief.py", "DenySet() if denials is None else DenySet.from_bytes(denials)", "DenySet()"),),
    ),
    Mutant(
        "something is activated before every denial of the list is held",
        ("list",),
        (
            (
                "heliograph/deny.py",
                "return head.count == 0 or head.digest in self.lists or list_digest(self.denials) == head.digest",
                "return True",
            ),
        ),
    ),
    Mutant(
        "what an unsigned release superseded is activated for ever",
        ("end",),
        (
            (
                "heliograph_site/belief.py",
                "if memory.phase in UNDER_WAY and self.trusted.is_fresh(latest):",
                "if memory.target is not None and memory.target.release == directive.release and memory.phase in UNDER_WAY:",
            ),
        ),
    ),
    Mutant(
        "a signature is enough, no approval is needed",
        ("admitted",),
        (
            (
                "heliograph/vouching.py",
                'zip(DUTIES, ("signed", "approved"), strict=True)',
                'zip(DUTIES[:1], ("signed",), strict=True)',
            ),
        ),
    ),
    Mutant(
        "a leaf is not verified",
        ("verified",),
        (
            (
                "heliograph/transfer.py",
                "elif self.is_paged and not self._verifies(first + number, leaf_bytes):",
                "elif False:",
            ),
        ),
    ),
    Mutant(
        "a page is not verified",
        ("verified",),
        (
            (
                "heliograph/transfer.py",
                "        check_page(page, index, self.length, self._page_digests)\n        self._pages[index] = page\n        self._new",
                "        self._pages[index] = page\n        self._new",
            ),
        ),
    ),
    Mutant(
        "a resumed fetch trusts the file",
        ("verified",),
        (("heliograph/transfer.py", "if not self._held[leaf] and self._verifies(leaf, data):", "if not self._held[leaf]:"),),
    ),
    Mutant(
        "a want asked twice is answered under its old handle",
        ("handle",),
        (("heliograph/sender.py", "            queue.sends[key] = (handle, known[1])\n            self.rep", "            self.rep"),),
    ),
    Mutant(
        "the whole image is not verified",
        ("verified",),
        (
            (
                "heliograph_site/slots.py",
                "if not self.holdings.verify(Digest(file.sha256), file.length):",
                "if not self.holdings.has(Digest(file.sha256)):",
            ),
        ),
    ),
    Mutant(
        "collecting drops the files of what is kept",
        ("fallback", "verified", "reason", "end"),
        (("heliograph_site/slots.py", "                kept.update(file.sha256 for file in manifest.files)\n", "                pass\n"),),
    ),
    Mutant(
        "the outbox merges what was handed out",
        ("records",),
        (("heliograph_site/outbox.py", 'f"lane = {_RANKS[DECAYING]} AND run IS NULL"', 'f"lane = {_RANKS[DECAYING]}"'),),
    ),
    Mutant(
        "a receipt covers more than was sent",
        ("records",),
        (("heliograph_hub/fleet.py", '            state["next"] = end\n        seq', '            state["next"] = end + 1\n        seq'),),
    ),
    Mutant(
        "what fits no config and policy is activated all the same",
        ("tuple",),
        (
            (RULEBOOK, 'if choice.release != target.digest or choice.standing != "fits":', "if choice.release is None:"),
            (RULEBOOK, 'return "documents that fit: " + ("; ".join(waits) or "none held does")', "return None"),
        ),
    ),
    Mutant(
        "a config is taken that the release doesn't fit",
        ("tuple",),
        ((TUPLES, "if is_compatible(release, config, policy)), None)", "if config), None)"),),
    ),
    Mutant(
        "an older policy is taken where it fits and the one in force doesn't",
        ("policy", "end"),
        ((TUPLES, "for policy in held.policies if policy.number >= lowest}", "for policy in held.policies}"),),
    ),
    Mutant(
        "what is only held of a new ring ends the former ring's policy",
        ("policy",),
        ((RULEBOOK, "return own if held is None or self._takes_over(held) else former", "return own"),),
    ),
    Mutant(
        "a policy that nothing fits is held for ever",
        ("end",),
        ((TUPLES, "for policy in _forcing(held) if now >= policy.forced_at)", "for policy in () if now)"),),
    ),
    Mutant(
        "an older document that would fit is never asked for",
        ("end",),
        ((RULEBOOK, "return Numbers(policy=0 if self._lacks_policy() else policy, config=configs)", "return Numbers()"),),
    ),
    Mutant(
        "rolling back takes the newest config",
        ("restored",),
        ((CHANGES, "passed_over=max(pointer.passed_over, memory.active.config)", "passed_over=0"),),
    ),
    Mutant(
        "what stopped for want of documents never comes back",
        ("end",),
        ((WEIGHING, 'if found.fit != "stopped":', 'if found.fit == "never":'),),
    ),
    Mutant(
        "what serves with a document that fits no more isn't flagged",
        ("tuple", "end"),
        ((CHANGES, "is_unfit = isinstance(event, LastUnfit)", "is_unfit = False"),),
    ),
    Mutant(
        "a timestamp that has expired is good enough",
        ("time",),
        (("heliograph/trust.py", "return self.is_complete and now < self.fresh_until", "return self.is_complete"),),
    ),
    Mutant(
        "a wall clock that nobody vouches for is believed",
        ("end", "time"),
        (("heliograph_site/reckoning.py", "<= wall <= self.bound(boottime_s, max_offline_s)", "<= wall"),),
    ),
    Mutant(
        "the clock of a boot before goes on",
        ("time",),
        (("heliograph_site/reckoning.py", "        return self.at + max(0, int(boottime_s - self.boottime_s))", "        return self.at + int(abs(boottime_s - self.boottime_s))"),
         ("heliograph_site/reckoning.py", "is_same = mark.boot == boot and mark.boottime_s <= boottime_s", "is_same = True")),
    ),
    Mutant(
        "the hub counts a replay twice",
        ("records",),
        (("heliograph_hub/fleet.py", 'new = end - max(seq, state["next"])', "new = end - seq"),),
    ),
)  # fmt: skip


class StaleError(AssertionError):
    """A mutant's text is no longer in the source, so that it would plant nothing."""


def plant(mutant: Mutant, folder: Path) -> None:
    """Copies the packages to `folder` with the bug in them.

    Raises:
        StaleError: a text doesn't occur exactly once.
    """
    for package in PACKAGES:
        shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    for file, old, new in mutant.changes:
        source = (folder / file).read_text()
        if source.count(old) != 1:
            raise StaleError(f"{mutant.name}: {old!r} occurs {source.count(old)} times in {file}")
        (folder / file).write_text(source.replace(old, new))


#: The world in which each mutant was found last, tried before all others: a stale one costs time, nothing else.
SEEN: Final[dict[str, int]] = {
    "what is only held of a new ring ends the former ring's policy": 1001284,
    "a late answer is obeyed": 116,
    "a denied release stays the fallback": 10,
    "what is denied serves on beside a fallback": 23,
    "a closed model serves on though two have denied its last release": 10,
    "a fallback that still answers is forgotten when it is denied": 1000105,
    "what answers is forgotten before the server has stopped it": 1000723,
    "what nothing names goes on answering where nothing else could be served": 1070565,
    "what is denied answers unflagged where no fallback serves": 28,
    "what is under way keeps the number of an older directive": 4,
    "what is active keeps the number of an older directive": 4,
    "a node in a ring that has no directive waits for ever": 59,
    "an unproven release goes before a proven one": 54,
    "a restart in staging starts nothing": 32,
    "a probation outlives two power cuts": 185,
    "a machine is stuck and does not say why": 7,
    "a delta that leads astray is gone again and again": 71,
    "rolling back goes to what answered before instead of what is named": 10,
    "something is activated before every denial of the list is held": 130,
    "what an unsigned release superseded is activated for ever": 5,
    "a signature is enough, no approval is needed": 94,
    "a leaf is not verified": 4,
    "a page is not verified": 4,
    "a resumed fetch trusts the file": 2,
    "a want asked twice is answered under its old handle": 57,
    "the whole image is not verified": 11,
    "the outbox merges what was handed out": 133,
    "a receipt covers more than was sent": 3,
    "what fits no config and policy is activated all the same": 101,
    "a config is taken that the release doesn't fit": 2,
    "an older document that would fit is never asked for": 198,
    "rolling back takes the newest config": 22,
    "what stopped for want of documents never comes back": 99,
    "a timestamp that has expired is good enough": 13,
    "a wall clock that nobody vouches for is believed": 2,
    "the hub counts a replay twice": 3,
}


def hunt(mutant: Mutant, folder: Path, worlds: int, *options: str) -> tuple[str, int]:
    """The invariant that found the bug, and in which world; ("", worlds) if none did."""
    plant(mutant, folder)
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    seen = [str(SEEN[mutant.name])] if mutant.name in SEEN else []
    command = [sys.executable, "-m", "simulator", "0", str(worlds), "--hunt", *seen, *options]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    word, _, seed = done.stdout.strip().rpartition("\n")[2].partition(" ")
    if word not in ("held", "broken"):
        raise AssertionError(f"{mutant.name}: {done.stdout}{done.stderr}")
    seed, _, name = seed.partition(" ")
    return (name, int(seed)) if word == "broken" else ("", worlds)
