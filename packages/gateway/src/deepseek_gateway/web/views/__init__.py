"""What each page shows: read, decide, render."""

from deepseek_gateway.web.views import (
    account,
    audit,
    balances,
    keys,
    limits,
    login,
    oidc,
    overview,
    people,
    playground,
    preferences,
    requests,
    review,
    static,
    usage,
    words,
)

__all__ = [
    "account",
    "audit",
    "balances",
    "keys",
    "limits",
    "login",
    "oidc",
    "overview",
    "people",
    "playground",
    "preferences",
    "requests",
    "review",
    "static",
    "usage",
    "words",
]
