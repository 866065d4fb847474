"""The API process's side of the engine: starts the core, sends it requests, and hands each caller its own stream."""

import asyncio
import contextlib
import dataclasses
import logging
import signal
import time
from typing import Final, Self

from deepseek_engine.config import EngineConfig
from deepseek_engine.core_link import CoreLink, spawn_core, wait_or_kill
from deepseek_engine.core_process import DEFAULT_RUNNER
from deepseek_engine.core_watch import CoreVitals, CoreWatch
from deepseek_engine.errors import EngineDeadError, EngineStartError, InvalidRequestError, QueueFullError
from deepseek_engine.framing import FrameError
from deepseek_engine.lora.directory import AdapterDirectory
from deepseek_engine.messages import Cancel, Configure, EngineStats, Heartbeat, Ready, StartFailed, StepOutputs, Submit
from deepseek_engine.request import max_total_tokens
from deepseek_engine.request_log.log_file import LogFile
from deepseek_engine.request_log.recorder import RequestRecorder, with_seed
from deepseek_engine.request_stream import Mailbox, RequestStream

logger = logging.getLogger(__name__)

_EXIT_S: Final = 2.0
"""How long a core that has closed its socket may take to exit."""


class AsyncEngine:
    """A running engine core; belongs to the event loop that started it.

    Attributes:
        info: what the core has loaded.
        stats: its state after its last step.
        adapters: the LoRA adapters that requests may name; loads and unloads them.
    """

    def __init__(self, config: EngineConfig, process: asyncio.subprocess.Process, link: CoreLink, info: Ready) -> None:
        self.info = info
        self.stats = EngineStats(
            num_running=0,
            num_waiting=0,
            num_free_blocks=info.num_blocks,
            num_blocks=info.num_blocks,
            num_preemptions=0,
            num_steps=0,
        )
        self.adapters = AdapterDirectory(link.send, info.adapters)
        self._config = config
        self._process = process
        self._link = link
        self._mailboxes: dict[str, Mailbox] = {}
        self._num_pending_tokens = 0  # of prompts that the core has not answered yet
        self._is_stopping = False
        self._watch = CoreWatch(config.heartbeat_s, config.step_timeout_s, config.step_exit_s)
        link.on_message = self._receive
        self._watching = asyncio.create_task(self._watch_core())
        self._recorder: RequestRecorder | None = None
        self._funeral = asyncio.create_task(self._bury())

    @classmethod
    async def start(cls, config: EngineConfig, runner: str | None = None, request_log: LogFile | None = None) -> Self:
        """Start a core and wait until it can serve.

        Args:
            config: how the core runs.
            runner: `module:callable` that builds another runner than the real one; for tests.
            request_log: where requests are written to; closed by `shutdown`.

        Raises:
            InvalidRequestError: the request log cannot be written.
            EngineStartError: the core could not load the model, or died on the way.
        """
        process, link = await spawn_core(runner or DEFAULT_RUNNER)
        try:
            link.send(Configure(config))
            answer = await link.first_answer
        except BaseException:
            link.close()
            await wait_or_kill(process, 0)
            raise
        if isinstance(answer, Ready):
            engine = cls(config, process, link, answer)
            if request_log is not None:
                await engine._record_to(request_log)
            return engine
        link.close()
        status = await wait_or_kill(process, _EXIT_S)
        if isinstance(answer, StartFailed):
            raise EngineStartError(answer.reason)
        raise EngineStartError(f"the engine core ended with status {status} before it was ready")

    @property
    def is_alive(self) -> bool:
        """Whether the core can take requests."""
        return not self._link.is_lost and not self._is_stopping

    @property
    def vitals(self) -> CoreVitals:
        """How the core is doing."""
        if self._link.is_lost:
            return dataclasses.replace(self._watch.vitals, trouble="the engine core is gone")
        return self._watch.vitals

    def dump_state(self) -> None:
        """Have the core write its state to the log, whatever it is doing."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGUSR1)

    def submit(self, submit: Submit) -> RequestStream:
        """Send a request to the core; its answers come on the stream.

        Raises:
            InvalidRequestError: it can never be served, is too large for a message, or its id is in use.
            UnknownAdapterError: its adapter is not loaded.
            QueueFullError: max_waiting requests are waiting, or max_waiting_tokens of their prompts.
            EngineDeadError: the core is gone.
        """
        if not self.is_alive:
            raise EngineDeadError("the engine core is not running")
        if submit.request_id in self._mailboxes:
            raise InvalidRequestError(f"request_id={submit.request_id!r} is in use: choose another", param="request_id")
        self.adapters.check(submit.adapter)
        max_total_tokens(submit, self.info)
        num_tokens = len(submit.prompt_token_ids)
        self._check_queue(num_tokens)
        if self._recorder is not None:
            submit = with_seed(submit)
        try:
            self._link.send(submit)
        except FrameError as error:
            raise InvalidRequestError(f"the request is too large: {error}") from error
        if self._recorder is not None:
            self._recorder.add(submit, self.stats.num_steps, self.adapters.path_of(submit.adapter))
        mailbox = self._mailboxes[submit.request_id] = Mailbox(submit.params.n, num_tokens)
        self._num_pending_tokens += num_tokens
        return RequestStream(submit.request_id, mailbox, self._abandon)

    def cancel(self, request_id: str, index: int | None = None) -> bool:
        """End a request, or one of its answers: its stream ends with `abort`. False if no such request is open."""
        mailbox = self._mailboxes.get(request_id)
        if mailbox is None or not self.is_alive:
            return False
        if mailbox.note_cancel(index):
            self._link.send(Cancel(request_id, index))
        return True

    async def wait_dead(self) -> None:
        """Return when the core is gone, for whatever reason."""
        await asyncio.shield(self._funeral)

    async def shutdown(self, timeout_s: float = 5.0) -> None:
        """End the core, killing it if it takes longer than the timeout; open streams raise EngineDeadError."""
        self._is_stopping = True
        self._link.close()
        await wait_or_kill(self._process, timeout_s)
        await self.wait_dead()
        if self._recorder is not None:
            await asyncio.to_thread(self._recorder.close)

    async def _record_to(self, request_log: LogFile) -> None:
        try:
            self._recorder = RequestRecorder(request_log, self._config, self.info)
        except BaseException:
            await self.shutdown()
            raise

    def _check_queue(self, num_tokens: int) -> None:
        # What this process has sent is exact and known at once; what the core says lags by a step, but also knows of
        # requests that cannot run for want of blocks.
        num_waiting = max(len(self._mailboxes) - self._config.max_num_seqs, self.stats.num_waiting)
        if num_waiting >= self._config.max_waiting:
            raise QueueFullError(
                f"{num_waiting} requests are waiting, max_waiting={self._config.max_waiting}: try again later"
            )
        limit = self._config.max_waiting_tokens
        if self._num_pending_tokens and self._num_pending_tokens + num_tokens > limit:
            raise QueueFullError(
                f"{self._num_pending_tokens} prompt tokens are waiting and this prompt has {num_tokens}, "
                f"max_waiting_tokens={limit}: try again later"
            )

    def _receive(self, message: StepOutputs | Heartbeat) -> None:
        if isinstance(message, Heartbeat):
            self._watch.hear(message)
        else:
            self._watch.hear()
            self._deliver(message)

    async def _watch_core(self) -> None:
        """Log when the core falls silent or a step hangs, and when that is over; end a core that is lost for good."""
        told: str | None = None
        before_s = time.monotonic()
        while True:
            await asyncio.sleep(self._watch.beat_s)
            now_s = time.monotonic()
            self._watch.beat(now_s - before_s)
            before_s = now_s
            trouble = self._watch.vitals.trouble
            if trouble is not None and told is None:
                logger.error("%s; %d requests are open", trouble, len(self._mailboxes))
            elif trouble is None and told is not None:
                logger.warning("the engine core is back")
            told = trouble
            if self._watch.is_lost:
                logger.critical("%s: it is ended", trouble)
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                return

    def _deliver(self, outputs: StepOutputs) -> None:
        self.stats = outputs.stats
        self.adapters.answer(outputs.replies)
        if self._recorder is not None:
            self._recorder.take(outputs)
        for delta in outputs.deltas:
            mailbox = self._mailboxes.get(delta.request_id)
            if mailbox is None:
                continue
            if not mailbox.has_begun:
                self._num_pending_tokens -= mailbox.num_prompt_tokens
            if mailbox.put(delta):
                del self._mailboxes[delta.request_id]

    def _abandon(self, request_id: str) -> None:
        """A stream was closed early. Its mailbox stays until the core has said the last of it: so does its id."""
        self.cancel(request_id)

    async def _bury(self) -> None:
        await self._link.lost
        self._watching.cancel()
        status = await wait_or_kill(self._process, _EXIT_S)
        if not self._is_stopping:
            logger.error("the engine core ended with status %s; %d requests fail", status, len(self._mailboxes))
        reason = "the engine was shut down" if self._is_stopping else f"the engine core ended with status {status}"
        for mailbox in self._mailboxes.values():
            mailbox.fail(EngineDeadError(reason))
        self._mailboxes.clear()
        self.adapters.fail(EngineDeadError(reason))
