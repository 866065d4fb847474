"""A stack of fake engine, gateway and caller for each test."""

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deepseek_gateway.testing.stack import Stack, running_stack


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own GATEWAY_* variables must not reach the tests."""
    for name in list(os.environ):
        if name.startswith("GATEWAY_"):
            monkeypatch.delenv(name)


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A short path: unix sockets allow about 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="gw-") as folder:
        yield Path(folder) / "state"


@pytest.fixture
async def stack(state_dir: Path) -> AsyncIterator[Stack]:
    async with running_stack(state_dir, upstream_probe_s=0.05) as running:
        yield running
