"""The pytest fixture. In a conftest.py: `from deepseek_client.testing import deepseek_server`."""

from collections.abc import Iterator

import pytest

from deepseek_client.testing.server import FakeServer


@pytest.fixture
def deepseek_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A scripted server on a socket, which DEEPSEEK_BASE_URL and DEEPSEEK_API_KEY point to while the test runs."""
    with FakeServer() as server:
        monkeypatch.setenv("DEEPSEEK_BASE_URL", server.url)
        monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-test")
        monkeypatch.delenv("DEEPSEEK_MODEL", raising=False)
        yield server
