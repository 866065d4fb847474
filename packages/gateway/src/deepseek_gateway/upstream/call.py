"""One request's way to an engine: try engines until one answers, read its answer, or abort it."""

import asyncio
import secrets
import time
from dataclasses import dataclass

import orjson

from deepseek_gateway.errors import UpstreamCutError, UpstreamError
from deepseek_gateway.upstream.attempts import MAX_ATTEMPTS, Attempt
from deepseek_gateway.upstream.client import Answer
from deepseek_gateway.upstream.pool import NoUpstreamError, UpstreamPool
from deepseek_gateway.upstream.upstream import Upstream

REFUSALS = frozenset({429, 500, 502, 503, 504})
"""Answers after which another engine may do better."""

ABORT_TIMEOUT_S = 2.0
ABORT_AGAIN_S = 0.05
MAX_ERROR_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class CallPlan:
    """What is sent: `path` is `chat/completions` and the like, `prefix` is `v1` or `beta`."""

    prefix: str
    path: str
    model: str | None
    body: bytes
    cache_salt: str
    stream: bool


class UpstreamCall:
    """Sends a plan to one engine after another until an answer begins."""

    def __init__(self, pool: UpstreamPool, plan: CallPlan) -> None:
        self._pool = pool
        self._plan = plan
        self._answer: Answer | None = None
        self._upstream: Upstream | None = None
        self._attempt_id = ""
        self._is_ending = False
        self._began_s = time.perf_counter()
        self.attempt = 0
        self.attempts: list[Attempt] = []
        self.head = b""

    @property
    def upstream_name(self) -> str | None:
        """The engine that was tried last."""
        return None if self._upstream is None else self._upstream.name

    @property
    def answer(self) -> Answer:
        """The answer that began."""
        assert self._answer is not None
        return self._answer

    async def open(self) -> None:
        """Wait until an engine's answer begins; for a stream until its first bytes, which are in `head`.

        Before these nothing was promised to the caller, so another engine may be tried; after them none is.

        Raises:
            UpstreamError: no engine answered.
        """
        tried: list[Upstream] = []
        fault: UpstreamError | None = None
        while True:
            try:
                upstream = self._pool.choose(self._plan.model, tried)
            except NoUpstreamError as none_left:
                raise fault or none_left from None
            tried.append(upstream)
            try:
                await self._try(upstream)
            except UpstreamError as error:
                fault = error
                if self._is_ending:
                    raise
            else:
                return

    async def read(self) -> bytes:
        """The next bytes of the answer; empty at its end."""
        return await self.answer.read()

    async def abort(self) -> bool:
        """Tell the engine to end the request, until it has heard: its answer then ends with the exact usage.

        The first message can be there before the request is, so it is sent again; cancel this once the answer ended.

        Returns:
            False when the engine cannot be told: then only cutting the connection ends the request.
        """
        self._is_ending = True
        while self._upstream is not None:
            client = self._upstream.client
            url = client.address.endpoint("v1", f"requests/{self._attempt_id}/abort")
            try:
                answer = await client.post_empty(url, ABORT_TIMEOUT_S)
            except UpstreamError:
                return False
            if answer.status != 200:
                return False
            if _is_aborted(answer.body):
                return True
            await asyncio.sleep(ABORT_AGAIN_S)
        return False

    def close(self) -> None:
        """Drop the connection, unless the answer was read to its end. May be called again."""
        if self._answer is not None:
            self._answer.close()

    def finish(self) -> None:
        """Close, and count the request as over. Call once, last."""
        self.close()
        if self._upstream is not None:
            self._upstream.gave_up()
            self._upstream.end()
            self._upstream = None

    async def _try(self, upstream: Upstream) -> None:
        if self._upstream is not None:
            self._upstream.end()
        self._upstream = upstream
        upstream.begin()
        self.attempt += 1
        self._attempt_id = f"up-{secrets.token_hex(16)}"  # not to be guessed: it is the right to abort
        headers = {"x-request-id": self._attempt_id, "x-cache-salt": self._plan.cache_salt}
        url = upstream.client.address.endpoint(self._plan.prefix, self._plan.path)
        attempt = self._note_attempt(upstream.name)
        try:
            answer = await upstream.client.post(url, self._plan.body, headers)
            attempt.status = answer.status
            await self._judge(upstream, answer)
        except asyncio.CancelledError:
            attempt.fault = "given up: the request was over"
            upstream.gave_up()
            raise
        except UpstreamError as error:
            attempt.fault = str(error)[:300]
            self.close()
            if isinstance(error, _RefusedError) and error.is_about_request:
                upstream.succeeded()
            else:
                upstream.failed(str(error), self._pool.now(), error.retry_after_s)
            raise
        finally:
            attempt.took_ms = round(self._elapsed_ms() - attempt.began_ms, 3)
        upstream.succeeded()

    def _note_attempt(self, upstream: str) -> Attempt:
        attempt = Attempt(self.attempt, upstream, self._attempt_id, round(self._elapsed_ms(), 3))
        if len(self.attempts) < MAX_ATTEMPTS:
            self.attempts.append(attempt)
        return attempt

    def _elapsed_ms(self) -> float:
        return (time.perf_counter() - self._began_s) * 1000

    async def _judge(self, upstream: Upstream, answer: Answer) -> None:
        """Take the answer if it is one, else raise what is wrong with it."""
        self._answer = answer
        if answer.status in REFUSALS or answer.status in {401, 403}:
            raise await _refusal(upstream, answer)
        if self._plan.stream and answer.status == 200:
            self.head = await answer.read()
            if not self.head:
                raise UpstreamCutError(f"the engine at {upstream.name} ended its stream before it began")


class _RefusedError(UpstreamError):
    """The engine answered, with a refusal; one about this request alone leaves the engine up for others."""

    is_about_request = True


async def _refusal(upstream: Upstream, answer: Answer) -> UpstreamError:
    body = await answer.read_all(MAX_ERROR_BYTES)
    if answer.status in {401, 403}:
        return _RefusedError(f"the engine at {upstream.name} refuses the gateway's own key: see GATEWAY_UPSTREAM_KEY")
    message = f"the engine at {upstream.name} answers {answer.status}: {_message_of(body)}"
    refusal = _RefusedError(message, is_unavailable=answer.status != 500, retry_after_s=answer.retry_after_s)
    refusal.is_about_request = answer.status in {429, 500}
    return refusal


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
