"""The hub that every test of faults begins with."""

from pathlib import Path

import pytest

from rigs import prepare


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("prepared") / "realm")
