"""Looks at every engine: whether it is ready, which models it lists, how busy it says that it is."""

import asyncio
import itertools
import json
from typing import TYPE_CHECKING, Any

from deepseek_gateway.background import forever
from deepseek_gateway.config.sections import UpstreamKind
from deepseek_gateway.errors import UpstreamError
from deepseek_gateway.route.load import parse_load
from deepseek_gateway.upstream.address import UpstreamAddress
from deepseek_gateway.upstream.upstream import Upstream, logger

if TYPE_CHECKING:
    from deepseek_gateway.upstream.pool import UpstreamPool

PROBE_TIMEOUT_S = 2.0
EVERY_UP = 5
"""Engines that are up are asked whether they are in every fifth round only."""

EVERY_CLOUD = 60
"""An account in the cloud is asked more rarely still: it is not ours to watch."""

LEARN_EVERY = 60
READY_PAGES = {"engine": "ready", "openai": "health"}


class Prober:
    """The two loops that look. Rounds take the intervals from the pool's snapshot, so a reload changes them."""

    def __init__(self, pool: "UpstreamPool") -> None:
        self._pool = pool
        self._turns = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        settings = lambda: self._pool.snapshot.settings  # noqa: E731
        loops = (
            forever(lambda: settings().upstream_probe_s, self._probe, "looking whether engines are ready"),
            forever(lambda: settings().upstream_load_s, self._weigh_all, "asking engines for their load"),
        )
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    async def close(self) -> None:
        """Stop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def look(self, upstream: Upstream, *, learn: bool) -> None:
        """Ask whether it is ready. Servers that have no such page are up when they answer at all."""
        client, was_up = upstream.client, upstream.is_up
        url = ready_url(upstream.kind, client.address)
        try:
            answer = await client.get(url, PROBE_TIMEOUT_S)
        except UpstreamError as error:
            is_slow = isinstance(error.__cause__, TimeoutError)
            if not (was_up and is_slow):  # a busy engine that answers late still answers
                self._missed(upstream, str(error))
            return
        if answer.status >= 500:
            self._missed(upstream, f"{url} answers {answer.status}")
            return
        if upstream.learns_models and (learn or not was_up or not upstream.models):
            await self._learn_models(upstream)
        if not was_up and not upstream.is_up:
            logger.info("upstream %s is up", upstream.name)
        upstream.breaker.probed(self._pool.now())
        if not was_up:
            self._pool.gate.pump()

    def _missed(self, upstream: Upstream, reason: str) -> None:
        if upstream.breaker.missed(self._pool.now()):
            self._pool.metrics.ejected(upstream.name, "probe")
            logger.warning("upstream %s is down: %s", upstream.name, reason)

    async def _probe(self) -> None:
        turn = next(self._turns)
        due = [upstream for upstream in self._pool.upstreams if self._is_due(upstream, turn)]
        await asyncio.gather(*(self.look(upstream, learn=turn % LEARN_EVERY == 0) for upstream in due))

    def _is_due(self, upstream: Upstream, turn: int) -> bool:
        if not upstream.breaker.may_probe(self._pool.now()):
            return False
        if upstream.kind == "deepseek-cloud":
            return turn % EVERY_CLOUD == 0 or (not upstream.is_up and turn % EVERY_UP == 0)
        return turn % EVERY_UP == 0 or not upstream.is_up

    async def _learn_models(self, upstream: Upstream) -> None:
        client = upstream.client
        try:
            answer = await client.get(client.address.endpoint("v1", "models"), PROBE_TIMEOUT_S)
        except UpstreamError:
            return
        models = model_names(answer.body) if answer.status == 200 else upstream.models
        if models != upstream.models:
            upstream.models = models
            self._pool.models_changed()

    async def _weigh_all(self) -> None:
        upstreams = [one for one in self._pool.upstreams if one.is_up and one.kind != "deepseek-cloud"]
        await asyncio.gather(*(self._weigh(upstream) for upstream in upstreams))

    async def _weigh(self, upstream: Upstream) -> None:
        """Ask for its load. One that has no figures is weighed by what we sent it."""
        client, ours = upstream.client, upstream.in_flight
        try:
            answer = await client.get(client.address.outside("metrics"), PROBE_TIMEOUT_S)
        except UpstreamError:
            return  # that it is gone is for `look` to say
        if answer.status == 200:
            upstream.report = parse_load(answer.body, ours, self._pool.now())


def ready_url(kind: UpstreamKind, address: UpstreamAddress) -> str:
    """What is asked to see whether an upstream is there: of an account in the cloud, its models."""
    page = READY_PAGES.get(kind)
    return address.endpoint("v1", "models") if page is None else address.outside(page)


def model_names(body: bytes) -> tuple[str, ...]:
    """Ids in the answer of `GET /models`; none when it is something else."""
    try:
        data: Any = json.loads(body)["data"]
        return tuple(str(model["id"]) for model in data)
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()
