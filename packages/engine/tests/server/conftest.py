"""Servers on real sockets: over a scripted engine, which does what a test says when it says it, and over a real core
process with the fake runner."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import pytest_asyncio

from deepseek_client.sse import ServerSentEvent, SSEParser
from deepseek_engine.async_engine import AsyncEngine
from deepseek_engine.config import EngineConfig
from deepseek_engine.core_watch import CoreVitals
from deepseek_engine.errors import EngineDeadError
from deepseek_engine.lora.directory import AdapterDirectory
from deepseek_engine.messages import Delta, EngineStats, Ready, Submit, TokenLogprobs, TopLogprob
from deepseek_engine.request import max_total_tokens
from deepseek_engine.server.lifecycle import Lifecycle
from deepseek_engine.server.listener import bind_socket, describe_socket
from deepseek_engine.server.settings import ServerSettings
from deepseek_engine.server.state import ServerState
from deepseek_engine.testing.checkpoints import TinyModel, write_tiny_checkpoint
from deepseek_engine.tokenizer import Tokenizer, load_tokenizer

CONTEXT = 1024
DEADLINE_S = 30.0


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer("smollm2")


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait until it holds; fails after a deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not holds():  # noqa: ASYNC110 - what is waited for belongs to the server, which has no event for it
            await asyncio.sleep(0.005)


class ScriptedStream:
    def __init__(self) -> None:
        self.queue: asyncio.Queue[list[Delta] | Exception | None] = asyncio.Queue()
        self.num_unfinished = 0

    def __aiter__(self) -> "ScriptedStream":
        return self

    async def __anext__(self) -> list[Delta]:
        item = await self.queue.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        self.num_unfinished = 0


@dataclass
class ScriptedEngine:
    """Answers each request with the tokens of `answer`, or waits for the test to `emit` if that is None."""

    tokenizer: Tokenizer
    answer: str | None = None
    submits: list[Submit] = field(default_factory=list)
    cancels: list[tuple[str, int | None]] = field(default_factory=list)
    error: Exception | None = None
    is_alive: bool = True

    def __post_init__(self) -> None:
        self.adapters = AdapterDirectory(lambda message: None)
        self.vitals = CoreVitals()
        self.num_dumps_asked_for = 0
        self.streams: dict[str, ScriptedStream] = {}
        self.dead = asyncio.Event()
        self.info = Ready(
            max_model_len=CONTEXT, vocab_size=49152, num_blocks=64, block_size=16, dtype="float32", device="cpu",
            weight_bytes=0, kv_cache_bytes=0, load_s=0.0,
        )  # fmt: skip
        self.stats = EngineStats(
            num_running=1, num_waiting=2, num_free_blocks=60, num_blocks=64, num_preemptions=3, num_steps=4
        )

    def submit(self, submit: Submit, /) -> ScriptedStream:
        if not self.is_alive:
            raise EngineDeadError("the core died")
        if self.error is not None:
            raise self.error
        max_total_tokens(submit, self.info)
        self.submits.append(submit)
        stream = self.streams[submit.request_id] = ScriptedStream()
        stream.num_unfinished = submit.params.n
        if self.answer is not None:
            self.play(submit, self.answer)
        return stream

    def cancel(self, request_id: str, index: int | None = None) -> bool:
        self.cancels.append((request_id, index))
        stream = self.streams.get(request_id)
        if stream is None or not stream.num_unfinished:
            return False
        indices = range(stream.num_unfinished) if index is None else [index]
        for each in indices:
            self.emit(request_id, (), finish_reason="abort", index=each, prompt=0)
        return True

    def emit(
        self,
        request_id: str,
        token_ids: tuple[int, ...] = (),
        *,
        index: int = 0,
        finish_reason: Any = None,
        prompt: int | None = None,
        **rest: Any,
    ) -> None:
        submit = next(each for each in self.submits if each.request_id == request_id)
        stream = self.streams[request_id]
        logprobs = None
        if submit.params.logprobs is not None:
            logprobs = tuple(
                TokenLogprobs(-0.5, (TopLogprob(i, -0.5), TopLogprob(0, -float("inf")))) for i in token_ids
            )
        num_prompt_tokens = len(submit.prompt_token_ids) if prompt is None else prompt
        delta = Delta(
            request_id=request_id, index=index, token_ids=token_ids, logprobs=logprobs, finish_reason=finish_reason,
            num_prompt_tokens=num_prompt_tokens, **rest,
        )  # fmt: skip
        stream.queue.put_nowait([delta])
        if finish_reason is not None:
            stream.num_unfinished -= 1
            if stream.num_unfinished <= 0:
                stream.queue.put_nowait(None)

    def emit_text(self, text: str, **rest: Any) -> None:
        """The text's tokens for the latest request, in one step."""
        self.emit(self.submits[-1].request_id, tuple(self.tokenizer.encode(text)), **rest)

    def play(self, submit: Submit, answer: str) -> None:
        ids = self.tokenizer.encode(answer)[: submit.params.max_tokens]
        is_cut = submit.params.max_tokens == len(ids)
        for index in range(submit.params.n):
            for token_id in ids[:-1] if is_cut else ids:
                self.emit(submit.request_id, (token_id,), index=index)
            if is_cut:
                self.emit(submit.request_id, (ids[-1],), index=index, finish_reason="length")
            else:
                self.emit(submit.request_id, (2,), index=index, finish_reason="stop", stop_token_id=2)

    def die(self) -> None:
        self.is_alive = False
        for stream in self.streams.values():
            stream.queue.put_nowait(EngineDeadError("the core died"))
        self.dead.set()

    def dump_state(self) -> None:
        self.num_dumps_asked_for += 1

    async def wait_dead(self) -> None:
        await self.dead.wait()

    async def shutdown(self) -> None:
        self.is_alive = False


@dataclass
class Server:
    """A running server and a client for it."""

    url: str
    client: httpx.AsyncClient
    state: ServerState
    lifecycle: Lifecycle
    exit_status: "asyncio.Task[int]"
    engine: Any

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.client.post(path, json=body)

    @asynccontextmanager
    async def stream(
        self, path: str, headers: dict[str, str] | None = None, **body: Any
    ) -> AsyncGenerator["EventReader"]:
        async with self.client.stream("POST", path, json={"stream": True, **body}, headers=headers) as response:
            yield EventReader(response)

    @asynccontextmanager
    async def begin(self, path: str, is_stream: bool = True, **body: Any) -> AsyncGenerator[tuple[Submit, "Opened"]]:
        """Send a request with `x-request-id: abort-me`; its Submit, and the answer once the test wants to wait for it.

        A stream's headers come with its first event, so a test has to emit something before it opens the answer.
        """
        before = len(self.engine.submits)
        headers = {"x-request-id": "abort-me"}
        opened = Opened(self.client, path, {"stream": is_stream, **body}, headers)
        try:
            await eventually(lambda: len(self.engine.submits) > before)
            yield self.engine.submits[-1], opened
        finally:
            await opened.close()

    @property
    def num_running(self) -> int:
        """Requests being answered."""
        return self.state.running.num_running

    async def eventually(self, holds: Callable[[], bool]) -> None:
        """Wait until it holds."""
        await eventually(holds)

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        total = 0.0
        for line in (await self.client.get("/metrics")).text.splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.split("{")[0] == name and all(f'{key}="{label}"' in sample for key, label in labels.items()):
                total += float(value)
        return total


class Opened:
    """An answer under way: `async with` waits for its headers, or for all of it if it is no stream."""

    def __init__(self, client: httpx.AsyncClient, path: str, body: dict[str, Any], headers: dict[str, str]) -> None:
        self._is_stream = body["stream"]
        request = client.build_request("POST", path, json=body, headers=headers)
        self._sending = asyncio.create_task(client.send(request, stream=self._is_stream))

    async def __aenter__(self) -> Any:
        response = await self._sending
        return EventReader(response) if self._is_stream else response

    async def __aexit__(self, *_: object) -> None:
        await (await self._sending).aclose()

    async def close(self) -> None:
        self._sending.cancel()
        await asyncio.gather(self._sending, return_exceptions=True)


class EventReader:
    """Events of a response as they arrive."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.raw = b""
        self._parser = SSEParser()
        self._chunks = response.aiter_raw()
        self._ready: list[ServerSentEvent] = []

    async def next(self) -> Any:
        """The next event's JSON; None for `[DONE]`."""
        event = await self.next_event()
        assert event.event == "message"
        return None if event.data == "[DONE]" else json.loads(event.data)

    async def next_event(self) -> ServerSentEvent:
        async with asyncio.timeout(DEADLINE_S):
            while not self._ready:
                chunk = await anext(self._chunks)
                self.raw += chunk
                self._ready += self._parser.feed(chunk)
        return self._ready.pop(0)

    async def wait_raw(self, wanted: bytes) -> None:
        """Read until the stream has carried these bytes."""
        async with asyncio.timeout(DEADLINE_S):
            while wanted not in self.raw:
                chunk = await anext(self._chunks)
                self.raw += chunk
                self._ready += self._parser.feed(chunk)

    async def rest(self) -> list[Any]:
        """The JSON of all further events up to `[DONE]`, after which the stream has to end."""
        events: list[Any] = []
        while (event := await self.next()) is not None:
            events.append(event)
        async for chunk in self._chunks:
            assert chunk == b""
        return events


@asynccontextmanager
async def run_server(engine: Any, tokenizer: Tokenizer, **settings: Any) -> AsyncIterator[Server]:
    values = {"served_model_name": ("tiny", "alias"), "port": 0, "core_death_grace_s": 0.2} | settings
    resolved = ServerSettings(**values)
    bound = bind_socket(resolved)
    state = ServerState(engine, tokenizer, resolved)
    started = asyncio.Event()
    lifecycle = Lifecycle(state, bound, started.set)
    running = asyncio.create_task(lifecycle.run())
    async with asyncio.timeout(DEADLINE_S):
        await started.wait()
    url = describe_socket(bound)
    try:
        async with httpx.AsyncClient(base_url=url, timeout=DEADLINE_S) as client:
            yield Server(url, client, state, lifecycle, running, engine)
    finally:
        lifecycle.request_stop()
        if not running.done():
            lifecycle.request_stop()
        async with asyncio.timeout(DEADLINE_S):
            await running


@pytest.fixture(scope="session")
def serve() -> Callable[..., Any]:
    """`run_server`, for fixtures of a test module that bring an engine of their own."""
    return run_server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def answering(tokenizer: Tokenizer) -> AsyncIterator[Server]:
    """A server whose engine answers "Hello 世界! 😀" at once; shared by a module's tests."""
    async with run_server(ScriptedEngine(tokenizer, "Hello 世界! 😀"), tokenizer) as server:
        yield server


Scripted = Callable[..., Awaitable[Server]]


@pytest_asyncio.fixture
async def scripted(tokenizer: Tokenizer) -> AsyncIterator[Scripted]:
    """Start a server over an engine that waits for the test."""
    async with AsyncExitStack() as stack:

        async def start(answer: str | None = None, **settings: Any) -> Server:
            return await stack.enter_async_context(run_server(ScriptedEngine(tokenizer, answer), tokenizer, **settings))

        yield start


@asynccontextmanager
async def run_core(
    tokenizer: Tokenizer, fake: str = "step_s=0.002", engine: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Server]:
    values: dict[str, Any] = {"num_kv_blocks": 256, "max_model_len": CONTEXT, "max_num_seqs": 8, **(engine or {})}
    config = EngineConfig(model=f"fake?vocab_size=49152&{fake}", **values)
    core = await AsyncEngine.start(config, runner="deepseek_engine.testing.fake_runner:build_fake_runner")
    async with run_server(core, tokenizer, **settings) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tiny_core(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server over a real core process with a tiny model of random weights; patient, as grammars take a start."""
    shape = TinyModel(max_position_embeddings=4096)
    folder = str(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), shape))
    engine = await AsyncEngine.start(EngineConfig(model=folder, dtype="float32", num_threads=1))
    async with run_server(engine, load_tokenizer(folder), model_path=folder, grammar_timeout_s=2.0) as server:
        server.client.timeout = httpx.Timeout(60)
        yield server


@pytest_asyncio.fixture
async def start_core(tokenizer: Tokenizer) -> AsyncIterator[Scripted]:
    """Start a server over a real core process, with options of the fake runner, and settings of core and server."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Server:
            return await stack.enter_async_context(run_core(tokenizer, **settings))

        yield start


@pytest_asyncio.fixture
async def core(tokenizer: Tokenizer) -> AsyncIterator[Server]:
    """A server over a real core process with the fake runner: 2 ms a step, eight sequences at once."""
    async with run_core(tokenizer) as server:
        yield server
