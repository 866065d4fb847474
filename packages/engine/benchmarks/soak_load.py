"""What the soak test asks for, and how its callers leave."""

import asyncio
import contextlib
import json
import random
import secrets
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from deepseek_client.sse import SSEParser

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "omicron")
PAUSES_S = (0.0, 0.02, 0.1, 0.5, 2.0)
"""Mean pause of a caller between requests; all change over to another one together, so that load comes in waves."""
PHASE_S = 15.0
NUM_GRAMMARS = 60
NUM_TEXTS = 1500
WEIGHTS = {"chat": 6, "completion": 6, "generate": 3, "grammar": 3, "score": 1, "embed": 1, "long": 3, "wrong": 1}
"""How often each kind of request is asked, in proportion."""
EXPECTED = frozenset({200, 400, 404, 503})
"""400 and 404 are asked for, 503 is a full queue; anything else is a fault of the server."""


@dataclass(slots=True)
class Tally:
    """What became of the requests.

    Attributes:
        certain: ids of requests whose answer began, so that the server's log has to have them exactly once.
        uncertain: ids of those left before: the server may never have seen them.
        outcomes: count of requests by how they ended for the caller.
        kinds: count by what was asked.
        faults: answers that no server should give.
    """

    certain: set[str] = field(default_factory=set)
    uncertain: set[str] = field(default_factory=set)
    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, and how its caller behaves: reads to the end, leaves after some time or events, or aborts by id."""

    kind: str
    path: str
    body: dict[str, Any]
    leaving: str
    patience_s: float
    num_events: int


class Asker:
    """Draws requests.

    Args:
        rng: the draw.
        context: tokens of the server's context.
        chars_per_token: of its tokenizer, about.
        adapters: names that a request may use as `model`.
        without: kinds of WEIGHTS to leave out, to find what a fault comes from.
    """

    def __init__(
        self, rng: random.Random, context: int, chars_per_token: int, adapters: list[str], without: Collection[str]
    ) -> None:
        self._rng = rng
        self._context = context
        self._chars_per_token = chars_per_token
        self._adapters = adapters
        self._weights = {kind: weight for kind, weight in WEIGHTS.items() if kind not in without}
        # A bounded choice: caches of tokenizer and grammars are full after the warm-up, and what grows then is a leak.
        self._grammars = [self._make_grammar() for _ in range(NUM_GRAMMARS)]
        self._texts = [self._make_text(rng.randint(1, 60)) for _ in range(NUM_TEXTS)]
        self._long_texts = [self._make_text(rng.randint(context // 3, context * 2 // 3)) for _ in range(NUM_TEXTS // 8)]
        self._shared = self._make_text(context // 4)

    def draw(self) -> Ask:
        """One request."""
        rng = self._rng
        kind = rng.choices([*self._weights], [*self._weights.values()])[0]
        path, body = getattr(self, f"_{kind}")()
        if kind in ("chat", "completion", "generate", "long", "grammar"):
            body |= self._shape(is_several=kind != "generate", is_chat="messages" in body)
            if self._adapters and rng.random() < 0.3:
                body["model"] = rng.choice(self._adapters)
        leaving = rng.choices(("stays", "hangs up", "aborts"), (6, 3, 1))[0]
        return Ask(kind, path, body, leaving, rng.expovariate(4.0), rng.randint(0, 12))

    def _shape(self, *, is_several: bool, is_chat: bool) -> dict[str, Any]:
        """Fields that any generating request may have."""
        rng = self._rng
        fields: dict[str, Any] = {"max_tokens": rng.choice((1, 4, 16, 64, 128)), "stream": rng.random() < 0.6}
        if rng.random() < 0.3 and is_several:
            fields["n"] = rng.randint(2, 4)
        if rng.random() < 0.3 and is_several:
            fields |= {"logprobs": True, "top_logprobs": 3} if is_chat else {"logprobs": 3}
        if rng.random() < 0.2:
            fields |= {"temperature": 0}
        if rng.random() < 0.3:
            fields |= {"top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1, "seed": rng.randrange(1000)}
        if rng.random() < 0.2:
            fields |= {"stop": ["e", " the"]}
        if rng.random() < 0.1:
            fields |= {"deadline_s": rng.uniform(0.05, 1.0)}
        if rng.random() < 0.2:
            fields |= {"priority": rng.randint(0, 3)}
        return fields

    def _make_text(self, num_tokens: int) -> str:
        words = self._rng.choices(WORDS, k=max(num_tokens * self._chars_per_token // 6, 1))
        return f"{self._rng.randrange(10**6)} {' '.join(words)}"

    def _prompt(self) -> str:
        text = self._rng.choice(self._texts)
        return f"{self._shared} {text}" if self._rng.random() < 0.3 else text

    def _chat(self) -> tuple[str, dict[str, Any]]:
        return "/v1/chat/completions", {"messages": [{"role": "user", "content": self._prompt()}]}

    def _completion(self) -> tuple[str, dict[str, Any]]:
        prompts = [self._prompt() for _ in range(self._rng.randint(1, 3))]
        return "/v1/completions", {"prompt": prompts if len(prompts) > 1 else prompts[0]}

    def _generate(self) -> tuple[str, dict[str, Any]]:
        return "/v1/generate", {"prompt": self._prompt()}

    def _grammar(self) -> tuple[str, dict[str, Any]]:
        path, body = self._chat()
        return path, body | self._rng.choice(self._grammars)

    def _make_grammar(self) -> dict[str, Any]:
        rng = self._rng
        name, most = rng.choice(WORDS), rng.randint(2, 40)
        schema = {"type": "object", "properties": {name: {"type": "string", "maxLength": most}}, "required": [name]}
        return rng.choice(
            (
                {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
                {"structured_outputs": {"regex": f"[a-f]{{1,{most}}}"}},
                {"structured_outputs": {"choice": rng.sample(WORDS, 3)}},
                {"response_format": {"type": "json_object"}},
            )
        )

    def _score(self) -> tuple[str, dict[str, Any]]:
        return "/v1/completions", {"prompt": self._prompt(), "echo": True, "logprobs": 2, "max_tokens": 0}

    def _embed(self) -> tuple[str, dict[str, Any]]:
        return "/v1/embeddings", {"input": [self._prompt() for _ in range(self._rng.randint(1, 4))]}

    def _long(self) -> tuple[str, dict[str, Any]]:
        return "/v1/completions", {"prompt": self._rng.choice(self._long_texts)}

    def _wrong(self) -> tuple[str, dict[str, Any]]:
        return self._rng.choice(
            (
                ("/v1/completions", {"prompt": self._make_text(self._context * 2), "max_tokens": 5}),
                ("/v1/chat/completions", {"messages": "hello"}),
                ("/v1/generate", {"prompt": "x", "model": "nobody"}),
                ("/v1/chat/completions", {**self._chat()[1], "response_format": {"type": "json_schema"}}),
            )
        )


class Callers:
    """So many callers, each with a request at a time, until they are stopped.

    Args:
        session: without limits of its own.
        base_url: of the server.
        asker: what is asked.
        tally: where it is counted.
    """

    def __init__(
        self, session: aiohttp.ClientSession, base_url: str, asker: Asker, tally: Tally, rng: random.Random
    ) -> None:
        self._session = session
        self._base_url = base_url
        self._asker = asker
        self._tally = tally
        self._rng = rng
        self._pause_s = 0.0

    async def run(self, count: int, seconds: float) -> None:
        """Load for so long; requests under way are then read to their ends."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + seconds

        async def caller() -> None:
            while loop.time() < end_s:
                await self.once(self._asker.draw())
                if self._pause_s:
                    await asyncio.sleep(min(self._rng.expovariate(1 / self._pause_s), end_s - loop.time()))

        async def phases() -> None:
            while loop.time() < end_s:
                self._pause_s = self._rng.choice(PAUSES_S)
                await asyncio.sleep(min(PHASE_S, max(end_s - loop.time(), 0)))

        async with asyncio.TaskGroup() as group:
            group.create_task(phases())
            for _ in range(count):
                group.create_task(caller())

    async def once(self, ask: Ask) -> None:
        """One request; whatever happens is counted."""
        tally, request_id = self._tally, f"soak-{secrets.token_hex(8)}"
        tally.kinds[ask.kind] += 1
        tally.uncertain.add(request_id)
        exchange = asyncio.ensure_future(self._exchange(ask, request_id))
        try:
            if ask.leaving == "hangs up" and not ask.body.get("stream"):
                async with asyncio.timeout(ask.patience_s):
                    outcome = await exchange
            else:
                outcome = await exchange
        except TimeoutError:
            outcome = "hung up"
        except aiohttp.ClientError as error:
            outcome = f"connection lost: {type(error).__name__}"
            tally.faults.append(f"{request_id} {ask.kind}: {error!r}")
        tally.outcomes[outcome] += 1

    async def _exchange(self, ask: Ask, request_id: str) -> str:
        headers = {"x-request-id": request_id}
        aborting = None
        if ask.leaving == "aborts":
            aborting = asyncio.create_task(self._abort(request_id, ask.patience_s))
        try:
            url = self._base_url + ask.path
            async with self._session.post(url, json=ask.body, headers=headers) as response:
                self._tally.uncertain.discard(request_id)
                self._tally.certain.add(request_id)
                if response.status not in EXPECTED:
                    self._tally.faults.append(f"{request_id} {ask.kind}: {response.status} {await response.text()}")
                if response.status == 200 and ask.body.get("stream"):
                    return await self._read_stream(ask, request_id, response)
                await response.read()
                return f"HTTP {response.status}"
        finally:
            if aborting is not None:
                await aborting

    async def _read_stream(self, ask: Ask, request_id: str, response: aiohttp.ClientResponse) -> str:
        parser, num_events, last = SSEParser(), 0, ""
        async for chunk in response.content.iter_any():
            for event in parser.feed(chunk):
                num_events, last = num_events + 1, event.data
                if event.event == "error":
                    self._tally.faults.append(f"{request_id} {ask.kind}: {json.loads(event.data)}")
                    return "error in stream"
            if ask.leaving == "hangs up" and num_events > ask.num_events:
                response.close()
                return "hung up within the stream"
        if last != "[DONE]":
            self._tally.faults.append(f"{request_id} {ask.kind}: a stream ended with {last[:200]!r}")
        return "stream whole"

    async def _abort(self, request_id: str, patience_s: float) -> None:
        await asyncio.sleep(patience_s)
        with contextlib.suppress(aiohttp.ClientError):
            async with self._session.post(f"{self._base_url}/v1/requests/{request_id}/abort") as response:
                await response.read()
