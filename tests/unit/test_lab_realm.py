"""A realm of processes on this machine, as far as it can be looked at without starting any."""

from pathlib import Path

import pytest

from heliograph.errors import RefusedError
from heliograph.lab.realm import Realm

TOKEN = "heliograph1:secret"


class Recorded(Realm):
    """Types nothing, and remembers what it would have typed."""

    def cli(self, *args: str | Path, stdin: str = "") -> str:
        self.typed = [*getattr(self, "typed", []), (" ".join(map(str, args)), stdin)]
        return f"{TOKEN}\n"


def test_the_join_string_is_never_an_argument(tmp_path: Path) -> None:
    realm = Recorded(tmp_path)
    realm.join("shop/till")
    assert not any(TOKEN in arguments for arguments, _ in realm.typed)
    assert TOKEN in realm.typed[-1][1]


def test_a_command_reads_what_it_is_given(tmp_path: Path) -> None:
    realm = Realm(tmp_path)
    with pytest.raises(RefusedError, match=r"node join ended with 2: .*the join string is damaged"):
        realm.cli("node", "join", "-", tmp_path / "node", stdin=f"{TOKEN}\n")
