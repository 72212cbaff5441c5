"""Delta files through the command line: exact or refused, bounded in memory, and never half an output."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from heliograph.blob import describe, sha256, short_digest
from heliograph.delta import diff, file, recipe
from heliograph.delta.file import HEADER_BYTES, apply_file, make_file, show_file
from heliograph.delta.patch import dictionary
from heliograph.delta.recipe import COPY, DICT, FULL, Recipe, Segment
from heliograph.errors import ConfigError, HeliographError, IntegrityError, NotFoundError
from heliograph.names import Digest

DIGITS = Path(__file__).parents[1] / "data" / "digits"
MIB = 1 << 20
OLD = random.Random(1).randbytes(3000)
NEW = OLD[:1000] + b"changed" + OLD[1200:]


def heliograph(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "heliograph.cli", *map(str, args)], capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`old`, `new`, and the delta `patch` between them."""
    (tmp_path / "old").write_bytes(OLD)
    (tmp_path / "new").write_bytes(NEW)
    make_file(tmp_path / "old", tmp_path / "new", tmp_path / "patch")
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_delta_of_real_models_makes_the_new_one_and_says_what_it_cost(tmp_path: Path) -> None:
    base, head = DIGITS / "digits_base_int8.tflite", DIGITS / "digits_head_int8.tflite"
    made = heliograph("delta", "make", base, head, tmp_path / "patch", "--json")
    assert (made.returncode, made.stderr) == (0, "")
    facts = json.loads(made.stdout)
    assert facts["old_bytes"] == facts["new_bytes"] == 3_459_640
    assert facts["patch_bytes"] == (tmp_path / "patch").stat().st_size < 500_000
    assert facts["segments"]["copy"] >= 1

    applied = heliograph("delta", "apply", base, tmp_path / "patch", tmp_path / "out", "--json")
    assert (applied.returncode, applied.stderr) == (0, "")
    assert (tmp_path / "out").read_bytes() == head.read_bytes()
    told = json.loads(applied.stdout)
    assert told["segments"] == facts["segments"]
    assert 5 * MIB < told["peak_rss_bytes"] <= 64 * MIB

    shown = heliograph("delta", "show", tmp_path / "patch", "--json")
    read = json.loads(shown.stdout)
    assert read["new_sha256"] == told["sha256"] == hashlib.sha256(head.read_bytes()).hexdigest()
    assert read["patch_bytes"] == facts["patch_bytes"]
    assert {name: row["segments"] for name, row in read["ops"].items()} == facts["segments"]
    assert sum(row["new_bytes"] for row in read["ops"].values()) == 3_459_640


def test_memory_for_applying_is_bounded_whatever_the_image_and_the_patch(tmp_path: Path) -> None:
    # 120 MiB in the largest segments there may be, with the most of the base each may read.
    chance = random.Random(2)
    old = chance.randbytes(8 * MIB) * 5
    window = dictionary(old[: 8 * MIB])
    by_dict = zstandard.ZstdCompressor(level=1, dict_data=window)
    segments: list[Segment] = []
    patch = bytearray()
    sha = hashlib.sha256()
    for n in range(30):
        out = chance.randbytes(4 * MIB) if n % 3 == 0 else old[n * MIB : (n + 4) * MIB]
        op, span = [(FULL, ()), (DICT, ((0, 8 * MIB),)), (COPY, ((n * MIB, 4 * MIB),))][n % 3]
        part = {FULL: zstandard.ZstdCompressor(level=1), DICT: by_dict}[op].compress(out) if op != COPY else b""
        segments.append(Segment(len(out), op, span, (len(patch), len(part)), short_digest(out)))
        patch += part
        sha.update(out)
    digest, pages = describe(bytes(patch))
    big = Recipe(sha256(old), len(old), Digest(sha.digest()), 120 * MIB, len(patch), digest, pages, tuple(segments))
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "patch").write_bytes(sealed(recipe.encode(big), bytes(patch)))
    applied = heliograph("delta", "apply", tmp_path / "old", tmp_path / "patch", tmp_path / "out", "--json")
    assert applied.returncode == 0, applied.stderr
    assert json.loads(applied.stdout)["segments"] == {"copy": 10, "dict": 10, "full": 10}
    assert json.loads(applied.stdout)["peak_rss_bytes"] <= 64 * MIB


def test_applying_loads_nothing_it_does_not_need(folder: Path) -> None:
    program = (
        "import sys; from heliograph.delta.file import apply_file; from pathlib import Path\n"
        "light = 'pydantic' not in sys.modules\n"
        "from heliograph.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "heavy = {'tuf', 'rich', 'numpy', 'asyncio', 'bsdiff4', 'sqlite3', 'heliograph.delta.diff', 'heliograph_hub'}\n"
        "print(light, sorted(heavy & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    args = ["delta", "apply", *(str(folder / name) for name in ("old", "patch", "out")), "--json"]
    done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "True []\n")


def test_a_person_is_told_in_one_line_each(folder: Path) -> None:
    applied = heliograph("delta", "apply", folder / "old", folder / "patch", folder / "out")
    assert applied.returncode == 0
    assert applied.stdout.count("\n") == 1
    assert hashlib.sha256(NEW).hexdigest() in applied.stdout
    shown = heliograph("delta", "show", folder / "patch")
    assert hashlib.sha256(OLD).hexdigest() in shown.stdout
    lines = [line for line in shown.stdout.splitlines() if line.startswith("at ")]
    assert len(lines) == len(MADE.segments)
    assert all(" patch bytes, of " in line and ": " in line for line in lines), "of what it is made, and why"


@pytest.mark.parametrize(("old", "new"), [(b"", b""), (b"", b"x"), (b"x", b""), (b"same", b"same")])
def test_empty_and_equal_files_work_like_any_other(tmp_path: Path, old: bytes, new: bytes) -> None:
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "new").write_bytes(new)
    make_file(tmp_path / "old", tmp_path / "new", tmp_path / "patch")
    apply_file(tmp_path / "old", tmp_path / "patch", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == new


# --- damage and hostility -----------------------------------------------------------------------------------------


def refused(folder: Path, patch: bytes) -> None:
    (folder / "bad").write_bytes(patch)
    with pytest.raises(IntegrityError) as caught:
        apply_file(folder / "old", folder / "bad", folder / "out")
    assert "\n" not in str(caught.value)
    assert names(folder) == ["bad", "new", "old", "patch"]


def test_a_patch_with_any_byte_changed_is_refused_and_leaves_nothing(folder: Path) -> None:
    whole = (folder / "patch").read_bytes()
    for at in range(len(whole)):
        refused(folder, whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])


def test_a_patch_cut_at_any_length_or_made_longer_is_refused_and_leaves_nothing(folder: Path) -> None:
    whole = (folder / "patch").read_bytes()
    for length in range(len(whole)):
        refused(folder, whole[:length])
    refused(folder, whole + b"\0")
    refused(folder, whole + whole)


def sealed(encoded: bytes, patch: bytes, *, magic: bytes = file.MAGIC, version: int = file.VERSION) -> bytes:
    """A delta file with a right digest around anything."""
    leading = magic + bytes([version]) + len(encoded).to_bytes(4, "big")
    return leading + short_digest(leading + encoded) + encoded + patch


def _with_segment(**changes: object) -> bytes:
    return sealed(recipe.encode(replace(MADE, segments=(replace(MADE.segments[0], **changes),))), PATCH)


MADE, PATCH = recipe.with_patch(*diff.make(OLD, NEW))
APART, APART_PATCH = diff.make(OLD, NEW)
HOSTILE: dict[str, Callable[[], bytes]] = {
    "another magic": lambda: sealed(recipe.encode(MADE), PATCH, magic=b"heliodlx"),
    "version of tomorrow": lambda: sealed(recipe.encode(MADE), PATCH, version=3),
    "a recipe that is none": lambda: sealed(b"recipe", PATCH),
    "a recipe longer than the file": lambda: sealed(recipe.encode(MADE), PATCH)[:-1],
    "patch shorter than the recipe says": lambda: sealed(recipe.encode(APART), APART_PATCH[:-1]),
    "patch longer than the recipe says": lambda: sealed(recipe.encode(APART), APART_PATCH + b"\0"),
    "patch bytes though the recipe has them": lambda: sealed(recipe.encode(MADE), b"\0"),
    "another patch of that length": lambda: sealed(recipe.encode(APART), bytes(len(APART_PATCH))),
    "another target": lambda: sealed(recipe.encode(replace(MADE, target=MADE.base)), PATCH),
    "another base": lambda: sealed(recipe.encode(replace(MADE, base=MADE.target)), PATCH),
    "base one byte longer": lambda: sealed(recipe.encode(replace(MADE, base_length=len(OLD) + 1)), PATCH),
    "range beyond the base": lambda: _with_segment(old=((len(OLD), 1),)),
    "operation of tomorrow": lambda: _with_segment(op=77),
    "segment of another length": lambda: _with_segment(length=len(NEW) - 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_patch_with_a_right_digest_is_refused_and_leaves_nothing(folder: Path, name: str) -> None:
    refused(folder, HOSTILE[name]())


def test_the_frame_that_hostile_patches_are_sealed_in_is_right(folder: Path) -> None:
    assert sealed(recipe.encode(MADE), PATCH) == (folder / "patch").read_bytes()
    assert len(sealed(b"", b"")) == HEADER_BYTES


def test_a_delta_file_of_version_1_is_applied_for_ever_and_refused_with_any_byte_changed(folder: Path) -> None:
    whole = (DIGITS.parent / "golden" / "delta.bin").read_bytes()
    old = b"".join(sha256(number.to_bytes(4, "big")) for number in range(100))
    (folder / "old").write_bytes(old)
    (folder / "patch").write_bytes(whole)
    apply_file(folder / "old", folder / "patch", folder / "out")
    assert (folder / "out").read_bytes() == old[:1000] + b"changed" + old[1200:]
    (folder / "out").unlink()
    assert show_file(folder / "patch")["format"] == 1
    for at in range(len(whole)):
        refused(folder, whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        refused(folder, whole[:at])
    refused(folder, whole + b"\0")


def test_a_wrong_base_exits_4_with_one_line_and_keeps_the_file_that_stood_there(folder: Path) -> None:
    (folder / "out").write_bytes(b"precious")
    before = names(folder)
    for base in (folder / "new", DIGITS / "digits_eval.npz"):
        done = heliograph("delta", "apply", base, folder / "patch", folder / "out", "--json")
        assert done.returncode == 4
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert "is not the file this delta starts from" in done.stderr
    assert (folder / "out").read_bytes() == b"precious"
    assert names(folder) == before


# --- paths --------------------------------------------------------------------------------------------------------


def test_a_missing_input_is_named_and_exits_3(folder: Path) -> None:
    for args in (("make", "gone", "new", "p"), ("make", "old", "gone", "p"), ("apply", "old", "gone", "o")):
        done = heliograph("delta", args[0], *(folder / name for name in args[1:]))
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr == f"heliograph: {folder / 'gone'} is not there\n"
    assert names(folder) == ["new", "old", "patch"]


def test_an_output_that_is_an_input_is_refused_by_any_of_its_names(folder: Path) -> None:
    (folder / "link").symlink_to("old")
    (folder / "twin").hardlink_to(folder / "patch")
    before = names(folder)
    for output in ("old", "link"):
        with pytest.raises(ConfigError, match="same file"):
            make_file(folder / "old", folder / "new", folder / output)
        with pytest.raises(ConfigError, match="same file"):
            apply_file(folder / "old", folder / "patch", folder / output)
    for output in ("patch", "twin"):
        with pytest.raises(ConfigError, match="same file"):
            apply_file(folder / "old", folder / "patch", folder / output)
    with pytest.raises(ConfigError, match="same file"):
        make_file(folder / "old", folder / "new", folder / "new")
    assert (folder / "old").read_bytes() == OLD
    assert names(folder) == before


def test_folders_pipes_and_absent_folders_are_refused_without_waiting(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    before = names(folder)
    wrong: list[tuple[str, str, str]] = [
        (".", "patch", "out"),
        ("pipe", "patch", "out"),
        ("old", "patch", "."),
        ("old", "patch", "pipe"),
        ("old", "patch", "nowhere/out"),
    ]
    for old, patch, out in wrong:
        with pytest.raises(ConfigError):
            apply_file(folder / old, folder / patch, folder / out)
    assert names(folder) == before


def test_showing_a_file_that_is_no_delta_is_refused(folder: Path) -> None:
    with pytest.raises(IntegrityError, match="not a delta file"):
        show_file(folder / "old")
    with pytest.raises(NotFoundError):
        show_file(folder / "gone")


# --- interruptions ------------------------------------------------------------------------------------------------


def test_ctrl_c_in_the_middle_leaves_nothing_and_the_file_that_stood_there(folder: Path) -> None:
    (folder / "out").write_bytes(b"precious")
    before = names(folder)

    def press(done: int, _whole: int) -> None:
        assert done > 0
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        apply_file(folder / "old", folder / "patch", folder / "out", press)
    assert (folder / "out").read_bytes() == b"precious"
    assert names(folder) == before


def test_ctrl_c_while_a_delta_is_made_leaves_nothing_either(folder: Path) -> None:
    (folder / "patch").write_bytes(b"precious")
    before = names(folder)
    with pytest.raises(KeyboardInterrupt):
        make_file(
            folder / "old", folder / "new", folder / "patch", lambda done, whole: os.kill(os.getpid(), signal.SIGINT)
        )
    assert (folder / "patch").read_bytes() == b"precious"
    assert names(folder) == before


def test_termination_in_the_middle_leaves_nothing_either(folder: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from heliograph.delta import commands, file\n"
        "folder = Path(sys.argv[1])\n"
        "with commands._ended_by_signals():\n"
        "    file.apply_file(folder / 'old', folder / 'patch', folder / 'out',"
        " lambda done, whole: os.kill(os.getpid(), signal.SIGTERM))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (143, "")
    assert names(folder) == ["new", "old", "patch"]


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="no files without a name here")
@pytest.mark.parametrize("command", ["make", "apply"])
def test_being_killed_in_the_middle_leaves_nothing_either(folder: Path, command: str) -> None:
    # Applying is killed as it tells how far it is; making, as it makes the file last.
    program = (
        "import os, signal, sys; from pathlib import Path; from heliograph.delta import file\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "old, patch, new, out = (Path(sys.argv[1]) / name for name in ('old', 'patch', 'new', 'out'))\n"
        "if sys.argv[2] == 'apply': file.apply_file(old, patch, out, die)\n"
        "sys.addaudithook(lambda event, _: event == 'os.link' and die())\n"
        "file.make_file(old, new, out)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder), command], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, b"")
    assert names(folder) == ["new", "old", "patch"]


def test_where_no_file_is_without_a_name_the_outputs_are_the_same(folder: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from heliograph.delta import file\n"
        "vars(os).pop('O_TMPFILE', None)\n"
        "old, patch, new, out = (Path(sys.argv[1]) / name for name in ('old', 'patch', 'new', 'out'))\n"
        "seen = []\n"
        "file.apply_file(old, patch, out, lambda done, whole: seen.extend(Path(sys.argv[1]).glob('.*.part')))\n"
        "assert len({*seen}) == 1, seen"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "out").read_bytes() == NEW
    assert names(folder) == ["new", "old", "out", "patch"]


def test_a_full_disk_is_told_and_leaves_nothing(folder: Path) -> None:
    # A limit on file size stands for the full disk: write fails part-way with an error of the same kind.
    program = (
        "import resource, signal, sys; from heliograph.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    args = ["delta", "apply", *(str(folder / name) for name in ("old", "patch", "out"))]
    done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == ConfigError.exit_code
    assert "can't be written" in done.stderr
    assert done.stderr.count("\n") == 1
    assert names(folder) == ["new", "old", "patch"]


def test_every_error_of_this_part_is_told_in_one_line(folder: Path) -> None:
    for patch in (b"", b"\n" * 100, (folder / "patch").read_bytes()[:-1]):
        (folder / "bad").write_bytes(patch)
        with pytest.raises(HeliographError) as caught:
            show_file(folder / "bad")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["old", "new"])
@pytest.mark.parametrize("at_end", [False, True])
def test_a_file_that_changes_while_a_delta_is_made_is_named_and_nothing_is_written(
    tmp_path: Path, name: str, at_end: bool
) -> None:
    paths = {key: tmp_path / key for key in ("old", "new")}
    noise = random.Random(5).randbytes(3_000_000)
    paths["old"].write_bytes(noise)
    paths["new"].write_bytes(noise[:1_000_000] + b"changed" * 1000 + noise[1_000_000:])

    def spoil(done: int, whole: int) -> None:
        if done == whole or not at_end:
            with paths[name].open("r+b") as file:
                file.write(b"another")

    with pytest.raises(ConfigError, match=f"{name} changed while it was read: make the delta again"):
        make_file(paths["old"], paths["new"], tmp_path / "delta", spoil)
    assert not (tmp_path / "delta").exists()
