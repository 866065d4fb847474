"""All engines: choose one, mark it down, bring it back."""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from deepseek_gateway.errors import UpstreamError
from deepseek_gateway.upstream.upstream import Upstream

PROBE_TIMEOUT_S = 2.0


class NoUpstreamError(UpstreamError):
    """No engine takes requests now."""


class UpstreamPool:
    """The engines of one gateway.

    Args:
        upstreams: at least one.
        probe_s: seconds between looks at an engine that is down; one that is up is looked at five times more rarely.
        clock: monotonic seconds.
    """

    def __init__(
        self, upstreams: Sequence[Upstream], probe_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.upstreams = list(upstreams)
        self._probe_s = probe_s
        self._clock = clock
        self._turn = itertools.count()
        self._prober: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        """Whether any engine takes traffic."""
        return any(upstream.is_up for upstream in self.upstreams)

    def now(self) -> float:
        """The pool's clock."""
        return self._clock()

    def known_models(self) -> list[str]:
        """Model names of all engines, in order, each once."""
        return list(dict.fromkeys(name for upstream in self.upstreams for name in upstream.models))

    def choose(self, model: str | None, tried: Collection[Upstream]) -> Upstream:
        """The engine with the fewest requests in flight among those that serve the model; ties take turns.

        Raises:
            NoUpstreamError: none takes requests, or all were tried.
        """
        now = self._clock()
        serving = self._serving(model)
        open_now = [upstream for upstream in serving if upstream not in tried and upstream.may_try(now)]
        # An engine that may only be tried comes after those that are known to be up.
        candidates = [upstream for upstream in open_now if upstream.is_up] or open_now
        if not candidates:
            wait_s = min((max(0.0, upstream.retry_at_s - now) for upstream in serving), default=1.0)
            raise NoUpstreamError("no engine takes requests now", is_unavailable=True, retry_after_s=max(1.0, wait_s))
        least = min(upstream.in_flight for upstream in candidates)
        tied = [upstream for upstream in candidates if upstream.in_flight == least]
        return tied[next(self._turn) % len(tied)]

    def _serving(self, model: str | None) -> Sequence[Upstream]:
        """The engines that serve a model; all of them if none is known to."""
        # Adapters come and go between two looks at an engine's list, so a `base:adapter` may be where its base is.
        for name in (model, (model or "").rpartition(":")[0]):
            if serving := [upstream for upstream in self.upstreams if name in upstream.models]:
                return serving
        return self.upstreams

    async def start(self) -> None:
        """Look at every engine once, then keep looking."""
        await asyncio.gather(*(self._probe(upstream) for upstream in self.upstreams))
        self._prober = asyncio.create_task(self._probe_forever())

    async def close(self) -> None:
        """Stop looking and close all connections."""
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)
        for upstream in self.upstreams:
            await upstream.client.close()

    async def _probe_forever(self) -> None:
        for turn in itertools.count(1):
            await asyncio.sleep(self._probe_s)
            due = [upstream for upstream in self.upstreams if turn % 5 == 0 or not upstream.is_up]
            await asyncio.gather(*(self._probe(upstream, learn=turn % 60 == 0) for upstream in due))

    async def _probe(self, upstream: Upstream, *, learn: bool = True) -> None:
        """Ask `/ready`. Servers that have no such page are up when they answer at all."""
        client, was_up = upstream.client, upstream.is_up
        try:
            answer = await client.get(client.address.outside("ready"), PROBE_TIMEOUT_S)
        except UpstreamError as error:
            is_slow = isinstance(error.__cause__, TimeoutError)
            if not (was_up and is_slow):  # a busy engine that answers late still answers
                upstream.failed(str(error), self._clock())
            return
        if answer.status >= 500:
            upstream.failed(f"/ready answers {answer.status}", self._clock())
            return
        if learn or not was_up or not upstream.models:
            await self._learn_models(upstream)
        upstream.succeeded()

    async def _learn_models(self, upstream: Upstream) -> None:
        client = upstream.client
        try:
            answer = await client.get(client.address.endpoint("v1", "models"), PROBE_TIMEOUT_S)
        except UpstreamError:
            return
        if answer.status == 200:
            upstream.models = model_names(answer.body)


def model_names(body: bytes) -> tuple[str, ...]:
    """Ids in the answer of `GET /models`; none when it is something else."""
    try:
        data: Any = json.loads(body)["data"]
        return tuple(str(model["id"]) for model in data)
    except (ValueError, KeyError, TypeError):
        return ()
