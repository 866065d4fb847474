"""Servers of other makers as they look on the wire: vLLM, SGLang and DeepSeek's cloud, by recorded answers.

They have no `/ready`, no `/v1/generate` and no abort; usage comes at the end only.
"""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.types import Receive, Scope, Send

from deepseek_gateway.edge.body import read_body
from deepseek_gateway.edge.respond import end_stream, send_body, send_part, start_stream

Maker = Literal["vllm", "sglang", "deepseek-cloud"]

PROMPT_TOKENS = 7
MAX_BODY_BYTES = 2**24


@dataclass(slots=True)
class OtherServer:
    """One server. It answers with `num_words` words; a closed `gate` holds back each of them.

    Attributes:
        unknown: models that it refuses, though it may list them.
        waiting: requests that it says wait in its queue.
        bodies: what it was sent; `headers` likewise.
        num_cut: connections that were cut while it answered.
    """

    maker: Maker
    models: tuple[str, ...] = ("org/model",)
    api_key: str | None = None
    unknown: tuple[str, ...] = ()
    num_words: int = 3
    waiting: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    bodies: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    paths: list[str] = field(default_factory=list[str])
    num_cut: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request."""
        path, headers = scope["path"], {name.decode(): value.decode() for name, value in scope["headers"]}
        is_cloud = self.maker == "deepseek-cloud"
        if path == "/health" and not is_cloud:
            await send_body(send, 200, b"")
        elif path == "/metrics" and not is_cloud:
            await send_body(send, 200, self._metrics(), b"text/plain; version=0.0.4")
        elif self.api_key is not None and headers.get("authorization") != f"Bearer {self.api_key}":
            await send_body(send, 401, b'{"error":{"message":"Unauthorized"}}')
        elif path == "/v1/models":
            data = [{"id": name, "object": "model", "owned_by": self.maker} for name in self.models]
            await send_body(send, 200, json.dumps({"object": "list", "data": data}).encode())
        elif path in {"/v1/chat/completions", "/beta/completions", "/v1/completions"}:
            body = json.loads(await read_body(scope, receive, MAX_BODY_BYTES, 10))
            self.bodies.append(body)
            self.headers.append(headers)
            self.paths.append(path)
            if body.get("model") in self.unknown:
                await send_body(send, 404, self._unknown(body["model"]))
                return
            await (self._stream(body, receive, send) if body.get("stream") else self._answer(body, send))
        else:
            await send_body(send, 404, b'{"detail":"Not Found"}')

    def _unknown(self, model: str) -> bytes:
        message = f"Model `{model}` does not exist. Use {model} elsewhere, not {model}-mini."
        return json.dumps({"error": {"message": message, "type": "invalid_request_error", "param": "model"}}).encode()

    def _metrics(self) -> bytes:
        names = {
            "sglang": ("num_running_reqs", "num_queue_reqs"),
            "vllm": ("num_requests_running", "num_requests_waiting"),
        }
        running, waiting = names[self.maker]
        label = '{engine="0",model_name="m"}'
        return f"{self.maker}:{running}{label} 0.0\n{self.maker}:{waiting}{label} {self.waiting}\n".encode()

    async def _answer(self, body: dict[str, Any], send: Send) -> None:
        await self.gate.wait()
        message = {"role": "assistant", "content": " ".join(self._words()), "reasoning_content": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        answer = {**self._head(body, "chat.completion"), "choices": [choice], "usage": self._usage(self.num_words)}
        idle = b"\n\n" if self.maker == "deepseek-cloud" else b""  # it sends empty lines while it queues
        await send_body(send, 200, idle + json.dumps(answer, separators=(",", ":")).encode())

    async def _stream(self, body: dict[str, Any], receive: Receive, send: Send) -> None:
        await start_stream(send, {})
        if self.maker == "deepseek-cloud":
            await send_part(send, b": keep-alive\n\n")
        gone = asyncio.create_task(_until_gone(receive))
        try:
            for word in [None, *self._words()]:
                waiting = asyncio.create_task(self.gate.wait())
                await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if gone.done():
                    self.num_cut += 1
                    return
                delta = {"role": "assistant", "content": ""} if word is None else {"content": word}
                await self._send(send, body, delta, None, None)
            await self._finish(body, send)
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    async def _finish(self, body: dict[str, Any], send: Send) -> None:
        """Usage in a chunk of its own for vLLM and SGLang, with the finish_reason for the cloud."""
        options: dict[str, Any] = body.get("stream_options") or {}
        wants_usage = options.get("include_usage")
        usage = self._usage(self.num_words)
        await self._send(send, body, {"content": ""}, "stop", usage if self.maker == "deepseek-cloud" else None)
        if wants_usage and self.maker != "deepseek-cloud":
            chunk: dict[str, Any] = {**self._head(body, "chat.completion.chunk"), "choices": [], "usage": usage}
            await send_part(send, _event(chunk))
        await send_part(send, b"data: [DONE]\n\n")
        await end_stream(send)

    async def _send(
        self, send: Send, body: dict[str, Any], delta: dict[str, Any], finish: str | None, usage: dict[str, Any] | None
    ) -> None:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        if self.maker == "sglang":
            choice["matched_stop"] = None
        chunk: dict[str, Any] = {**self._head(body, "chat.completion.chunk"), "choices": [choice]}
        if self.maker == "sglang" or usage is not None:
            chunk["usage"] = usage
        await send_part(send, _event(chunk))

    def _words(self) -> list[str]:
        return [f"w{number}" for number in range(1, self.num_words + 1)]

    def _head(self, body: dict[str, Any], kind: str) -> dict[str, Any]:
        head = {"id": "chatcmpl-1", "object": kind, "created": 1764000000, "model": body["model"]}
        return {**head, "system_fingerprint": "fp_1"} if self.maker == "deepseek-cloud" else head

    def _usage(self, words: int) -> dict[str, Any]:
        usage: dict[str, Any] = {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS + words}
        usage["completion_tokens"] = words
        if self.maker == "deepseek-cloud":
            usage |= {"prompt_cache_hit_tokens": 0, "prompt_cache_miss_tokens": PROMPT_TOKENS}
        else:
            usage["prompt_tokens_details"] = None
        return usage


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
