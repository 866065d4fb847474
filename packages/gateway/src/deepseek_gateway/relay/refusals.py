"""Limits as answers to callers."""

import math

from deepseek_gateway.errors import ApiError
from deepseek_gateway.limits.headers import rate_limit_headers
from deepseek_gateway.limits.rules import LimitReached, LimitsUnavailable


def refusal_of(limit: LimitReached | LimitsUnavailable) -> ApiError:
    """A reached limit: 402 for budgets and money, 429 for a rate. One that nobody can check now: 503."""
    if isinstance(limit, LimitsUnavailable):
        return _unavailable(limit)
    headers = {"x-ratelimit-rule": limit.rule.id, **rate_limit_headers(limit.standings)}
    if limit.rule.kind.period is not None:
        return ApiError(402, limit.message, code="insufficient_balance", headers=headers)
    if limit.retry_after_s is None:  # it never fits: whoever retries 429 is told not to
        headers["x-should-retry"] = "false"
    else:
        headers |= retry_headers(limit.retry_after_s)
    return ApiError(429, limit.message, code=limit.rule.kind.value, headers=headers)


def retry_headers(wait_s: float) -> dict[str, str]:
    """When to try again: whole seconds, as HTTP has them, and exact milliseconds, which SDKs prefer; neither early."""
    return {"retry-after": str(max(1, math.ceil(wait_s))), "retry-after-ms": str(max(1, math.ceil(wait_s * 1000)))}


def reason_of(limit: LimitReached | LimitsUnavailable) -> str:
    """A limit as the end_reason of a stream."""
    return f"limit_{limit.rule.kind.value}" if isinstance(limit, LimitReached) else "limits_unavailable"


def _unavailable(limits: LimitsUnavailable) -> ApiError:
    headers = {"retry-after": "1"}
    if limits.rule is not None:
        headers["x-ratelimit-rule"] = limits.rule.id
    return ApiError(503, limits.message, code="limits_unavailable", headers=headers)
