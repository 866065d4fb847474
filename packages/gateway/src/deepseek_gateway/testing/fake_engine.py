"""The fake engine: an ASGI app that follows scripts, counts its own truth, and obeys aborts.

`python -m deepseek_gateway.testing --uds PATH` runs it as a process, with the main flags of the engine.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.types import Receive, Scope, Send

from deepseek_client.sse import DONE, encode_event
from deepseek_client.types import error_body
from deepseek_gateway.edge.body import read_body
from deepseek_gateway.edge.respond import end_stream, send_body, send_part, start_stream
from deepseek_gateway.ledger.records import TokenCounts
from deepseek_gateway.testing.dialects import Wire, compact, usage_json
from deepseek_gateway.testing.script import Script

DEFAULT_TOKENS = 8
MAX_BODY_BYTES = 64 * 2**20


class BrokenConnectionError(Exception):
    """The script breaks the connection here; the server drops it without an end."""


@dataclass(slots=True)
class Job:
    """One running request."""

    request_id: str
    script: Script
    wire: Wire
    body: dict[str, Any]
    headers: dict[str, str]
    prompt_tokens: int
    num_words: int
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    finish: str | None = None
    has_started: bool = False
    num_sent: int = 0

    @property
    def counts(self) -> TokenCounts:
        """Tokens used by now: nothing before the request began."""
        if not self.has_started:
            return TokenCounts()
        return TokenCounts(self.prompt_tokens, self.num_sent, min(self.script.cached_tokens, self.prompt_tokens))

    def end(self, reason: str) -> None:
        """End early; the first reason stands."""
        if self.finish is None:
            self.finish = reason
            self.ended.set()


@dataclass(frozen=True, slots=True)
class Finished:
    """One request that is over, as the engine counted it; `user` is the body's, by which a test knows it again."""

    request_id: str
    counts: TokenCounts
    finish: str | None
    user: str | None = None


class FakeEngine:
    """The app, and what a test asks of it afterwards.

    Args:
        models: names that it serves; others are 404. The first is the default.
        api_key: bearer key that it asks for.
        delay_s: seconds before each word, for scripts that do not say. `script` is that of requests that bring none.
    """

    def __init__(
        self, models: tuple[str, ...] = ("fake-model",), api_key: str | None = None, delay_s: float = 0.0
    ) -> None:
        self.models = models
        self.api_key = api_key
        self.delay_s = delay_s
        self.script: dict[str, Any] = {}
        self.is_ready = True
        self.others = 0  # requests of other gateways that it says it has
        self.lacks: set[str] = set()
        self.running: dict[str, Job] = {}
        self.finished: list[Finished] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.num_aborts = 0
        self.changed = asyncio.Condition()
        self._gate = asyncio.Semaphore(0)

    @property
    def truth(self) -> TokenCounts:
        """Tokens of all finished requests: what must be billed."""
        return TokenCounts(
            sum(done.counts.prompt for done in self.finished),
            sum(done.counts.completion for done in self.finished),
            sum(done.counts.cached for done in self.finished),
        )

    def allow(self, words: int = 1) -> None:
        """Let gated requests go on by so many words, together."""
        for _ in range(words):
            self._gate.release()

    async def until_running(self, number: int = 1) -> None:
        """Wait until so many requests are running."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.running) >= number)

    async def until_finished(self, number: int = 1) -> None:
        """Wait until so many requests are over."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.finished) >= number)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request."""
        path = scope["path"].removeprefix("/v1").removeprefix("/beta").strip("/")
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        if path in {"health", "ready", "version"}:
            status = 200 if self.is_ready or path != "ready" else 503
            await send_body(send, status, b"{}")
        elif path == "metrics":
            await send_body(send, 200, self._metrics(), b"text/plain")
        elif path == "fake/truth":
            await send_body(send, 200, compact(usage_json(self.truth)))
        elif path.startswith("fake/allow/"):
            self.allow(int(path.rpartition("/")[2]))
            await send_body(send, 200, b"{}")
        elif self.api_key is not None and headers.get("authorization") != f"Bearer {self.api_key}":
            await _refuse(send, 401, "wrong key")
        elif path == "models":
            data = [{"id": name, "object": "model", "owned_by": "fake"} for name in self.models]
            await send_body(send, 200, compact({"object": "list", "data": data}))
        elif path.startswith("requests/"):
            await self._abort(path.split("/")[1], send)
        elif path in self.lacks:
            await send_body(send, 404, b'{"detail":"Not Found"}')
        elif path in {"embeddings", "tokenize", "detokenize"}:
            await self._aside(path, headers, scope, receive, send)
        else:
            await self._generate(path, headers, scope, receive, send)

    def _metrics(self) -> bytes:
        truth = self.truth
        return (
            f"deepseek_engine_requests_running {len(self.running) + self.others}\n"
            "deepseek_engine_requests_waiting 0\n"
            f"deepseek_engine_prompt_tokens_total {truth.prompt}\n"
            f"deepseek_engine_generation_tokens_total {truth.completion}\n"
        ).encode()

    async def _abort(self, request_id: str, send: Send) -> None:
        self.num_aborts += 1
        job = self.running.get(request_id)
        if job is not None and job.script.deaf:
            await _refuse(send, 404, "no such page")
            return
        if job is not None:
            job.end("abort")
        await send_body(send, 200, compact({"id": request_id, "aborted": job is not None}))

    async def _aside(self, path: str, headers: dict[str, str], scope: Scope, receive: Receive, send: Send) -> None:
        """What is no generation: words are tokens, and a vector has a word's length and its place."""
        body = cast("dict[str, Any]", json.loads(await read_body(scope, receive, MAX_BODY_BYTES, 60)))
        self.bodies.append(body)
        self.headers.append(headers)
        self.paths.append(scope["path"])
        if path == "detokenize":
            await send_body(send, 200, compact({"prompt": " ".join(f"w{token}" for token in body["tokens"])}))
            return
        given = body.get("input") or body.get("prompt") or body.get("messages")
        words = (given if isinstance(given, str) else json.dumps(given)).split()
        if path == "tokenize":
            await send_body(send, 200, compact({"count": len(words), "tokens": list(range(len(words)))}))
            return
        counts = TokenCounts(len(words), 0, 0)
        self.finished.append(Finished(headers.get("x-request-id", "-"), counts, "embed"))
        data = [{"object": "embedding", "index": 0, "embedding": [float(len(word)) for word in words]}]
        answer = {"object": "list", "data": data, "model": self.models[0], "usage": usage_json(counts)}
        await send_body(send, 200, compact(answer))

    async def _generate(self, path: str, headers: dict[str, str], scope: Scope, receive: Receive, send: Send) -> None:
        body = cast("dict[str, Any]", json.loads(await read_body(scope, receive, MAX_BODY_BYTES, 60)))
        self.bodies.append(body)
        self.headers.append(headers)
        script = Script.read({"fake": self.script, **body}, self.delay_s)
        model = body.get("model") or self.models[0]
        if script.status is not None:
            await _refuse(send, script.status, "the script says so")
            return
        if model not in self.models:
            await _refuse(send, 404, f"no model {model}", code="model_not_found")
            return
        job = self._job(path, headers, body, script, model)
        self.running[job.request_id] = job
        await self._notify()
        watching = asyncio.create_task(_watch(receive, job))
        try:
            await (self._stream(job, send) if body.get("stream") else self._answer(job, send))
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            self._close(job)
            await self._notify()

    def _job(self, path: str, headers: dict[str, str], body: dict[str, Any], script: Script, model: str) -> Job:
        wanted = body.get("max_tokens") or DEFAULT_TOKENS
        given = len(script.deltas) or len(script.pieces)
        prompt = json.dumps(body.get("prompt") or body.get("messages"))
        return Job(
            request_id=headers.get("x-request-id", f"fake-{len(self.bodies)}"),
            script=script,
            wire=Wire(path, f"gen-{len(self.bodies)}", model, tuple(script.deltas)),
            body=body,
            headers=headers,
            prompt_tokens=len(prompt.split()) if script.prompt_tokens is None else script.prompt_tokens,
            num_words=given or (min(wanted, DEFAULT_TOKENS) if script.tokens is None else script.tokens),
        )

    def _close(self, job: Job) -> None:
        if self.running.pop(job.request_id, None) is not None:
            self.finished.append(Finished(job.request_id, job.counts, job.finish, job.body.get("user")))

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _words(self, job: Job) -> AsyncIterator[str]:
        """Words until the answer is complete or ended."""
        if job.script.queued:
            await _unless_ended(job, self._gate.acquire())
        job.has_started = not job.ended.is_set()
        while not job.ended.is_set() and job.num_sent < job.num_words:
            wait = self._gate.acquire() if job.script.gated else asyncio.sleep(job.script.delay_s)
            await _unless_ended(job, wait)
            if job.ended.is_set():
                break
            if job.script.cut_after is not None and job.num_sent >= job.script.cut_after:
                job.end("cut")
                raise BrokenConnectionError
            job.num_sent += 1
            pieces = job.script.pieces
            made = f"w{job.num_sent} ".ljust(job.script.word_bytes, "x")
            yield pieces[job.num_sent - 1] if pieces else made
        is_whole = job.num_sent < (job.body.get("max_tokens") or job.num_sent + 1)
        job.end(job.script.finish or ("stop" if is_whole else "length"))

    async def _answer(self, job: Job, send: Send) -> None:
        try:
            words = [word async for word in self._words(job)]
        except BrokenConnectionError:
            length = (b"content-length", b"1000")
            await send({"type": "http.response.start", "status": 200, "headers": [length]})
            await send_part(send, b'{"id": ')
            raise
        self._close(job)
        answer = job.wire.whole("".join(words), job.finish or "stop", usage_json(job.counts))
        await send_body(send, 200, compact(answer), headers={"x-request-id": job.request_id})

    async def _stream(self, job: Job, send: Send) -> None:
        options: dict[str, Any] = job.body.get("stream_options") or {}
        continuous = options.get("continuous_usage_stats") is True and not job.script.foreign
        await start_stream(send, {"x-request-id": job.request_id})

        async def emit(chunk: dict[str, Any], *, with_usage: bool) -> None:
            if with_usage and job.script.foreign:
                chunk = {"usage": usage_json(job.counts), **chunk}
            elif with_usage:
                chunk = {**chunk, "usage": usage_json(job.counts)}
            await send_part(send, encode_event(compact(chunk)))

        if (opening := job.wire.opening()) is not None:
            await emit(opening, with_usage=continuous)
        async for word in self._words(job):
            await emit(job.wire.word(word, None), with_usage=continuous)
            if job.num_sent == job.script.error_after:
                job.end("error")
                await send_part(send, encode_event(_error(500, "the script says so"), event="error"))
                await end_stream(send)
                return
        self._close(job)
        is_last = job.wire.trailer() is None or job.script.foreign
        await emit(job.wire.word("", job.finish), with_usage=continuous or is_last)
        trailer = job.wire.trailer()
        if trailer is not None and options.get("include_usage") and not job.script.foreign:
            await emit(trailer, with_usage=True)
        await send_part(send, DONE)
        await end_stream(send)


async def _unless_ended(job: Job, wait: Awaitable[object]) -> None:
    """Wait, but not longer than the job lasts."""
    waiting, ended = asyncio.ensure_future(wait), asyncio.ensure_future(job.ended.wait())
    try:
        await asyncio.wait({waiting, ended}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        ended.cancel()


async def _watch(receive: Receive, job: Job) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    job.end("disconnect")


async def _refuse(send: Send, status: int, message: str, code: str | None = None) -> None:
    await send_body(send, status, _error(status, message, code))


def _error(status: int, message: str, code: str | None = None) -> bytes:
    return error_body(status, message, code=code).model_dump_json().encode()
