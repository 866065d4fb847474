"""One streamed request and the times of its events.

aiohttp, as in vLLM's and SGLang's benchmarks: of the well-kept clients it costs the least time per event, and what the
client costs would be counted as the server's.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import msgspec

from deepseek_client.sse import SSEError, SSEParser
from deepseek_engine.bench.serving.prompts import Prompt
from deepseek_engine.bench.serving.record import Record

PATHS: Final = {"chat": "/chat/completions", "completions": "/completions"}
_ERROR_BYTES: Final = 2000
_from_json: Final = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, and what all of them say.

    Attributes:
        base_url: with its `/v1`, where the server has one.
        endpoint: `chat` or `completions`.
        model: the request's `model`; None leaves it out.
        extra: further fields of the body.
        timeout_s: of one request, from sending it.
    """

    base_url: str
    endpoint: str
    model: str | None
    api_key: str | None
    extra: dict[str, Any]
    timeout_s: float

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        return {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """The JSON body of a request."""
        content = (
            {"messages": [{"role": "user", "content": prompt.content}]}
            if self.endpoint == "chat"
            else {"prompt": prompt.content}
        )
        model = {} if self.model is None else {"model": self.model}
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        return {**model, **content, "max_tokens": prompt.max_tokens, **stream, **self.extra}


class LoadClient:
    """Sends requests, as many at once as it is asked to.

    Args:
        session: without limits of its own.
        target: where to.
        now: seconds since the start.
    """

    def __init__(self, session: aiohttp.ClientSession, target: Target, now: Callable[[], float]) -> None:
        self._session = session
        self._target = target
        self._now = now

    async def send(self, prompt: Prompt, record: Record) -> None:
        """Send one request and read its answer; every failure ends up in the record."""
        record.sent_s = self._now()
        try:
            async with asyncio.timeout(self._target.timeout_s):
                await self._exchange(prompt, record)
        except TimeoutError:
            record.fail("timeout", f"no whole answer within {self._target.timeout_s:g} s")
        except aiohttp.ClientConnectorError as error:
            record.fail("cannot connect", error)
        except aiohttp.ClientError as error:
            record.fail("connection lost", repr(error))
        except (SSEError, msgspec.DecodeError, ValueError, LookupError, TypeError, AttributeError) as error:
            record.fail("unreadable answer", repr(error))
        finally:
            record.end_s = self._now()

    async def _exchange(self, prompt: Prompt, record: Record) -> None:
        target = self._target
        url = target.base_url + PATHS[target.endpoint]
        async with self._session.post(url, json=target.body(prompt), headers=target.headers) as response:
            if response.status != 200:
                body = await response.content.read(_ERROR_BYTES)
                record.fail(f"HTTP {response.status}", body.decode(errors="replace"))
                return
            reading = _AnswerReading(record)
            parser = SSEParser()
            async for chunk in response.content.iter_any():
                came_s = self._now()
                for event in parser.feed(chunk):
                    reading.take(event.event, event.data, came_s)
            reading.end()


class _AnswerReading:
    """What a stream's events say about its record."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._finish_reason: str | None = None

    def take(self, name: str, data: str, came_s: float) -> None:
        """One event."""
        if data == "[DONE]":
            return
        chunk = _from_json(data)
        if name == "error" or chunk.get("error"):
            self._record.fail("error in stream", data)
            return
        choices = chunk.get("choices") or ()
        for choice in choices:
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
        if any(map(_has_text, choices)):
            self._record.token_s.append(came_s)
        if usage := chunk.get("usage"):
            self._record.prompt_tokens = usage["prompt_tokens"]
            self._record.output_tokens = usage["completion_tokens"]
            self._record.is_counted = True

    def end(self) -> None:
        """The stream has ended: was the answer whole?"""
        record = self._record
        if self._finish_reason is None:
            record.fail("cut off", "the stream ended without a finish_reason")
        elif self._finish_reason in ("abort", "error"):
            record.fail(f"finish_reason {self._finish_reason}")
        elif not record.token_s:
            record.fail("empty answer", "no event had text")
        if not record.is_counted:
            record.output_tokens = len(record.token_s)


def _has_text(choice: dict[str, Any]) -> bool:
    """Whether a choice of an event brings anything; the first event of a chat only says who speaks."""
    delta = choice.get("delta")
    if delta is None:
        return bool(choice.get("text"))
    return any(delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls"))


async def first_model(session: aiohttp.ClientSession, base_url: str, headers: dict[str, str]) -> str | None:
    """The first model that the server lists; None if it has no such list.

    Raises:
        OSError: it cannot be reached.
    """
    async with session.get(f"{base_url}/models", headers=headers) as response:
        if response.status != 200:
            return None
        models = await response.json(content_type=None)
    return models["data"][0]["id"] if models.get("data") else None
