"""How one request went: its access line and its metrics, written once, at its end."""

import logging
import time
from typing import Final

from deepseek_engine.server.generation import Course
from deepseek_engine.server.metrics import Metrics
from deepseek_engine.server.usage import UsageMeter

logger = logging.getLogger("deepseek_engine.access")

CLIENT_GONE: Final = 499
"""nginx's status for a caller that left; never sent, as nobody is there to read it."""


class RequestRecord:
    """Times, tokens and outcome of one request. Holds no text of prompt or answer."""

    def __init__(self, route: str, request_id: str) -> None:
        self._status = 500
        self._finish_reason = "error"
        self._is_usage_counted = False
        self.model = "-"
        self.adapter: str | None = None
        self.usage = UsageMeter(0)
        self.course = Course()
        self._route = route
        self._request_id = request_id
        self._start_s = time.perf_counter()
        self._first_token_s: float | None = None
        self._last_token_s = 0.0

    def note_tokens(self) -> None:
        """Tokens have come."""
        self._last_token_s = time.perf_counter()
        if self._first_token_s is None:
            self._first_token_s = self._last_token_s

    def succeed(self, status: int, finish_reason: str) -> None:
        """The answer was whole; its usage is what it cost."""
        self._status, self._finish_reason, self._is_usage_counted = status, finish_reason, True

    def fail(self, status: int, finish_reason: str = "error") -> None:
        """There was no whole answer. Failed requests report no usage, so that the token counters leave them out."""
        self._status, self._finish_reason = status, finish_reason

    def close(self, metrics: Metrics) -> None:
        """Count the request and log its line."""
        total_s = time.perf_counter() - self._start_s
        metrics.requests.labels(self._route, str(self._status), self._finish_reason).inc()
        if self.adapter is not None:
            metrics.count_adapter(self.adapter)
        if self._is_usage_counted:
            metrics.prompt_tokens.inc(self.usage.prompt_tokens)
            metrics.generation_tokens.inc(self.usage.completion_tokens)
        if self.course.queue_s is not None:
            metrics.queue_time.observe(self.course.queue_s)
        ttft_ms = "-"
        if self._first_token_s is not None:
            ttft_s = self._first_token_s - self._start_s
            ttft_ms = f"{ttft_s * 1000:.1f}"
            metrics.ttft.observe(ttft_s)
            metrics.e2e.observe(total_s)
            if self.usage.completion_tokens > 1:
                span_s = self._last_token_s - self._first_token_s
                metrics.time_per_token.observe(span_s / (self.usage.completion_tokens - 1))
        logger.info(
            "id=%s route=%s model=%s status=%d finish_reason=%s prompt_tokens=%d completion_tokens=%d cached_tokens=%d "
            "queue_ms=%s ttft_ms=%s total_ms=%.1f preemptions=%d",
            self._request_id,
            self._route,
            self.model,
            self._status,
            self._finish_reason,
            self.usage.prompt_tokens,
            self.usage.completion_tokens,
            self.usage.cached_tokens,
            "-" if self.course.queue_s is None else f"{self.course.queue_s * 1000:.1f}",
            ttft_ms,
            total_s * 1000,
            self.course.num_preemptions,
        )
