"""What is refused before the token is spent."""

import asyncio
from pathlib import Path
from random import Random

import pytest

from heliograph.errors import ConfigError
from heliograph_site.folder import JoinString
from heliograph_site.joining import join


def test_a_folder_that_can_not_be_made_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    # No hub answers there: who sent anything would have to say so.
    string = JoinString("127.0.0.1", 1, "demo", "lab", "n1", b"t" * 32, b"r" * 32)
    with pytest.raises(ConfigError, match=r"node can't be made .*: choose a folder you may write to"):
        asyncio.run(join(string, tmp_path / "file" / "node", 0, Random(1)))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
