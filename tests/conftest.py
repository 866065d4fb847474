"""Real processes for end-to-end tests: an engine on a tiny checkpoint, and a whole stack."""

import signal
from collections.abc import Generator

import pytest

from deepseek_engine.testing.checkpoints import write_tiny_checkpoint
from processes import STOP_TIMEOUT_S, Server, Stack, program, start_stack


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def stack(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack]:
    """The whole stack on the tiny model; it must stop with status 0."""
    stack = start_stack(tmp_path_factory.mktemp("state"), tiny_model)
    yield stack
    with stack.process:
        stack.process.send_signal(signal.SIGTERM)
        assert stack.process.wait(STOP_TIMEOUT_S) == 0


@pytest.fixture(scope="module")
def engine(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    """An engine on a port of its own, to be asked directly."""
    log = tmp_path_factory.mktemp("engine") / "log"
    server = Server([program("deepseek-server"), "--model-path", tiny_model, "--port", "0"], log)
    server.start()
    server.url()
    yield server
    assert server.stop() == 0
