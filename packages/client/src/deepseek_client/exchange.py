"""One request and its retries, as flows: send, judge the answer, wait, send again. No I/O."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar
from uuid import uuid4
from zlib import crc32

from pydantic import ValidationError

from deepseek_client.effects import AskKey, Enter, Fetch, Flow, Open, Opened, Reply, Sleep
from deepseek_client.error_mapping import error_of_event, error_of_response, excerpt, request_id_of
from deepseek_client.errors import (
    CLASS_OF_PHASE,
    DeepSeekError,
    EmptyResponseError,
    Phase,
    ResponseValidationError,
    StreamProtocolError,
)
from deepseek_client.pacing import Limiter, Place, Retry, RetryBudget, RetryPolicy, retry_delay_s
from deepseek_client.request import Call, HTTPRequest, build_request
from deepseek_client.settings import Settings, Timeout, checked_key
from deepseek_client.types.base import AnswerModel, Origin, WireModel

ModelT = TypeVar("ModelT", bound=WireModel)
_log = logging.getLogger(__name__)


class Attempts:
    """The retries of one call: how many there were, and until when there may be more.

    Args:
        settings: the client's.
        timeout: the call's limits.
        clock: seconds, monotonic.
        chance: a random number in [0, 1).
        budget: the client's.
        is_keyed: send an Idempotency-Key, also to a server that is not known to be our gateway.
    """

    def __init__(
        self,
        settings: Settings,
        timeout: Timeout,
        clock: Callable[[], float],
        chance: Callable[[], float],
        budget: RetryBudget,
        *,
        is_keyed: bool = False,
    ) -> None:
        self._policy = RetryPolicy(max_retries=settings.max_retries)
        self._budget = budget
        self._on_retry = settings.on_retry
        self._key = uuid4().hex if is_keyed or settings.profile == "gateway" else None
        self._clock = clock
        self._chance = chance
        self.retries_taken = 0
        self._first_token_s = timeout.first_token_s
        self._began = self.sent_at = clock()
        self.deadline = None if timeout.total_s is None else self.sent_at + timeout.total_s

    def note_sent(self) -> None:
        """A request is about to be sent."""
        self.sent_at = self._clock()

    def patience(self) -> tuple[float | None, Phase]:
        """How long a request may wait for a place, and which limit that is."""
        left_s = None if self.deadline is None else max(self.deadline - self._clock(), 0.0)
        if left_s is not None and (self._first_token_s is None or left_s <= self._first_token_s):
            return left_s, "total"
        return self._first_token_s, "pool"

    def elapsed_s(self) -> float:
        """Since the call began."""
        return self._clock() - self._began

    def stamp(self, error: DeepSeekError) -> None:
        """Note in an error how often and how long it was tried."""
        error.retries_taken = self.retries_taken
        error.elapsed = self.elapsed_s()

    def next_delay_s(self, error: DeepSeekError, *, is_sure: bool = False) -> float | None:
        """The wait before the next attempt, which is counted; None if the error is to be raised.

        Args:
            error: what the last attempt ended with.
            is_sure: another attempt helps, whatever the error.
        """
        self.stamp(error)
        delay = retry_delay_s(
            self._policy,
            error,
            retries_taken=self.retries_taken,
            left_s=None if self.deadline is None else self.deadline - self._clock(),
            chance=self._chance(),
            is_sure=is_sure,
        )
        if delay is None or not self._budget.take():
            return None
        self.retries_taken += 1
        _log.info(
            "retry %d in %.2f s after %s (request %s)",
            self.retries_taken,
            delay,
            type(error).__name__,
            error.request_id,
        )
        if self._on_retry is not None:
            self._on_retry(Retry(error, self.retries_taken, delay))
        return delay

    def key_of(self, request: HTTPRequest) -> str | None:
        """The Idempotency-Key of a request, the same at each attempt; our gateway answers both from one run."""
        if self._key is None or request.method != "POST" or "idempotency-key" in request.headers:
            return None
        what = request.url.encode() + b"\n" + (request.body or b"")
        return f"{self._key}-{crc32(what):08x}"


class Exchange:
    """Sends the requests of one client; holds its settings, a clock and a source of chance."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        budget: RetryBudget | None = None,
        limiter: Limiter | None = None,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self._chance = chance
        self._provided_key: str | None = None
        self.budget = budget or RetryBudget()
        self.limiter = limiter or (Limiter(settings.max_concurrency) if settings.max_concurrency is not None else None)

    def attempts(self, timeout: Timeout, *, resume: bool = False) -> Attempts:
        """Start counting the attempts of a call.

        Where a broken stream is to go on, a server that may be our gateway gets an Idempotency-Key: with one it numbers
        and keeps the events.
        """
        is_keyed = resume and self.settings.profile == "auto" and not self.settings.is_deepseek
        return Attempts(self.settings, timeout, self.clock, self._chance, self.budget, is_keyed=is_keyed)

    def fetch(self, method: str, path: str, call: Call) -> Flow[Reply]:
        """Send a plain request until it succeeds, fails for good, or may not be sent again.

        Raises:
            DeepSeekError: the last attempt's failure.
        """
        request = build_request(self.settings, method, path, call)
        attempts = self.attempts(call.timeout)
        while True:
            place = yield from self._enter(attempts)
            attempts.note_sent()
            try:
                prepared = yield from self._prepared(request, attempts)
                reply: Reply = yield Fetch(prepared, attempts.deadline, self.settings.middleware, place)
                self._check(reply)
            except DeepSeekError as error:
                delay = attempts.next_delay_s(error)
                if delay is None:
                    raise
            else:
                self.budget.give_back()
                return replace(reply, retries_taken=attempts.retries_taken, elapsed_s=attempts.elapsed_s())
            finally:
                if place is not None:
                    place.leave()
            yield Sleep(delay)

    def open(self, path: str, call: Call, attempts: Attempts) -> Flow[Opened]:
        """Send a request for a stream until one begins, or it fails for good. Raises as `fetch` does."""
        request = build_request(self.settings, "POST", path, call, is_stream=True)
        while True:
            place = yield from self._enter(attempts)
            attempts.note_sent()
            answer: Opened | Reply | None = None
            try:
                prepared = yield from self._prepared(request, attempts)
                answer = yield Open(prepared, attempts.deadline, self.settings.middleware, place=place)
                if isinstance(answer, Opened):
                    self.budget.give_back()
                    return answer
                assert isinstance(answer, Reply), "a driver answers with one of the two"
                self._check(answer)
                raise self._not_a_stream(answer)
            except DeepSeekError as error:
                delay = attempts.next_delay_s(error)
                if delay is None:
                    raise
            finally:
                if place is not None and not isinstance(answer, Opened):  # a stream has its place until it ends
                    place.leave()
            yield Sleep(delay)

    def parse(self, reply: Reply, model: type[ModelT]) -> ModelT:
        """The answer in a successful reply.

        Raises:
            APIStatusError: the body is an error although the status says success.
            ResponseValidationError: it is something else.
        """
        try:
            answer = model.model_validate_json(reply.body)
        except ValidationError as invalid:
            raise self._unreadable(reply, model.__name__, invalid) from invalid
        if isinstance(answer, AnswerModel):
            answer.with_origin(Origin(request_id_of(reply.headers), reply.retries_taken, reply.elapsed_s))
        return answer

    @property
    def secret(self) -> str | None:
        """The key in use, to be kept out of messages."""
        return self.settings.api_key or self._provided_key

    def _enter(self, attempts: Attempts) -> Flow[Place | None]:
        """Wait for a place, where there are only so many.

        Raises:
            PoolTimeout, DeadlineExceeded: there was none in time. Nothing was sent, and a retry would only wait again.
        """
        if self.limiter is None:
            return None
        wait_s, phase = attempts.patience()
        place: Place | None = yield Enter(self.limiter, wait_s)
        if place is None:
            limit = "first_token_s" if phase == "pool" else "total_s"
            error = CLASS_OF_PHASE[phase](
                f"max_concurrency={self.limiter.most} requests are in flight, and none ended within timeout.{limit}; a "
                "stream counts until it ends or is closed",
                phase=phase,
            )
            attempts.stamp(error)
            raise error
        return place

    def _prepared(self, request: HTTPRequest, attempts: Attempts) -> Flow[HTTPRequest]:
        """The request of one attempt: with its number, and with the key that the caller's function gives for it."""
        provider = self.settings.key_provider
        if provider is not None and "authorization" not in request.headers:
            provided = self._provided_key = checked_key((yield AskKey(provider)))
            if provided is not None:  # ours, also when another thread has asked meanwhile
                headers = {**request.headers, "authorization": f"Bearer {provided}"}
                request = replace(request, headers=headers)
        key = attempts.key_of(request)
        if key is not None:
            request = replace(request, headers={**request.headers, "idempotency-key": key})
        return replace(request, retries_taken=attempts.retries_taken) if attempts.retries_taken else request

    def _check(self, reply: Reply) -> None:
        secret = self.secret
        if not 200 <= reply.status < 300:
            raise error_of_response(reply.status, reply.headers, reply.body, secret=secret, now_s=time.time())
        if not reply.body.strip():
            raise EmptyResponseError(
                f"the server answered {reply.status} with an empty body", request_id=request_id_of(reply.headers)
            )

    def _not_a_stream(self, reply: Reply) -> DeepSeekError:
        secret = self.secret
        error = error_of_event(
            reply.body.decode("utf-8", "replace"), reply.headers, secret=secret, is_error_event=False
        )
        return error or StreamProtocolError(
            f"asked for a stream of events, got {reply.headers.get('content-type', 'no content type')}: "
            f"{excerpt(reply.body, secret)}",
            request_id=request_id_of(reply.headers),
        )

    def _unreadable(self, reply: Reply, name: str, invalid: ValidationError) -> DeepSeekError:
        secret = self.secret
        error = error_of_event(
            reply.body.decode("utf-8", "replace"), reply.headers, secret=secret, is_error_event=False
        )
        return error or ResponseValidationError(
            f"the answer is not a {name}: {describe(invalid)}; it begins: {excerpt(reply.body, secret)}",
            request_id=request_id_of(reply.headers),
        )


def describe(invalid: ValueError) -> str:
    """The first fault of a validation, without the values."""
    if not isinstance(invalid, ValidationError):
        return str(invalid)
    fault = invalid.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(step) for step in fault["loc"])
    return f"{where}: {fault['msg']}" if where else fault["msg"]
