"""The pytest plugin: the fixture `deepseek_server`. Each test run loads it, so it imports nothing before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deepseek_client.testing.server import FakeServer


@pytest.fixture
def deepseek_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A scripted server on a socket, which DEEPSEEK_BASE_URL and DEEPSEEK_API_KEY point to while the test runs."""
    from deepseek_client.testing.server import FakeServer

    with FakeServer() as server:
        monkeypatch.setenv("DEEPSEEK_BASE_URL", server.url)
        monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-test")
        monkeypatch.delenv("DEEPSEEK_MODEL", raising=False)
        yield server
