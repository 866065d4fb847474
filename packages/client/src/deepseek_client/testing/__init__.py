"""For tests of programs that use this SDK: a scripted server that answers, streams, fails and breaks as real ones do.

`FakeServer` listens on a real socket, or answers in process; `deepseek_server` is the pytest fixture of it, which
every test run has where this package is installed.

    def test_my_program(deepseek_server):
        deepseek_server.script(*storm(2), answer("Hello"))
        assert my_program(base_url=deepseek_server.url) == "Hello"
        assert deepseek_server.requests[-1].json["messages"][0]["content"] == "Hi"
"""

from typing import TYPE_CHECKING

from deepseek_client.testing.answers import (
    answer,
    blank,
    chat_chunk,
    chat_completion,
    completion,
    cut,
    drop,
    error,
    events,
    flat_error,
    generation,
    html,
    keep_alives,
    models,
    reply,
    silence,
    slowly,
    storm,
    text_chunk,
)
from deepseek_client.testing.connection import Connection, Handler, Request
from deepseek_client.testing.recording import record, replay
from deepseek_client.testing.server import FakeServer

if TYPE_CHECKING:
    from deepseek_client.pytest_plugin import deepseek_server

__all__ = [
    "Connection",
    "FakeServer",
    "Handler",
    "Request",
    "answer",
    "blank",
    "chat_chunk",
    "chat_completion",
    "completion",
    "cut",
    "deepseek_server",
    "drop",
    "error",
    "events",
    "flat_error",
    "generation",
    "html",
    "keep_alives",
    "models",
    "record",
    "replay",
    "reply",
    "silence",
    "slowly",
    "storm",
    "text_chunk",
]


def __getattr__(name: str) -> object:
    if name == "deepseek_server":  # only this needs pytest
        from deepseek_client.pytest_plugin import deepseek_server

        return deepseek_server
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
