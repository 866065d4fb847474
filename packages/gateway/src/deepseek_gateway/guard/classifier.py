"""An operator's classifier beside the word lists: a service that speaks OpenAI's /v1/moderations, asked over HTTP.

It judges what no list of words can. Requests wait for it only where it may block; answers, which went out as they came,
are judged afterwards, for the review queue.
"""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import SecretStr

from deepseek_gateway.errors import ApiError, UpstreamError
from deepseek_gateway.guard.events import REASON, encoded, parsed
from deepseek_gateway.guard.fields import Json, answer_texts, has_token_ids, request_texts
from deepseek_gateway.guard.moderations import ClassifierError, categories_of, pieces_of
from deepseek_gateway.guard.reviews import Finding, ReviewQueue, Told, Watched
from deepseek_gateway.metrics import GatewayMetrics
from deepseek_gateway.relay.frames import DONE_DATA, data_of
from deepseek_gateway.settings import Settings
from deepseek_gateway.upstream.address import UpstreamAddress
from deepseek_gateway.upstream.client import UpstreamClient

logger = logging.getLogger(__name__)

RULE = "classifier"
"""What reviews say in the place of a list's rule."""

MAX_CHARACTERS = 128 * 1024
"""Of one request or answer. What is longer cannot be judged whole, which is a failure."""

MAX_WAITING = 1000
MAX_WAITING_CHARACTERS = 32 * 2**20
MAX_AT_A_TIME = 8
MAX_ANSWER_BYTES = 2**20
REVIEW_TIMEOUT_S = 30.0
"""Nobody waits for a judgement that only a person reads."""

Mode = Literal["review", "block"]
Direction = Literal["in", "out"]


@dataclass(frozen=True, slots=True)
class ClassifierPlan:
    """What the settings `classifier_*` say."""

    url: str
    key: SecretStr | None
    model: str
    mode: Mode
    timeout_s: float
    fails_open: bool

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The settings that concern it."""
        return cls(
            settings.classifier_url,
            settings.classifier_key,
            settings.classifier_model,
            settings.classifier_mode,
            settings.classifier_timeout_s,
            settings.classifier_on_failure == "open",
        )


@dataclass(frozen=True, slots=True)
class _Job:
    watched: Watched
    direction: Direction
    text: str


class Classifier:
    """Asks the service. Make and use it inside the event loop.

    Args:
        plan: the settings.
        queue: where findings wait for a person.
        metrics: told of every judgement.
    """

    def __init__(self, plan: ClassifierPlan, queue: ReviewQueue, metrics: GatewayMetrics) -> None:
        self._plan = plan
        self._queue = queue
        self._metrics = metrics
        self._client = UpstreamClient(UpstreamAddress.parse(plan.url), plan.key, plan.timeout_s)
        self._waiting: deque[_Job] = deque()
        self._size = 0
        self._workers: set[asyncio.Task[None]] = set()
        self._is_failing = False

    @property
    def failure(self) -> str | None:
        """What is wrong with the service: shown in /ready."""
        return f"the classifier at {self._plan.url} gives no judgement" if self._is_failing else None

    async def screen(self, watched: Watched, fields: Json, told: Told) -> None:
        """Judge a request: before it goes on where the classifier may block, else on the side.

        Raises:
            ApiError: 400, the classifier flags it, or cannot read it; 503, it gave no judgement, and without one
                nothing may pass.
        """
        if self._plan.mode == "block" and not self._plan.fails_open and has_token_ids(fields):
            message = "prompts as token ids cannot be judged by the classifier of texts: send text"
            raise ApiError(400, message, code=REASON, kind=REASON)
        text = "\n".join([place.text for place in request_texts(fields)])
        if self._plan.mode == "review":
            self._put(_Job(watched, "in", text))
            return
        try:
            categories = await self._judge(text, self._plan.timeout_s)
        except ClassifierError as error:
            self._metrics.classified("failed", "in")
            if self._plan.fails_open:
                return
            message = "the classifier of texts does not answer, so nothing may pass: try again later"
            raise ApiError(503, message, code="content_filter_unavailable", headers={"retry-after": "5"}) from error
        if categories is None:
            self._metrics.classified("passed", "in")
            return
        self._metrics.classified("flagged", "in")
        told("classifier", f"block in {categories}")
        self._note(_Job(watched, "in", text), categories, "block")
        message = "the request is about what is not allowed here; change it and try again"
        raise ApiError(400, message, code=REASON, kind=REASON)

    def stage(self, watched: Watched) -> "AnswerKeeper":
        """Keeps an answer's texts, to be judged when it has ended."""
        return AnswerKeeper(self, watched)

    def judge_later(self, watched: Watched, text: str) -> None:
        """Judge an answer that went out, on the side."""
        self._put(_Job(watched, "out", text))

    async def close(self) -> None:
        """Let what waits go, and end."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        for job in self._waiting:
            self._metrics.classified("dropped", job.direction)
        self._waiting.clear()
        await self._client.close()

    def _put(self, job: _Job) -> None:
        if not job.text:
            return
        if len(self._waiting) >= MAX_WAITING or self._size + len(job.text) > MAX_WAITING_CHARACTERS:
            self._metrics.classified("dropped", job.direction)
            return
        self._waiting.append(job)
        self._size += len(job.text)
        if len(self._workers) < MAX_AT_A_TIME:
            worker = asyncio.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def _work(self) -> None:
        """Judge what waits, until nothing does."""
        while self._waiting:
            job = self._waiting.popleft()
            self._size -= len(job.text)
            try:
                categories = await self._judge(job.text, REVIEW_TIMEOUT_S)
            except ClassifierError:
                self._metrics.classified("failed", job.direction)
                continue
            self._metrics.classified("passed" if categories is None else "flagged", job.direction)
            if categories is not None:
                self._note(job, categories, "review")

    def _note(self, job: _Job, categories: str, level: str) -> None:
        found = Finding(RULE, categories, level, 0, len(job.text), job.text)
        self._queue.add(job.watched, found, job.direction, 0, "all")

    async def _judge(self, text: str, timeout_s: float) -> str | None:
        """The categories that a text is flagged for; None when it is not.

        Raises:
            ClassifierError: there is no judgement of the whole text in time.
        """
        if len(text) > MAX_CHARACTERS:
            raise ClassifierError(f"the text has {len(text)} characters, over {MAX_CHARACTERS}")
        try:
            async with asyncio.timeout(timeout_s):
                categories = await self._ask(text)
        except (ClassifierError, UpstreamError, TimeoutError) as error:
            what = f"none within {timeout_s:g} s" if isinstance(error, TimeoutError) else str(error)
            if not self._is_failing:
                logger.error("the classifier at %s gives no judgement: %s", self._plan.url, what)  # noqa: TRY400
            self._is_failing = True
            raise ClassifierError(what) from error
        if self._is_failing:
            logger.warning("the classifier judges again")
            self._is_failing = False
        return categories

    async def _ask(self, text: str) -> str | None:
        pieces = pieces_of(text)
        body = encoded({"input": pieces, **({"model": self._plan.model} if self._plan.model else {})})
        answer = await self._client.post(self._plan.url, body, {})
        try:
            told = await answer.read_all(MAX_ANSWER_BYTES)
        finally:
            answer.close()
        if answer.status != 200:
            raise ClassifierError(f"it answers {answer.status}")
        return categories_of(told, len(pieces))


class AnswerKeeper:
    """A stage that changes nothing. `finish` sends the texts that passed to the classifier."""

    def __init__(self, classifier: Classifier, watched: Watched) -> None:
        self._classifier = classifier
        self._watched = watched
        self._texts: dict[tuple[int, str], list[str]] = {}
        self._size = 0

    def pass_on(self, frame: bytes) -> bytes:
        """Note an event's texts."""
        data = data_of(frame)
        if data is not None and data != DONE_DATA:
            self._keep(data)
        return frame

    def body(self, body: bytes) -> bytes:
        """Note a whole answer's texts."""
        self._keep(body)
        return body

    def finish(self) -> None:
        """The answer has ended, however it did."""
        text = "\n".join(["".join(parts) for parts in self._texts.values()])
        self._texts.clear()
        self._classifier.judge_later(self._watched, text)

    def _keep(self, data: bytes) -> None:
        if self._size > MAX_CHARACTERS:  # it cannot be judged any more
            return
        try:
            event = parsed(data)
        except ValueError:
            return
        for place in answer_texts(event):
            self._texts.setdefault((place.choice, place.field), []).append(place.text)
            self._size += len(place.text)
