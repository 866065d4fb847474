"""Limits as response headers: `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, as OpenAI names them."""

from deepseek_gateway.limits.limiter import KeyMeters
from deepseek_gateway.limits.rules import Limits, Now


def rate_limit_headers(meters: KeyMeters, limits: Limits, now: Now) -> dict[str, str]:
    """Headers for the limits that a key has; `reset` is when the bucket is full, in seconds."""
    headers: dict[str, str] = {}
    rate = limits.requests_per_minute
    if rate is not None:
        headers["x-ratelimit-limit-requests"] = str(rate)
        headers["x-ratelimit-remaining-requests"] = str(meters.requests.remaining(rate, now.monotonic_s))
        headers["x-ratelimit-reset-requests"] = f"{meters.requests.reset_s(now.monotonic_s):.3f}s"
    rate = limits.tokens_per_minute
    if rate is not None:
        headers["x-ratelimit-limit-tokens"] = str(rate)
        headers["x-ratelimit-remaining-tokens"] = str(max(0, int(meters.tokens.available(rate, now.monotonic_s))))
        headers["x-ratelimit-reset-tokens"] = f"{meters.tokens.reset_s(rate, now.monotonic_s):.3f}s"
    return headers
