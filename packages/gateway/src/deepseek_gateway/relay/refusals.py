"""Limits as answers to callers."""

import math

from deepseek_gateway.errors import ApiError
from deepseek_gateway.limits.headers import rate_limit_headers
from deepseek_gateway.limits.rules import LimitReached, LimitsUnavailable


def refusal_of(limit: LimitReached) -> ApiError:
    """A reached limit: 402 for budgets and money, 429 for a rate."""
    headers = {"x-ratelimit-rule": limit.rule.id, **rate_limit_headers(limit.standings)}
    if limit.rule.kind.period is not None:
        return ApiError(402, limit.message, code="insufficient_balance", headers=headers)
    if limit.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(limit.retry_after_s)))
    return ApiError(429, limit.message, code=limit.rule.kind.value, headers=headers)


def unavailable(limits: LimitsUnavailable) -> ApiError:
    """A rule that nobody can check now, and that must not be passed unchecked."""
    headers = {"retry-after": "1"}
    if limits.rule is not None:
        headers["x-ratelimit-rule"] = limits.rule.id
    return ApiError(503, limits.message, code="limits_unavailable", headers=headers)
