"""GrammarTrials: the API process's side of the trials. It starts the process when the first grammar comes."""

import asyncio
import contextlib
import logging
import socket
import sys
from collections import OrderedDict
from itertools import count
from typing import Final

import msgspec

from deepseek_engine.errors import EngineError, GrammarError, QueueFullError
from deepseek_engine.framing import FrameReader, encode_frame
from deepseek_engine.grammar.source import GrammarSource
from deepseek_engine.grammar.store import check_installed
from deepseek_engine.grammar.trial_process import Trial, Verdict

logger = logging.getLogger(__name__)

MAX_VERDICTS: Final = 4096
MAX_WAITING: Final = 64
MAX_AT_ONCE: Final = 2
START_TIMEOUT_S: Final = 120.0


class GrammarTrials:
    """Tries grammars before the core sees them, and remembers what came of it.

    Args:
        model: whose tokenizer the grammars are for.
        num_logits: the width of its logits.
        eos_token_ids: that end its answers.
        limit_s: processor time that compiling one grammar may take.
    """

    def __init__(self, model: str, num_logits: int, eos_token_ids: tuple[int, ...], limit_s: float) -> None:
        self._arguments = ("--model", model, "--num-logits", str(num_logits), "--limit-s", str(limit_s))
        self._eos_token_ids = eos_token_ids
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()
        self._pending: dict[bytes, asyncio.Future[str | None]] = {}
        self._places = asyncio.Semaphore(MAX_AT_ONCE)
        self._starting = asyncio.Lock()
        self._link: _Link | None = None

    async def check(self, source: GrammarSource) -> None:
        """Return if the grammar can be used.

        Raises:
            GrammarError: it cannot; the message holds the reason.
            QueueFullError: too many are waiting to be tried.
            EngineError: the trial process does not start.
        """
        check_installed()
        if not self._eos_token_ids:
            raise GrammarError("structured output needs a model with an end token")
        key = source.digest
        if key in self._verdicts:
            self._verdicts.move_to_end(key)
            reason = self._verdicts[key]
        else:
            reason = await self._pending_verdict(key, source)
        if reason is not None:
            raise GrammarError(reason)

    async def close(self) -> None:
        """End the process."""
        if self._link is not None:
            await self._link.close()

    async def _pending_verdict(self, key: bytes, source: GrammarSource) -> str | None:
        """One trial a grammar, however many ask for it; a caller who leaves does not take it from the others."""
        pending = self._pending.get(key)
        if pending is None:
            if len(self._pending) >= MAX_WAITING:
                raise QueueFullError(f"{MAX_WAITING} grammars are waiting to be compiled: try again later")
            pending = self._pending[key] = asyncio.ensure_future(self._run(key, source))
            pending.add_done_callback(lambda done: done.cancelled() or done.exception())  # retrieved by whoever waits
        return await asyncio.shield(pending)

    async def _run(self, key: bytes, source: GrammarSource) -> str | None:
        try:
            async with self._places:
                reason = await (await self._live_link()).run(source)
            self._verdicts[key] = reason
            if len(self._verdicts) > MAX_VERDICTS:
                self._verdicts.popitem(last=False)
            return reason
        finally:
            del self._pending[key]

    async def _live_link(self) -> "_Link":
        async with self._starting:
            if self._link is None or self._link.is_lost:
                eos = ("--eos", *map(str, self._eos_token_ids))
                self._link = await _Link.start((*self._arguments, *eos))
            return self._link


class _Link(asyncio.Protocol):
    """The socket to a trial process."""

    def __init__(self) -> None:
        self.is_lost = False
        self._frames = FrameReader(msgspec.msgpack.Decoder(Verdict))
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[str | None]] = {0: asyncio.get_running_loop().create_future()}
        self._transport: asyncio.BaseTransport | None = None
        self._process: asyncio.subprocess.Process | None = None

    @classmethod
    async def start(cls, arguments: tuple[str, ...]) -> "_Link":
        """A process that is ready to try.

        Raises:
            EngineError: it is not; the message says why.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "deepseek_engine.grammar.trial_process", "--fd", str(theirs.fileno())),
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        _, link = await asyncio.get_running_loop().create_unix_connection(cls, sock=ours)
        link._process = process  # noqa: SLF001 - its own class
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                reason = await link._waiting[0]  # noqa: SLF001
        except TimeoutError:
            reason = f"it is not ready after {START_TIMEOUT_S:g} s"
        if reason is not None:
            await link.close()
            raise EngineError(f"the process that tries grammars did not start: {reason}")
        return link

    async def run(self, source: GrammarSource) -> str | None:
        """Why the grammar cannot be used; None if it can."""
        assert self._transport is not None
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._transport.write(encode_frame(Trial(number, source)))  # pyright: ignore[reportAttributeAccessIssue] - uvloop's own is no subclass of asyncio's
        return await future

    async def close(self) -> None:
        """End the process, which has nothing to lose."""
        if self._transport is not None:
            self._transport.close()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio: the socket is ready."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Asyncio: verdicts."""
        for verdict in self._frames.feed(data):
            future = self._waiting.pop(verdict.number, None)
            if future is not None and not future.done():
                future.set_result(verdict.reason)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Asyncio: the process has gone."""
        self.is_lost = True
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(EngineError("the process that tries grammars has died"))
        self._waiting.clear()
