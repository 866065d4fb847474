"""The requests that are being answered now: found by id for the abort endpoint, ended together at shutdown."""

import asyncio
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager

from deepseek_engine.server.generation import Generation


class RunningRequests:
    """Generations under way. Ids are the callers' own, so one id may stand for several."""

    def __init__(self) -> None:
        self._by_id: defaultdict[str, set[Generation]] = defaultdict(set)
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_running(self) -> int:
        """Generations under way."""
        return sum(map(len, self._by_id.values()))

    @contextmanager
    def track(self, request_id: str, generation: Generation) -> Generator[None]:
        """Keep the generation listed while the block runs."""
        self._by_id[request_id].add(generation)
        self._idle.clear()
        try:
            yield
        finally:
            self._by_id[request_id].discard(generation)
            if not self._by_id[request_id]:
                del self._by_id[request_id]
            if not self._by_id:
                self._idle.set()

    def abort(self, request_id: str) -> bool:
        """End the requests of this id; False if there is none."""
        generations = self._by_id.get(request_id)
        if not generations:
            return False
        for generation in generations:
            generation.cancel()
        return True

    def abort_all(self) -> None:
        """End every request."""
        for request_id in list(self._by_id):
            self.abort(request_id)

    async def wait_idle(self) -> None:
        """Return when none is left."""
        await self._idle.wait()
