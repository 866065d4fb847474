"""One try at one engine: send, judge the head of the answer, tell the breaker, abort."""

import asyncio
from dataclasses import dataclass

import orjson

from deepseek_gateway.auth.keys import random_name
from deepseek_gateway.errors import UnreachableError, UpstreamCutError, UpstreamError
from deepseek_gateway.route.breaker import Outcome
from deepseek_gateway.upstream.attempts import Attempt
from deepseek_gateway.upstream.client import is_idle
from deepseek_gateway.upstream.connection import Answer
from deepseek_gateway.upstream.plan import CallPlan
from deepseek_gateway.upstream.pool import Placement, UpstreamPool

REFUSALS = frozenset({429, 500, 502, 503, 504})
"""Answers after which another engine may do better."""

KEY_REFUSALS = frozenset({401, 402, 403})
"""Answers that are about the gateway's own account, not about its caller."""

ABORT_TIMEOUT_S = 2.0
ABORT_AGAIN_S = 0.05
MAX_ERROR_BYTES = 64 * 1024


class RefusedError(UpstreamError):
    """The engine answered, with a refusal."""

    def __init__(self, message: str, status: int, retry_after_s: float | None) -> None:
        super().__init__(message, is_unavailable=status in {429, 502, 503, 504}, retry_after_s=retry_after_s)
        self.status = status


@dataclass(slots=True, eq=False)
class Try:
    """See the module. `id` is the engine's name for the request: not to be guessed, as it is the right to abort."""

    pool: UpstreamPool
    plan: CallPlan
    placement: Placement
    note: Attempt
    request: bytes | None = None
    answer: Answer | None = None
    head: bytes = b""
    is_over: bool = False

    @staticmethod
    def new_id() -> str:
        """A name for a try."""
        return f"up-{random_name()}"

    def send(self) -> None:
        """Send the request, if a connection to the engine waits for one; else `run` makes one."""
        upstream, plan = self.placement.upstream, self.plan
        url = plan.url_at(upstream.kind, upstream.client.address)
        body = plan.body_for(self.placement)
        self.request = upstream.client.post_request(url, body, plan.headers_at(upstream.kind, self.note.id))
        self.answer = upstream.client.send(self.request)

    def take(self) -> bool | None:
        """Take the answer as it is now.

        Returns:
            True when it has begun, and for a stream with its first event; None when that is to be seen; False when it
            is for `run` to judge.
        """
        answer = self.answer
        if answer is None:
            return False
        if not answer.has_head:
            return None if answer.fault is None else False
        status = answer.status
        if status in REFUSALS or status in KEY_REFUSALS:
            return False
        if self.plan.stream and status == 200:
            data = answer.taken()
            if not data or is_idle(data):
                return None if answer.fault is None and not answer.is_whole else False
            self.head = data
        self.note.status = status
        self.pool.note(self.placement.upstream, Outcome.GOOD)
        return True

    async def run(self) -> None:
        """Wait for an answer's head, for a stream until its first event.

        Raises:
            UpstreamError: there is none, or it is a refusal after which another engine may do better.
        """
        upstream = self.placement.upstream
        try:
            if self.request is None:
                self.send()
            assert self.request is not None
            self.answer = answer = await upstream.client.answered(self.request, self.answer)
            self.note.status = answer.status
            await self._judge(answer)
        except asyncio.CancelledError:
            self.give_up()
            raise
        except UpstreamError as error:
            self.note.fault = str(error)[:300]
            self.close()
            self.pool.note(upstream, _outcome_of(error), str(error), error.retry_after_s)
            raise
        self.pool.note(upstream, Outcome.GOOD)

    async def abort(self) -> bool:
        """Tell the engine to end the request, until it has heard: its answer then ends with the exact usage.

        The first message can be there before the request is, so it is sent again; cancel this once the answer ended.

        Returns:
            False when the engine cannot be told: then only cutting the connection ends the request.
        """
        upstream = self.placement.upstream
        if upstream.kind != "engine":
            return False
        url = upstream.client.address.endpoint("v1", f"requests/{self.note.id}/abort")
        while not self.is_over:
            try:
                answer = await upstream.client.post_empty(url, ABORT_TIMEOUT_S)
            except UpstreamError:
                return False
            if answer.status != 200:
                return False
            if _is_aborted(answer.body):
                return True
            await asyncio.sleep(ABORT_AGAIN_S)
        return False

    def give_up(self) -> None:
        """Note that nobody waits for its answer any more."""
        self.note.fault = "given up: the request was over"
        self.pool.metrics.attempted(self.placement.upstream.name, "cancelled")

    def close(self) -> None:
        """Drop the connection, unless the answer was read to its end. May be called again."""
        if self.answer is not None:
            self.answer.close()

    def finish(self) -> None:
        """Close, and give the place back. May be called again."""
        self.close()
        if not self.is_over:
            self.is_over = True
            self.pool.release(self.placement)

    async def _judge(self, answer: Answer) -> None:
        """Take the answer if it is one, else raise what is wrong with it."""
        if answer.status in REFUSALS or answer.status in KEY_REFUSALS:
            raise await _refusal(self.placement.upstream.name, answer)
        if self.plan.stream and answer.status == 200:
            self.head = await answer.read()
            while self.head and is_idle(self.head):  # the engine's keep-alive promises nothing yet
                self.head = await answer.read()
            if not self.head:
                raise UpstreamCutError(f"the engine at {self.placement.upstream.name} ended its stream before it began")


def _outcome_of(error: UpstreamError) -> Outcome:
    if isinstance(error, UnreachableError):
        return Outcome.GONE
    if not isinstance(error, RefusedError):
        return Outcome.FAULT
    if error.status == 429:
        return Outcome.THROTTLED
    if error.status == 500:
        return Outcome.SICK
    return Outcome.BUSY


async def _refusal(name: str, answer: Answer) -> RefusedError:
    body = await answer.read_all(MAX_ERROR_BYTES)
    if answer.status in KEY_REFUSALS:
        message = f"the engine at {name} refuses the gateway's own key ({answer.status}): see `upstream_key`"
    else:
        message = f"the engine at {name} answers {answer.status}: {_message_of(body)}"
    return RefusedError(message, answer.status, answer.retry_after_s)


def _message_of(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return "no error message"


def _is_aborted(body: bytes) -> bool:
    try:
        return orjson.loads(body)["aborted"] is True
    except (ValueError, KeyError, TypeError):
        return False
