"""Limits as response headers: `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, as OpenAI names them."""

from collections.abc import Iterable

from deepseek_gateway.limits.rules import Standing


def rate_limit_headers(standings: Iterable[Standing]) -> dict[str, str]:
    """Headers of the tightest rule of each kind: the one that leaves least, and of these the one that lasts longest."""
    tightest: dict[str, Standing] = {}
    for standing in standings:
        family = standing.rule.kind.family
        if family is None:
            continue
        known = tightest.get(family)
        if known is None or (standing.remaining, -standing.reset_s) < (known.remaining, -known.reset_s):
            tightest[family] = standing
    headers: dict[str, str] = {}
    for family, (rule, remaining, reset_s) in tightest.items():
        headers[f"x-ratelimit-limit-{family}"] = str(rule.limit)
        headers[f"x-ratelimit-remaining-{family}"] = str(remaining)
        headers[f"x-ratelimit-reset-{family}"] = f"{reset_s:.3f}s"
    return headers
