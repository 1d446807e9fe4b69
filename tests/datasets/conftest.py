"""The scripts in datasets/ are no package: they find each other because Python puts a script's folder on its path."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "datasets"
if str(SCRIPTS) not in sys.path:
    sys.path.append(str(SCRIPTS))

from tests.datasets.server import FileServer  # noqa: E402


@pytest.fixture(autouse=True)
def direct_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        yield running
