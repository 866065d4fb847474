"""One request's way to an engine: wait for a place, try engines until one answers, read its answer, or abort it."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable

from deepseek_gateway.errors import UpstreamError
from deepseek_gateway.upstream.attempt import Try
from deepseek_gateway.upstream.attempts import MAX_ATTEMPTS, Attempt
from deepseek_gateway.upstream.connection import Answer
from deepseek_gateway.upstream.plan import CallPlan
from deepseek_gateway.upstream.pool import NoUpstreamError, Placement, UpstreamPool
from deepseek_gateway.upstream.upstream import Upstream

ABORT_LOSER_S = 5.0


class UpstreamCall:
    """Sends a plan to one engine after another until an answer begins; to two at once where it hedges."""

    def __init__(self, pool: UpstreamPool, plan: CallPlan) -> None:
        self._pool = pool
        self._plan = plan
        self._live: list[Try] = []
        self._first: Try | None = None
        self._winner: Try | None = None
        self._tried: list[Upstream] = []
        self._last: Upstream | None = None
        self._is_ending = False
        self._began_s = time.perf_counter()
        self.attempt = 0
        self.attempts: list[Attempt] = []

    @property
    def upstream(self) -> Upstream | None:
        """The engine that answered, or was tried last."""
        return self._last

    @property
    def upstream_name(self) -> str | None:
        """Its name."""
        return None if self._last is None else self._last.name

    @property
    def answer(self) -> Answer:
        """The answer that began."""
        assert self._winner is not None
        assert self._winner.answer is not None
        return self._winner.answer

    @property
    def head(self) -> bytes:
        """The first bytes of a stream."""
        return b"" if self._winner is None else self._winner.head

    def begin(self) -> None:
        """Send at once, where an engine has room. Call it once, then wait with `opened`, or `open`."""
        placement = self._pool.enter_now(self._plan.ask)
        if placement is not None:
            self._first = self._begin(placement)
            if self._hedge_after_s() is None:
                self._first.send()

    async def opened(self) -> bool:
        """Wait for an answer to what was sent at once; the wait may end early, and begin again.

        Returns:
            False when it takes more than to wait: a place, a connection, another engine. Then `open` goes on.
        """
        first = self._first
        while first is not None and not self.is_open:
            is_open = first.take()
            if is_open is False:
                return False
            if is_open:
                self._won(first)
                self._note_first_bytes(first)
            else:
                assert first.answer is not None
                await first.answer.news()
        return self.is_open

    @property
    def is_open(self) -> bool:
        """Whether an engine's answer has begun."""
        return self._winner is not None

    async def open(self) -> None:
        """Wait until an engine's answer begins; for a stream until its first bytes, which are in `head`.

        Before these nothing was promised to the caller, so another engine may be tried; after them none is.

        Raises:
            UpstreamError: no engine answered, or none was free in time.
        """
        one = self._first or self._begin(await self._pool.enter(self._plan.ask))
        while True:
            try:
                await self._open_at(one)
            except UpstreamError as error:
                if self._is_ending:
                    raise
                one = self._begin(self._next_place(error))
            else:
                return

    def read(self) -> Awaitable[bytes]:
        """The next bytes of the answer; empty at its end."""
        return self.answer.read()

    async def abort(self) -> bool:
        """Tell the engine to end the request; its answer then ends with the exact usage.

        Returns:
            False when the engine cannot be told: then only cutting the connection ends the request.
        """
        self._is_ending = True
        told = await asyncio.gather(*(one.abort() for one in self._live))
        return bool(told) and all(told)

    def close(self) -> None:
        """Drop the connection, unless the answer was read to its end. May be called again."""
        for one in self._live:
            one.close()

    def finish(self) -> None:
        """Close, and give every place back. Call once, last."""
        for one in self._live:
            if one is not self._winner and one.note.fault is None:
                one.give_up()
            one.finish()
        self._live.clear()

    async def _open_at(self, first: Try) -> None:
        """One try, and a second one beside it if the first is slower than most."""
        after_s = self._hedge_after_s()
        if after_s is None:
            await self._run(first)
        else:
            await self._race(first, after_s)
        self._note_first_bytes(first)

    def _note_first_bytes(self, first: Try) -> None:
        if self._plan.stream:
            self._pool.first_bytes.add((self._elapsed_ms() - first.note.began_ms) / 1000)

    def _hedge_after_s(self) -> float | None:
        """When a second try may begin: only streams, whose first byte says that an engine works on them."""
        if not self._plan.stream or not self._pool.hedges.share:
            return None
        return self._pool.first_bytes.value

    async def _run(self, one: Try) -> None:
        try:
            await one.run()
        except BaseException:
            self._live.remove(one)
            one.note.took_ms = round(self._elapsed_ms() - one.note.began_ms, 3)
            one.finish()
            raise
        self._won(one)

    def _won(self, one: Try) -> None:
        """The answer of a try has begun: it is the request's."""
        one.note.took_ms = round(self._elapsed_ms() - one.note.began_ms, 3)
        self._winner, self._last, self.attempt = one, one.placement.upstream, one.note.number

    async def _race(self, first: Try, after_s: float) -> None:
        """Run the first; after a while a second beside it. The answer that begins first wins, the other is aborted."""
        tasks = {asyncio.create_task(first.run()): first}
        try:
            await asyncio.wait(tasks, timeout=after_s)
            if not any(task.done() for task in tasks) and (second := self._hedge()) is not None:
                tasks[asyncio.create_task(second.run())] = second
            fault: UpstreamError | None = None
            while tasks:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    one = tasks.pop(task)
                    one.note.took_ms = round(self._elapsed_ms() - one.note.began_ms, 3)
                    try:
                        task.result()
                    except UpstreamError as error:
                        fault = error
                        self._live.remove(one)
                        one.finish()
                        continue
                    self._won(one)
                    if tasks or one is not first:
                        self._pool.metrics.hedged("lost" if one is first else "won")
                    return
            assert fault is not None
            raise fault
        finally:
            for task, loser in tasks.items():
                if self._winner is None:
                    task.cancel()  # the request is over; `finish` does the rest
                else:
                    self._live.remove(loser)
                    self._pool.spawn(_give_up(task, loser))
            if self._winner is None:
                await asyncio.gather(*tasks, return_exceptions=True)

    def _hedge(self) -> Try | None:
        """A second try, if the budget and the other engines have room for one."""
        if self._is_ending:
            return None
        if not self._pool.hedges.spend():
            self._pool.metrics.hedged("no_budget")
            return None
        with contextlib.suppress(NoUpstreamError):
            if (placement := self._pool.place(self._plan.ask, self._tried)) is not None:
                return self._begin(placement)
        self._pool.hedges.give_back()
        return None

    def _begin(self, placement: Placement) -> Try:
        self._tried.append(placement.upstream)
        self._last = placement.upstream
        self.attempt += 1
        number = len(self._tried)
        note = Attempt(
            number, placement.upstream.name, Try.new_id(), round(self._elapsed_ms(), 3), model=placement.model
        )
        if len(self.attempts) < MAX_ATTEMPTS:
            self.attempts.append(note)
        one = Try(self._pool, self._plan, placement, note)
        self._live.append(one)
        return one

    def _next_place(self, fault: UpstreamError) -> Placement:
        """A place at another engine.

        Raises:
            UpstreamError: `fault`, as there is none, or no budget for one.
        """
        if len(self._tried) >= self._pool.snapshot.settings.max_attempts:
            raise fault
        if not self._pool.retries.spend():
            self._pool.metrics.retried("no_budget")
            raise fault
        try:
            placement = self._pool.place(self._plan.ask, self._tried)
        except NoUpstreamError:
            placement = None
        if placement is None:
            self._pool.retries.give_back()
            raise fault
        self._pool.metrics.retried("tried")
        return placement

    def _elapsed_ms(self) -> float:
        return (time.perf_counter() - self._began_s) * 1000


async def _give_up(task: asyncio.Task[None], loser: Try) -> None:
    """End the slower of two tries at its engine. Nobody is billed for it."""
    loser.note.fault = "given up: another engine began first"
    try:
        async with asyncio.timeout(ABORT_LOSER_S):
            if await loser.abort():
                await asyncio.wait([task])
    except TimeoutError:
        pass
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        loser.finish()
