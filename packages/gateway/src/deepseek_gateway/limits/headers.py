"""Limits as response headers: `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, as OpenAI names them."""

from collections.abc import Iterable

from deepseek_gateway.limits.rules import Kind, Standing

_FAMILIES = {
    "requests": frozenset({Kind.REQUESTS_PER_MINUTE}),
    "tokens": frozenset({Kind.TOKENS_PER_MINUTE, Kind.TOKENS_PER_DAY, Kind.TOKENS_PER_MONTH}),
}


def rate_limit_headers(standings: Iterable[Standing]) -> dict[str, str]:
    """Headers of the tightest rule of each kind: the one that leaves least, and of these the one that lasts longest."""
    headers: dict[str, str] = {}
    standings = tuple(standings)
    for family, kinds in _FAMILIES.items():
        of_kind = [standing for standing in standings if standing.rule.kind in kinds]
        if of_kind:
            tightest = min(of_kind, key=lambda standing: (standing.remaining, -standing.reset_s))
            headers[f"x-ratelimit-limit-{family}"] = str(tightest.rule.limit)
            headers[f"x-ratelimit-remaining-{family}"] = str(tightest.remaining)
            headers[f"x-ratelimit-reset-{family}"] = f"{tightest.reset_s:.3f}s"
    return headers
