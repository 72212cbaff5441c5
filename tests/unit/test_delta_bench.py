"""The delta bench: what it reads, estimates and says of figures. Nothing here is downloaded or measured."""

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from bench.deltas import entropy, flatbuffer, forced, hub, report
from bench.deltas.catalogue import KINDS, CatalogueError, made, pairs, parse
from bench.deltas.getting import Files
from bench.deltas.launching import Bounds, launched
from bench.deltas.measuring import weigh
from bench.deltas.tools import SEGMENTS
from heliograph.blob import LEAF_BYTES
from heliograph.delta.dtypes import Dtype
from heliograph.delta.file import apply_file, make_file, show_file

BENCH = Path(__file__).resolve().parents[1] / "bench"
ROW = report.Row("p", "fine-tune", "bf16", 10**7, 10**7, "aa", "bb", 10**6, 10**6, "heliograph", "1", "", bytes=10**6)


def rows(**sizes: int) -> list[report.Row]:
    return [replace(ROW, tool=tool, bytes=size) for tool, size in sizes.items()]


def goal(start: str, found: list[report.Row]) -> report.Goal:
    return next(goal for goal in report.goals(found) if goal.text.startswith(start))


# --- the catalogue ------------------------------------------------------------------------------------------------


def test_every_pair_has_a_name_of_its_own_a_kind_and_a_source() -> None:
    every = pairs(BENCH / "models.toml")
    assert len({pair.name for pair in every}) == len(every) >= 30
    for pair in every:
        assert pair.kind in KINDS and pair.source
        assert (pair.files is None) == bool(pair.recipe)
    assert {pair.name for pair in every if pair.big} == {"image-200m", "image-1g"}


def test_every_form_the_catalogue_names_has_a_writer() -> None:
    text = (BENCH / "deltas" / "makers" / "forms.py").read_text()
    for form in {pair.recipe[1] for pair in made() if pair.recipe[0] == "form"}:
        assert f'"{form.removeprefix("gguf-")}"' in text, form


def test_the_models_that_pairs_are_made_from_are_named_with_their_digests() -> None:
    _, others = parse((BENCH / "models.toml").read_text())
    assert {"minilm.old", "minilm.vocab", "minilm.config"} == others.keys()


SOURCE = 'package = "a==1", member = "m", sha256 = "' + "0" * 64 + '"'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f'kind = "odd"\nsource = "s"\nold = {{{SOURCE}}}\nnew = {{{SOURCE}}}', "no kind"),
        (f'kind = "fine-tune"\nsource = "s"\nold = {{{SOURCE}}}', "must have old, new"),
        (f'kind = "fine-tune"\nold = {{{SOURCE}}}\nnew = {{{SOURCE}}}', "must have old, new and source"),
        ('kind = "fine-tune"\nsource = "s"\nold = {package = "a==1", member = "m"}', "no SHA-256"),
        (f'kind = "fine-tune"\nsource = "s"\nold = {{{SOURCE.replace("==", ">=")}}}', "package==version"),
        (f'kind = "fine-tune"\nsource = "s"\nold = {{{SOURCE}, url = "x"}}', "url"),
        (f'kind = "fine-tune"\nsource = "s"\nold = {{file = "../x", sha256 = "{"0" * 64}"}}', "plain name"),
        ("old = [", "no TOML"),
    ],
)
def test_a_models_file_that_lacks_or_adds_something_is_refused_in_words(text: str, why: str) -> None:
    with pytest.raises(CatalogueError, match=why):
        parse(f"[x]\n{text}\n")


# --- the estimate -------------------------------------------------------------------------------------------------


def test_floats_keep_their_order_as_integers() -> None:
    floats = np.array([-np.inf, -2.0, -1e-7, -0.0, 0.0, 1e-7, 2.0, np.inf], np.float16)
    assert np.all(np.diff(entropy.ordered(floats.view(np.uint16))) > 0)


def test_classes_are_exponents_and_bit_lengths() -> None:
    halves = np.array([1.0, 1.5, -2.0, 0.0], np.float16).view(np.uint16)
    assert entropy.float_class(halves, 10).tolist() == [15, 15, 16, 0]
    assert entropy.integer_class(np.array([0, 1, 2, 3, 4, -1, -128], np.int8)).tolist() == [0, 1, 2, 2, 3, -1, -8]


def test_unchanged_values_cost_nothing_and_even_ones_their_width() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    old = rng.integers(-128, 128, 200_000)
    noise = rng.integers(-128, 128, 200_000)
    classes = entropy.integer_class(old)
    same = entropy.values(old, old, classes, 8)
    assert same.plain == 0 and same.learned < 200
    assert entropy.values(noise, old, classes, 8).plain == pytest.approx(200_000, rel=0.01)


def test_the_class_of_the_old_value_is_made_use_of() -> None:
    rng = np.random.Generator(np.random.PCG64(2))
    classes = rng.integers(0, 2, 100_000)
    residuals = np.where(classes == 1, rng.integers(-8, 8, 100_000), 0)
    given, without = (entropy.plain_bits(residuals, known) for known in (classes, np.zeros_like(classes)))
    assert given == pytest.approx(4 * classes.sum(), rel=0.01)
    assert without > given + 0.8 * 100_000


def test_learning_the_frequencies_costs_more_than_knowing_them_and_less_with_more_values() -> None:
    rng = np.random.Generator(np.random.PCG64(3))
    extra = []
    for count in (500, 50_000):
        values = np.rint(rng.normal(0, 20, count)).astype(np.int64)
        none = np.zeros_like(values)
        plain, learned = entropy.plain_bits(values, none), entropy.learned_bits(values, none, 8)
        assert learned > plain
        extra.append(learned / plain)
    assert extra[1] < 1.02 < extra[0]


def test_a_wide_residual_costs_about_its_length() -> None:
    rng = np.random.Generator(np.random.PCG64(4))
    old = rng.integers(0, 1 << 30, 50_000)
    step = rng.integers(-(1 << 12), 1 << 12, 50_000)
    found = entropy.values(old + step, old, np.zeros_like(old), 32)
    assert found.plain == pytest.approx(50_000 * 13 / 8, rel=0.02)


@pytest.mark.parametrize(("dtype", "block"), [("q8_0", 34), ("q4_0", 18)])
def test_blocks_of_quantised_formats_are_taken_apart(dtype: str, block: int) -> None:
    rng = np.random.Generator(np.random.PCG64(5))
    old = rng.integers(0, 256, block * 100, np.uint8)
    new = old.copy()
    new[::block] ^= 1  # the scales' lowest bits
    found = entropy.tensor(old.tobytes(), new.tobytes(), dtype, [100, 32], [100, 32])
    assert 0 <= found.plain < 20


def test_a_grown_tensor_is_compared_where_both_have_values(tmp_path: Path) -> None:
    rng = np.random.Generator(np.random.PCG64(6))
    old = rng.integers(-100, 100, (50, 40)).astype(np.int8)
    new = rng.integers(-100, 100, (60, 44)).astype(np.int8)
    new[:50, :40] = old
    (tmp_path / "old").write_bytes(old.tobytes())
    (tmp_path / "new").write_bytes(b"head" + new.tobytes())
    layout = {"old": [["w", 0, old.size, "i8", [50, 40]]], "new": [["w", 4, new.size, "i8", [60, 44]]]}
    found = entropy.pair(tmp_path / "old", tmp_path / "new", layout)
    assert 0.8 * (new.size - old.size) < found.plain < new.size - old.size


def test_the_tensors_of_a_tflite_file_are_found() -> None:
    data = (BENCH.parent / "data" / "digits" / "digits_base_int8.tflite").read_bytes()
    rows = flatbuffer.layout(data)
    weights = [row for row in rows if row[3] == "i8"]
    assert sum(row[2] for row in weights) > 0.9 * len(data)
    for _, offset, length, _, shape in weights:
        assert offset + length <= len(data) and np.prod(shape) == length
    assert flatbuffer.layout(b"no model at all") == []


# --- the report ---------------------------------------------------------------------------------------------------


def test_rows_survive_the_csv() -> None:
    given = [replace(ROW, make_cpu_s=1.25, ops="copy 1, sub 2"), replace(ROW, failed="it said, no")]
    assert report.parse(report.encode(given)) == given


def test_the_smallest_of_a_line_is_bold_and_what_failed_is_a_dash() -> None:
    found = [*rows(heliograph=900, bsdiff4=1800, xz=2000), replace(ROW, tool="brotli", failed="too long")]
    line = report.sizes(found).splitlines()[2]
    assert line == "| p | fine-tune | 10,000,000 | **900** | 1,800 | 2,000 | – | 1,000,000 | 2.00 |"
    assert report.missing(found) == ["brotli on p: not measured: too long"]


def test_a_pair_is_lost_from_more_than_a_hundredth_on() -> None:
    assert goal("every pair", rows(heliograph=1010, bsdiff4=1000)).met
    lost = goal("every pair", rows(heliograph=1020, bsdiff4=2000, xz=1000))
    assert not lost.met and "p 1.020 (xz)" in lost.found


def test_fine_tunes_are_averaged_geometrically_and_others_left_out() -> None:
    found = [*rows(heliograph=1000, bsdiff4=4000), *(replace(row, pair="q") for row in rows(heliograph=1000, xz=1000))]
    found += [replace(row, pair="r", kind="retrained") for row in rows(heliograph=1000, xz=100)]
    mean = goal("fine-tunes: geometric mean ≥ 1.45", found)
    assert mean.met and mean.found.startswith("2.00 over 2 pairs")
    assert goal("fine-tunes: geometric mean ≥ 1.6 times smaller than bsdiff4", found).found.startswith("4.00 over 1")


def test_the_distance_to_the_limit_counts_for_narrow_fine_tunes_alone() -> None:
    near = [*rows(heliograph=1_049_000, xz=10**7)]
    assert goal("bf16", near).met
    far = [replace(row, bytes=row.bytes + 2000) for row in near]
    assert goal("bf16", far).met is False
    assert goal("bf16", [replace(row, dtype="f32") for row in far]).met is None


def test_memory_container_and_cpu_are_held_against_their_goals() -> None:
    rates = "copy 3000000/0.001, sub 6000000/0.1, sub+rans 3000000/0.2"
    ours = replace(ROW, apply_rss_bytes=64 << 20, container_bytes=5300, make_cpu_s=6.0, rates=rates)
    others = replace(ROW, tool="bsdiff4", bytes=10**7, make_cpu_s=1.0)
    texts = ("apply: the applying process", "container", "make", "apply: at least 60", "apply: at least 15")
    assert all(goal(text, [ours, others]).met for text in texts)
    worse = replace(
        ours, apply_rss_bytes=(64 << 20) + 1, container_bytes=5301, make_cpu_s=6.1,
        rates="copy 3000000/0.001, sub 6000000/0.11, sub+rans 3000000/0.21",
    )  # fmt: skip
    assert [goal(text, [worse, others]).met for text in texts] == [False] * 5
    large = replace(ours, new_bytes=10**9, make_rss_bytes=4 * 10**9)
    assert goal("make: a pair of 1 GB", [large, others]).met
    assert goal("make: a pair of 1 GB", [replace(large, make_rss_bytes=4 * 10**9 + 1), others]).met is False


def test_an_operation_is_as_fast_as_all_pairs_together_and_its_slowest_large_one_is_named() -> None:
    one, two = replace(ROW, rates="sub 6000000/0.1, xor 10/0.1"), replace(ROW, pair="q", rates="sub 2000000/0.1")
    lines = report.operations([one, two]).splitlines()[2:]
    assert lines == ["| sub | q | 20 | 2 | 8.0 | 40 |", "| xor | – | – | 1 | 0.0 | 0 |"]


def test_segments_must_stand_while_the_patch_comes_unless_there_is_one_or_one_leaf() -> None:
    good = replace(ROW, patch_bytes=9000, first_bytes=4500, late="1 of 2")
    single = replace(ROW, pair="q", patch_bytes=9000, first_bytes=9000, late="1 of 1")
    other = [replace(row, tool="xz", rates="") for row in (good, single)]
    text = "apply: the first segment"
    assert goal(text, [good, single, *other]).met and "50% at most (p)" in goal(text, [good, single, *other]).found
    assert goal(text, [replace(good, first_bytes=9000), *other]).met is False
    assert "left at the end: p 2 of 2" in goal(text, [replace(good, late="2 of 2"), *other]).found


def test_a_new_run_of_ours_keeps_what_others_took_on_the_same_files_alone() -> None:
    kept = [*rows(heliograph=5, xz=7), *(replace(row, pair="q") for row in rows(heliograph=5, xz=8))]
    kept += [replace(ROW, pair="gone", tool="xz"), replace(ROW, pair="r", tool="xz")]
    fresh = [replace(ROW, bytes=4, limit_plain=9), replace(ROW, pair="q", bytes=3, new_sha256="changed")]
    found = [(row.pair, row.tool, row.bytes, row.limit_plain) for row in report.joined(fresh, kept, ["r", "q", "p"])]
    assert found == [
        ("r", "xz", 10**6, 10**6),
        ("q", "heliograph", 3, 10**6),
        ("p", "heliograph", 4, 9),
        ("p", "xz", 7, 9),
    ]


def test_images_are_shown_with_what_could_not_be_done_on_them() -> None:
    done = replace(ROW, kind="synthetic", make_cpu_s=1.5, make_rss_bytes=2 * 10**9, measured="2026-01-02 03:04 UTC")
    lines = report.images([done, replace(done, tool="xz", failed="make: no memory"), ROW]).splitlines()[2:]
    assert lines[0] == "| p | heliograph | 1,000,000 | 1.5 | 0.0 | 2,000 | 0 | 2026-01-02 03:04 UTC |"
    assert lines[1].startswith("| p | xz | make: no memory | – ") and len(lines) == 2


def test_what_was_not_measured_leaves_goals_open() -> None:
    assert {found.met for found in report.goals([])} == {None}
    assert "open" in report.goal_list([])


def test_costs_are_compared_on_the_pairs_that_all_gave_back() -> None:
    found = [*rows(heliograph=10**6, xz=10**6), replace(ROW, pair="q", make_cpu_s=99.0)]
    line = next(line for line in report.costs(found).splitlines() if line.startswith("| heliograph"))
    assert line.split(" | ")[2:5] == ["2", "10.0%", "0.00"]


# --- measuring ----------------------------------------------------------------------------------------------------


def test_commands_are_run_in_order_and_the_first_failure_ends_them(tmp_path: Path) -> None:
    bounds = Bounds(60, 1 << 30)
    out = tmp_path / "out"
    done = launched([["echo", "a", ">", str(out)], ["echo", "b"]], bounds, "")
    assert (out.read_text(), done["said"], done["failed"]) == ("a\n", "b\n", "")
    assert done["maxrss_bytes"] > 1 << 20
    failed = launched([["sh", "-c", "echo why >&2; exit 3"], ["touch", str(tmp_path / "never")]], bounds, "")
    assert failed["failed"] == "sh ended with 3: why" and not (tmp_path / "never").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_what_a_bench_runs_ends_with_it(tmp_path: Path, number: signal.Signals) -> None:
    os.mkfifo(tmp_path / "pid")
    script = (
        "from bench.deltas.launching import Bounds, ended_by_signals, launched\n"
        f"with ended_by_signals(): launched([['sh', '-c', 'echo $$ >{tmp_path}/pid; exec sleep 600']], Bounds())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCH.parent), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL) as bench:
        peer = os.pidfd_open(pid := int((tmp_path / "pid").read_text()))
        ended = select.poll()
        ended.register(peer, select.POLLIN)
        bench.send_signal(number)
        try:
            assert ended.poll(20_000)
        finally:
            os.close(peer)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            bench.kill()


def test_what_the_bounds_failed_is_tried_again_with_wider_ones_alone() -> None:
    some = Bounds(900, 12)
    assert Bounds(901, 12).allow_more_than(some) and Bounds(0, 12).allow_more_than(some)
    assert not some.allow_more_than(some) and not Bounds(800, 12).allow_more_than(some)
    assert not some.allow_more_than(Bounds()) and Bounds(100, 13).allow_more_than(some)


def streamed(old: Path, new: Path, folder: Path) -> dict[str, Any]:
    """What is said of a delta whose patch comes leaf by leaf."""
    make_file(old, new, folder / "delta")
    command = [sys.executable, "-P", str(SEGMENTS), str(old), str(folder / "delta"), str(folder / "rebuilt")]
    done = launched([command], Bounds())
    assert not done["failed"] and (folder / "rebuilt").read_bytes() == new.read_bytes()
    said: dict[str, Any] = json.loads(done["said"])
    return said


def test_a_patch_that_comes_leaf_by_leaf_tells_when_segments_stand_and_what_operations_take(tmp_path: Path) -> None:
    old, new = (BENCH.parent / "data" / "digits" / f"digits_{name}_int8.tflite" for name in ("base", "head"))
    said = streamed(old, new, tmp_path)
    assert sum(size for size, _ in said["ops"].values()) == new.stat().st_size
    assert all(cpu_s > 0 for _, cpu_s in said["ops"].values()) and said["start_cpu_s"] > 0
    assert 0 < said["first_bytes"] < said["patch_bytes"] and said["late"] == 1 < said["segments"]


def test_a_segment_stands_when_its_bytes_have_come_however_many_copies_stand_among_them(tmp_path: Path) -> None:
    kept, fresh = Random(1).randbytes(600_000), Random(2).randbytes(80_000)
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(kept)
    new.write_bytes(kept[:200_000] + fresh[:40_000] + kept[200_000:400_000] + fresh[40_000:] + kept[400_000:])
    said = streamed(old, new, tmp_path)
    assert said["segments"] == 2 and said["late"] == 1 and 40_000 <= said["first_bytes"] < 40_000 + 2 * LEAF_BYTES
    assert said["ops"]["copy"][0] == len(kept)


def test_a_hub_s_child_makes_within_its_bound_and_what_it_takes_is_read(tmp_path: Path) -> None:
    content = Random(1).randbytes(300_000)
    files = Files(tmp_path / "old", tmp_path / "new", None)
    files.old.write_bytes(content)
    files.new.write_bytes(content[:100_000] + content[:200_000])
    row = hub.measure("p", files, tmp_path, "now")
    assert not row.failed and 0 < row.bytes < 1000
    assert 0 < row.taken_bytes < row.bound_bytes and row.resident_bytes > 1 << 20
    assert 0 < row.too_little_bytes < row.taken_bytes
    assert hub.parse(hub.encode([row])) == [row]
    assert "refused: too much" in hub.markdown([replace(row, refused="too much")])
    assert "**not refused in words**: died" in hub.markdown([replace(row, refused="", ended="died")])


def test_a_folder_weighs_what_its_files_do(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(struct.pack("<Q", 1))
    (tmp_path / "a" / "d").write_bytes(b"12")
    assert weigh(tmp_path / "a") == 10


@pytest.mark.parametrize("operation", list(forced.OPERATIONS))
def test_a_forced_delta_has_that_operation_alone_and_comes_back(tmp_path: Path, operation: str) -> None:
    old = Random(1).randbytes(10_001)
    new = bytes(byte ^ (at % 3 == 0) for at, byte in enumerate(old))
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "delta").write_bytes(forced.made(operation, Dtype.F32, old, new, 4096))
    assert show_file(tmp_path / "delta")["segments"] == {operation: 3}
    apply_file(tmp_path / "old", tmp_path / "delta", tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == new


def test_what_is_forced_counts_for_operations_of_which_pairs_have_little() -> None:
    row = forced.Row("sub", "p", "f32", 10**7, 10**6, 0.125, 0.5, "now")
    assert forced.parse(forced.encode([row])) == [row] and "| 80 | 0.50 | now |" in forced.markdown([row])
    assert forced.slowest([row, replace(row, cpu_s=0.1)]) == {"sub": 80.0}
    start = "apply: at least 60 MB"
    for size, met in ((10_000, True), (3_000_000, False)):  # 20 MB a second, of small pieces or of large ones
        took = [replace(ROW, rates=f"sub {size}/{size / 20e6}"), replace(ROW, tool="bsdiff4", bytes=10**7)]
        (found,) = (goal for goal in report.goals(took, {"sub": 80.0}) if goal.text.startswith(start))
        assert (
            found.met is met and "sub 20," in found.found and "forced on a large input, at least sub 80" in found.found
        )
