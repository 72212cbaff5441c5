"""Packing, adding and offering releases: reproducible, immutable, and refused in one sentence each."""

# ruff: noqa: E501 - the table of cases reads by its columns

import json
import os
import shutil
import subprocess
import sys

import pytest

from heliograph.blob import sha256
from heliograph.delta import recipe
from heliograph.delta.patch import rebuild_segment
from heliograph.errors import ConfigError, HeliographError, NotFoundError, RefusedError
from heliograph.fields import table_in
from heliograph.manifest import COMPUTED, MEANINGS, Manifest, explain, manifest_digest
from heliograph.objects import ObjectStore
from heliograph_hub.bundle import MAX_FILES, pack
from heliograph_hub.database import Database
from heliograph_hub.registry import MAX_WAYS_BYTES, Registry, transfer_bytes

NOW = 1_800_000_000
TENSOR = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1.0, 2.0]}
INPUTS = {"requests": [{"inputs": [TENSOR]}]}
OUTPUTS = {"responses": [{"outputs": [TENSOR | {"name": "y"}]}]}
RELEASE = """
model = "digits"
version = "1.0.0"
[golden]
inputs = "golden/in.json"
outputs = "golden/out.json"
"""


def make_bundle(folder, *, release=RELEASE, model=b"model" * 1000, **files):
    folder.joinpath("golden").mkdir(parents=True)
    (folder / "release.toml").write_text(release)
    (folder / "model.tflite").write_bytes(model)
    (folder / "labels.txt").write_text("zero\none\n")
    (folder / "golden" / "in.json").write_text(json.dumps(INPUTS))
    (folder / "golden" / "out.json").write_text(json.dumps(OUTPUTS))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def registry(tmp_path):
    database = Database(tmp_path / "hub.sqlite")
    yield Registry(database, ObjectStore(tmp_path / "objects"))
    database.close()


# --- packing ----------------------------------------------------------------------------------------------------------


def test_packing_again_elsewhere_with_other_times_and_order_gives_the_same_digest(tmp_path, bundle):
    first = pack(bundle).manifest
    again = tmp_path / "again"
    again.mkdir()
    (again / "golden").mkdir()
    for name in sorted((p.relative_to(bundle) for p in bundle.rglob("*") if p.is_file()), reverse=True):
        shutil.copyfile(bundle / name, again / name)
        os.utime(again / name, (1, 1))
    again.joinpath("model.tflite").chmod(0o600)
    assert manifest_digest(pack(again).manifest) == manifest_digest(first)
    assert [f.name for f in first.files] == ["golden/in.json", "golden/out.json", "labels.txt", "model.tflite"]


def test_files_named_in_any_order_and_form_are_the_same_release(tmp_path, bundle):
    names = ["model.tflite", "golden/out.json", "labels.txt", "golden/in.json"]
    listed = make_bundle(tmp_path / "b", release=f"files = {json.dumps(names)}\n{RELEASE}")
    tables = make_bundle(tmp_path / "c", release=RELEASE + "".join(f'[[files]]\nname = "{n}"\n' for n in names))
    assert manifest_digest(pack(listed).manifest) == manifest_digest(pack(tables).manifest)
    assert manifest_digest(pack(listed).manifest) == manifest_digest(pack(bundle).manifest)


def test_only_what_is_listed_is_taken(tmp_path):
    names = ["model.tflite", "golden/out.json", "golden/in.json"]
    folder = make_bundle(tmp_path / "b", release=f"files = {json.dumps(names)}\n{RELEASE}")
    assert [f.name for f in pack(folder).manifest.files] == sorted(names)


@pytest.mark.parametrize("change", ["model.tflite", "labels.txt", "golden/in.json"])
def test_one_more_byte_in_any_file_is_another_release(bundle, change):
    before = manifest_digest(pack(bundle).manifest)
    path = bundle / change
    path.write_bytes(path.read_bytes() + b"\n")
    assert manifest_digest(pack(bundle).manifest) != before


def test_the_only_model_file_is_the_only_variant(bundle):
    (variant,) = pack(bundle).manifest.variants
    assert (variant.name, variant.files, variant.runtime) == ("default", ("model.tflite",), "tflite")


def _edit(**changes):
    def edit(folder):
        for name, content in changes.items():
            path = folder / name.replace("__", "/").replace("_json", ".json").replace("_tflite", ".tflite")
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return edit


def _release(old, new):
    return lambda folder: (folder / "release.toml").write_text(RELEASE.replace(old, new))


def _append(text):
    return lambda folder: (folder / "release.toml").write_text(RELEASE + text)


def _golden(inputs=INPUTS, outputs=OUTPUTS):
    return _edit(golden__in_json=json.dumps(inputs), golden__out_json=json.dumps(outputs))


def _link(folder):
    (folder / "also.bin").symlink_to(folder / "labels.txt")


def _link_folder(folder):
    (folder / "more").symlink_to(folder / "golden")


def _link_release(folder):
    (folder / "release.toml").rename(folder / "real.toml")
    (folder / "release.toml").symlink_to(folder / "real.toml")


def _pipe(folder):
    os.mkfifo(folder / "pipe")


def _tensor(**changes):
    return _golden(inputs={"requests": [{"inputs": [TENSOR | changes]}]})


# fmt: off
REFUSED = {
    "no release.toml":        (lambda f: (f / "release.toml").unlink(),              ConfigError,  "release.toml is missing: write it"),
    "not TOML":               (lambda f: (f / "release.toml").write_text("model ="), ConfigError,  "is not TOML"),
    "not text":               (lambda f: (f / "release.toml").write_bytes(b"\xff"),  ConfigError,  "can't be read"),
    "unknown field":          (_append("tolerence = 1\n"),                           ConfigError,  "unknown field 'tolerence' in [golden] of {f}/release.toml; did you mean 'tolerance'?"),
    "unknown top field":      (_release("model =", "modle = 'x'\nmodel ="),          ConfigError,  "unknown field 'modle' in {f}/release.toml; did you mean 'model'?"),
    "unknown, nothing near":  (_release("model =", "zzzzzz = 'x'\nmodel ="),         ConfigError,  "unknown field 'zzzzzz'"),
    "unknown in a list":      (_append('[[gates]]\nname = "p95-ms"\nlimits = 3\n'),     ConfigError,  "unknown field 'limits' in [gates] of {f}/release.toml; did you mean 'limit'?"),
    "computed field":         (_append('[[files]]\nname = "a"\nsha256 = "00"\n'),    ConfigError,  "unknown field 'sha256' in [files] of {f}/release.toml; sha256 is computed, leave it out"),
    "no model name":          (_release('model = "digits"', ""),                     RefusedError, "has no model: add it"),
    "no version":             (_release('version = "1.0.0"', ""),                    RefusedError, "has no version: add it"),
    "no golden":              (lambda f: (f / "release.toml").write_text('model="d"\nversion="1.0.0"\n'), RefusedError, "has no golden: add it"),
    "bad model name":         (_release('"digits"', '"Digits!"'),                    RefusedError, "model: 'Digits!' is not a name: use 1 to 40 of a-z, 0-9 and '-'"),
    "bad version":            (_release("1.0.0", "1.0"),                             RefusedError, "version: write major.minor.patch, such as 1.0.0"),
    "version as a number":    (_release('"1.0.0"', "1"),                             RefusedError, "version: write major.minor.patch"),
    "wrong type":             (_append('[soak]\nmin_s = "long"\n'),                  RefusedError, "soak.min_s: input should be a valid integer"),
    "not a number":           (_append("tolerance = nan\n"),                         RefusedError, "golden.tolerance is nan: write a finite number"),
    "endless limit":          (_append('[[gates]]\nname = "p95-ms"\nlimit = inf\n'),    RefusedError, "gates[0].limit is inf"),
    "link":                   (_link,                                                RefusedError, "{f}/also.bin is a link: a bundle holds no links"),
    "linked folder":          (_link_folder,                                         RefusedError, "{f}/more is a link"),
    "linked release.toml":    (_link_release,                                        RefusedError, "{f}/release.toml is a link"),
    "pipe":                   (_pipe,                                                RefusedError, "{f}/pipe is not a regular file"),
    "hidden file":            (_edit(**{".hidden": "x"}),                            RefusedError, "'.hidden' is no name for a bundle file"),
    "space in a name":        (_edit(**{"a b": "x"}),                                RefusedError, "'a b' is no name for a bundle file"),
    "other alphabet":         (_edit(**{"modèle": "x"}),                             RefusedError, "'modèle' is no name for a bundle file"),
    "same but for case":      (_edit(**{"LABELS.txt": "x"}),                         RefusedError, "collides with another of the same name in other case"),
    "path out of the folder": (_release("model =", 'files = ["../x"]\nmodel ='),     RefusedError, "'../x' is no name for a bundle file"),
    "absolute path":          (_release("model =", 'files = ["/etc/passwd"]\nmodel ='), RefusedError, "'/etc/passwd' is no name"),
    "golden out of folder":   (_release("golden/in.json", "../in.json"),             RefusedError, "{f}/release.toml: golden.inputs: '../in.json' is no name for a bundle file: use letters"),
    "variant out of folder":  (_append('[[variants]]\nname = "a"\nfiles = ["/m"]\n'), RefusedError, "variants[0].files[0]: '/m' is no name for a bundle file: use letters"),
    "listed twice":           (_release("model =", 'files = ["a", "a"]\nmodel ='),   RefusedError, "files names a twice"),
    "lists release.toml":     (_release("model =", 'files = ["release.toml"]\nmodel ='), RefusedError, "files names release.toml itself"),
    "files is no list":       (_release("model =", "files = 3\nmodel ="),            RefusedError, "files is not a list"),
    "files holds a number":   (_release("model =", "files = [3]\nmodel ="),          RefusedError, "files holds 3, which is not a name"),
    "listed but absent":      (_release("model =", 'files = ["gone.bin"]\nmodel ='), RefusedError, "gone.bin is named in {f}/release.toml but is not in the folder"),
    "nothing listed":         (_release("model =", "files = []\nmodel ="),           RefusedError, "holds no files besides release.toml"),
    "no model file":          (lambda f: (f / "model.tflite").unlink(),              RefusedError, "{f} holds no model file (.tflite, .onnx)"),
    "two model files":        (_edit(**{"b.onnx": "x"}),                             RefusedError, "{f} holds 2 model files (b.onnx, model.tflite): say in [[variants]]"),
    "empty model":            (_edit(model_tflite=b""),                              RefusedError, "{f}/model.tflite is empty"),
    "empty golden file":      (_edit(golden__in_json=b""),                           RefusedError, "{f}/golden/in.json is empty"),
    "variant without files":  (_append('[[variants]]\nname = "a"\nfiles = []\n'),    RefusedError, "a variant names no files"),
    "variant's file absent":  (_append('[[variants]]\nname = "a"\nfiles = ["m.tflite"]\n'), RefusedError, "m.tflite is named but is not among the files"),
    "two variants, one name": (_append('[[variants]]\nname = "a"\nfiles = ["model.tflite"]\n' * 2), RefusedError, "two variants are called a"),
    "golden file absent":     (lambda f: (f / "golden" / "out.json").unlink(),       RefusedError, "golden/out.json is named but is not among the files"),
    "golden both the same":   (_release("golden/out.json", "golden/in.json"),        RefusedError, "golden.inputs and golden.outputs are both golden/in.json"),
    "golden not JSON":        (_edit(golden__in_json="{"),                           RefusedError, "golden/in.json is not JSON"),
    "golden nested for ever": (_edit(golden__in_json="[" * 100_000),                 RefusedError, "golden/in.json is not JSON"),
    "golden without list":    (_edit(golden__in_json="{}"),                          RefusedError, 'it must be {{"requests": [...]}}'),
    "golden empty":           (_golden(inputs={"requests": []}),                     RefusedError, "golden/in.json has no requests"),
    "golden uneven":          (_golden(inputs={"requests": INPUTS["requests"] * 2}), RefusedError, "has 2 requests and golden/out.json has 1 responses"),
    "request without inputs": (_golden(inputs={"requests": [{}]}),                   RefusedError, "golden/in.json: item 0 has no list of inputs"),
    "request is no object":   (_golden(inputs={"requests": [7]}),                    RefusedError, "golden/in.json: item 0 has no list of inputs"),
    "tensor without name":    (_golden(inputs={"requests": [{"inputs": [{}]}]}),     RefusedError, "input tensors of item 0: one has no name"),
    "unknown datatype":       (_tensor(datatype="FLOAT"),                            RefusedError, "x has datatype 'FLOAT'"),
    "negative shape":         (_tensor(shape=[-2]),                                  RefusedError, "x has no shape of whole numbers"),
    "shape unlike data":      (_tensor(shape=[3]),                                   RefusedError, "x of shape [3] needs 3 values and has 2"),
    "no data":                (_tensor(data=None),                                   RefusedError, "x has no data"),
    "text among numbers":     (_tensor(data=[1, "2"]),                               RefusedError, "x holds '2', which is no FP32"),
    "NaN in JSON":            (_edit(golden__in_json='{"requests": [NaN]}'),         RefusedError, "golden/in.json is not JSON: nan is not a json number"),
    "soak backwards":         (_append("[soak]\nmin_s = 9\nmax_s = 3\n"),            RefusedError, "soak.min_s 9 exceeds soak.max_s 3"),
    "soak without time":      (_append("[soak]\nmin_s = 0\nmax_s = 0\n"),            RefusedError, "soak.max_s is 0"),
    "gate twice":             (_append('[[gates]]\nname = "p95-ms"\nlimit = 3\n' * 2),  RefusedError, "gate p95-ms stands twice"),
    "gate of no samples":     (_append('[[gates]]\nname = "p95-ms"\nlimit = 3\nmin_samples = 0\n'), RefusedError, "gate p95-ms has min_samples 0"),
    "unknown gate":           (_append('[[gates]]\nname = "p95-ratio-"\nlimit = 3\n'), RefusedError, "gate p95-ratio- is none that a node can judge; did you mean p95-ratio?"),
    "gate unlike any":        (_append('[[gates]]\nname = "vibes"\nlimit = 3\n'),   RefusedError, "gate vibes is none that a node can judge; known are p95-ms, p99-ms"),
    "more than all fail":     (_append('[[gates]]\nname = "error-share"\nlimit = 5\n'), RefusedError, "gate error-share has limit 5: it is failed requests as a share of all, 0 to 1"),
    "gate below zero":        (_append('[[gates]]\nname = "p99-ms"\nlimit = -1\n'), RefusedError, "gate p99-ms has limit -1"),
    "cold start many times":  (_append('[[gates]]\nname = "cold-start-ms"\nlimit = 9\nmin_samples = 2\n'), RefusedError, "gate cold-start-ms is measured once"),
    "range backwards":        (_append("[compatible.config]\nmin = 3\nmax = 2\n"),   RefusedError, "compatible.config.min 3 exceeds its max 2"),
    "needs a newer agent":    (_release("model =", 'crit = ["teleport"]\nmodel ='),  RefusedError, "crit names teleport, which is no field"),
}
# fmt: on


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_bundle_is_refused_in_one_sentence(tmp_path, bundle, registry, case):
    spoil, family, words = REFUSED[case]
    spoil(bundle)
    with pytest.raises(family) as refused:
        registry.add(bundle, NOW)
    message = str(refused.value)
    assert words.format(f=bundle) in message
    assert "\n" not in message and len(message) < 400 + len(str(bundle))
    assert message[0] in "'/" or message[0].islower() or message.startswith(("golden", "NaN"))
    assert registry.all() == [] and list(registry.objects.list()) == []


def test_a_folder_that_is_none_is_said_to_be_none(tmp_path, registry):
    with pytest.raises(ConfigError, match=r"is not a folder: name the one that holds release\.toml"):
        registry.add(tmp_path / "absent", NOW)


def test_more_files_than_an_offer_can_name_are_refused(bundle):
    for number in range(MAX_FILES):
        (bundle / f"part-{number}.bin").write_bytes(b"x")
    with pytest.raises(RefusedError, match=f"a bundle may hold {MAX_FILES}"):
        pack(bundle)


def test_the_explanation_names_exactly_the_fields_that_release_toml_may_have():
    fields = {row[0] for row in explain()}
    assert fields == set(MEANINGS)

    def names(model, prefix):
        for name, field in model.model_fields.items():
            if name not in COMPUTED:
                inner = table_in(field.annotation)
                many = inner is not None and "tuple" in str(field.annotation)
                shown = prefix + (field.alias or name) + ("[]" if many else "")
                yield shown
                if inner is not None:
                    yield from names(inner, shown + ".")

    assert fields == set(names(Manifest, ""))
    required = {row[0] for row in explain() if row[2] == "required" and "." not in row[0]}
    assert required == {"model", "version", "golden"}, "exactly what packing insists on"
    assert all(row[1] and row[3] for row in explain())


# --- the registry -----------------------------------------------------------------------------------------------------


def test_a_release_is_kept_with_every_file_and_its_manifest(registry, bundle):
    release, packed, is_new = registry.add(bundle, NOW)
    assert is_new and release.name == "digits@1.0.0" and release.digest == manifest_digest(packed.manifest)
    assert registry.manifest(release) == packed.manifest
    for file in packed.manifest.files:
        assert registry.objects.read(file.sha256) == packed.paths[file.name].read_bytes()
        assert registry.blob_length(file.sha256) == file.length
    assert registry.blob_length(release.digest) == release.length
    assert registry.blob_length(sha256(b"something else")) is None


def test_adding_the_same_again_changes_nothing(registry, bundle):
    first, _, _ = registry.add(bundle, NOW)
    again, _, is_new = registry.add(bundle, NOW + 99)
    assert (again, is_new) == (first, False) and registry.all() == [first]


def test_adding_the_same_again_mends_what_has_rotted(registry, bundle):
    release, packed, _ = registry.add(bundle, NOW)
    model = packed.manifest.file("model.tflite").sha256
    rotten = [registry.objects.path(model), registry.objects.path(release.digest)]
    for path in rotten:
        path.write_bytes(b"x" * path.stat().st_size)
    assert registry.add(bundle, NOW)[2] is False
    assert registry.objects.read(model) == packed.paths["model.tflite"].read_bytes()
    assert registry.manifest(release) == packed.manifest


def test_a_release_of_which_a_file_can_not_be_had_in_full_is_told_by_that_file(registry, bundle):
    release, packed, _ = registry.add(bundle, NOW)
    registry.check_whole(release)
    path = registry.objects.path(packed.manifest.file("model.tflite").sha256)
    said = r"model\.tflite of digits@1\.0\.0 is missing on the hub or has rotted there: add the release again"
    path.write_bytes(b"x" * path.stat().st_size)
    for _ in ("rotten", "gone, since what has rotted is moved away"):
        with pytest.raises(RefusedError, match=said):
            registry.check_whole(release)
    registry.add(bundle, NOW)
    registry.check_whole(release)


ADDS_IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from heliograph.objects import ObjectStore
from heliograph_hub.database import Database
from heliograph_hub.registry import Registry
folder = Path(sys.argv[1])
registry = Registry(Database(folder / "hub.sqlite"), ObjectStore(folder / "objects"))
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv[2]),) * 2)
release, packed, _ = registry.add(folder / "bundle", 1)
registry.check_whole(release)
print(packed.manifest.file("model.tflite").length)
"""


def test_the_hub_takes_a_release_in_memory_that_does_not_grow_with_it(tmp_path):
    make_bundle(tmp_path / "bundle")
    with (tmp_path / "bundle" / "model.tflite").open("r+b") as file:
        file.truncate(40 << 20)
    command = [sys.executable, "-c", ADDS_IN_LITTLE_MEMORY, str(tmp_path), str(16 << 20)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == (f"{40 << 20}\n", 0), done.stderr


def test_a_version_never_gets_another_digest(registry, bundle):
    registry.add(bundle, NOW)
    (bundle / "model.tflite").write_bytes(b"another")
    with pytest.raises(RefusedError, match=r"digits@1\.0\.0 exists with digest .* a version never changes"):
        registry.add(bundle, NOW)
    assert len(registry.all()) == 1


def test_releases_are_listed_by_model_and_by_version_as_numbers(tmp_path, registry):
    for version in ("1.10.0", "1.9.0", "1.2.0"):
        registry.add(make_bundle(tmp_path / version, release=RELEASE.replace("1.0.0", version)), NOW)
    assert [r.version for r in registry.all()] == ["1.2.0", "1.9.0", "1.10.0"]
    with pytest.raises(NotFoundError, match=r"no release digits@7\.0\.0"):
        registry.find("digits", "7.0.0")


# --- recipes and ways -------------------------------------------------------------------------------------------------

OLD_MODEL = b"".join(sha256(number.to_bytes(4, "big")) for number in range(10_000))
NEW_MODEL = OLD_MODEL[:100_000] + b"changed!" * 8 + OLD_MODEL[100_064:]


@pytest.fixture
def two(tmp_path, registry):
    old, _, _ = registry.add(make_bundle(tmp_path / "1", model=OLD_MODEL), NOW)
    new, _, _ = registry.add(
        make_bundle(tmp_path / "2", model=NEW_MODEL, release=RELEASE.replace("1.0.0", "1.1.0")), NOW
    )
    return old, new


def _file(registry, release, name):
    return registry.manifest(release).file(name).sha256


def test_the_recipe_of_the_likely_pair_rebuilds_the_new_file_from_kept_objects(registry, two):
    old, new = two
    (pair,) = registry.likely_pairs(new)
    assert pair == (_file(registry, old, "model.tflite"), _file(registry, new, "model.tflite"))
    assert registry.missing_recipes([pair]) == [pair]
    delta = registry.make_recipe(*pair, NOW)
    assert registry.missing_recipes([pair]) == [] and registry.deltas_to(pair[1]) == [delta]
    made = recipe.parse(registry.objects.read(delta.recipe))
    patch = registry.objects.read(delta.patch)
    rebuilt = b"".join(
        rebuild_segment(s, lambda at, count: OLD_MODEL[at : at + count], patch[s.patch[0] : s.patch[0] + s.patch[1]])
        for s in made.segments
    )
    assert rebuilt == NEW_MODEL
    assert registry.blob_length(delta.recipe) == delta.recipe_length
    assert registry.blob_length(delta.patch) == delta.patch_length


def test_a_release_without_a_predecessor_has_no_likely_pair(registry, two):
    assert registry.likely_pairs(two[0]) == []


def test_the_delta_is_offered_where_it_costs_less_and_full_always(registry, two):
    old, new = two
    manifest = registry.manifest(new)
    base, target = _file(registry, old, "model.tflite"), _file(registry, new, "model.tflite")
    delta = registry.make_recipe(base, target, NOW)
    held = [file.sha256 for file in registry.manifest(old).files]
    ways = registry.ways(manifest, held)
    assert [(way.kind, way.blob) for way in ways] == [("delta", target), ("full", target)]
    assert ways[0].bytes == delta.recipe_length + transfer_bytes(delta.patch_length) < ways[1].bytes
    assert ways[1].bytes == len(NEW_MODEL) + 16 * -(-len(NEW_MODEL) // 4096)
    assert (ways[0].base, ways[0].recipe.sha256) == (base, delta.recipe)
    assert {way.blob for way in registry.ways(manifest, []) if way.kind == "full"} == {f.sha256 for f in manifest.files}
    assert all(way.kind == "full" for way in registry.ways(manifest, [])), "no base is held, so no delta is offered"


def test_a_delta_that_costs_as_much_as_full_or_more_is_not_offered(tmp_path, registry):
    unlike = [b"".join(sha256(bytes([n, i % 256, i // 256])) for i in range(2000)) for n in (1, 2)]
    old, _, _ = registry.add(make_bundle(tmp_path / "1", model=unlike[0]), NOW)
    release = RELEASE.replace("1.0.0", "1.1.0")
    new, _, _ = registry.add(make_bundle(tmp_path / "2", model=unlike[1], release=release), NOW)
    (pair,) = registry.likely_pairs(new)
    delta = registry.make_recipe(*pair, NOW)
    assert delta.cost_bytes >= transfer_bytes(len(unlike[1]))
    held = [file.sha256 for file in registry.manifest(old).files]
    assert [way.kind for way in registry.ways(registry.manifest(new), held)] == ["full"]


def test_pairs_are_made_only_from_files_of_the_same_name_and_model(tmp_path, registry, two):
    _, new = two
    other, _, _ = registry.add(
        make_bundle(tmp_path / "3", model=b"other" * 100, release=RELEASE.replace("digits", "faces")), NOW
    )
    foreign = [sha256(b"never seen"), *(file.sha256 for file in registry.manifest(other).files)]
    assert registry.pairs(new, foreign) == []


def test_a_rotten_base_makes_no_recipe_and_says_which(registry, two):
    (pair,) = registry.likely_pairs(two[1])
    registry.objects.path(pair[0]).write_bytes(b"rotten")
    with pytest.raises(HeliographError, match=f"object {pair[0].hex()} is missing or has rotted"):
        registry.make_recipe(*pair, NOW)


def test_the_ways_of_the_largest_bundle_fit_an_offer(tmp_path, registry):
    folders = []
    for n, version in enumerate(("1.0.0", "1.1.0")):
        folder = make_bundle(tmp_path / version, release=RELEASE.replace("1.0.0", version))
        for part in range(MAX_FILES - 4):
            (folder / f"part-{part}.bin").write_bytes(b"common" * 200 + bytes([n, part % 256, part // 256]))
        folders.append(folder)
    old, _, _ = registry.add(folders[0], NOW)
    new, _, _ = registry.add(folders[1], NOW)
    for pair in registry.likely_pairs(new)[:40]:
        registry.make_recipe(*pair, NOW)
    ways = registry.ways(registry.manifest(new), [file.sha256 for file in registry.manifest(old).files])
    assert sum(len(way.encode()) for way in ways) <= MAX_WAYS_BYTES
    assert sum(way.kind == "full" for way in ways) == MAX_FILES - 4
