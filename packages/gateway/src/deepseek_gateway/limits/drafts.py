"""Rules as administrators write them."""

import secrets
import time
from dataclasses import asdict
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from deepseek_gateway.auth.fields import Draft, Id, ModelPattern
from deepseek_gateway.limits.rules import Kind, LimitRule
from deepseek_gateway.money.amounts import parse_money
from deepseek_gateway.storage.rules import LimitEvent

Each = Literal["*"]
KindName = Literal[
    "requests_per_minute",
    "tokens_per_minute",
    "concurrent_requests",
    "tokens_per_day",
    "tokens_per_month",
    "money_per_day",
    "money_per_month",
]
MONEY_KINDS = frozenset({"money_per_day", "money_per_month"})


class LimitDraft(Draft):
    """A rule: what is limited, how much, and for whom. A request counts if every subject given matches it."""

    kind: KindName
    limit: Annotated[int | str, Field(description='a whole number; of money a decimal in quotes, such as "12.50"')]
    org_id: Annotated[Id | Each | None, Field(description="* is each organisation for itself")] = None
    team_id: Id | Each | None = None
    user_id: Id | Each | None = None
    key_id: Annotated[Id | Each | None, Field(description="a key's public id")] = None
    model: Annotated[ModelPattern | None, Field(description="a name, a prefix*, or * for each model")] = None
    time_zone: Annotated[str, Field(min_length=1, max_length=64, description="where a day begins")] = "UTC"
    soft: Annotated[bool, Field(description="only tell when it is reached")] = False
    on_failure: Annotated[
        Literal["deny", "share"] | None,
        Field(description="while Redis is away: refuse, or keep this gateway's share; budgets only deny"),
    ] = None

    @model_validator(mode="after")
    def _holds(self) -> Self:
        self.to_rule("check")
        return self

    def to_rule(self, rule_id: str | None = None) -> LimitRule:
        """As the limiter takes it, with a new id if none is given.

        Raises:
            ValueError: it cannot hold.
        """
        if self.kind in MONEY_KINDS:
            limit = parse_money(str(self.limit))
        elif isinstance(self.limit, str):
            if not (self.limit.isascii() and self.limit.isdigit()):
                raise ValueError(f"limit={self.limit[:40]!r} is no whole number from 1")
            limit = int(self.limit)
        else:
            limit = self.limit
        return LimitRule(
            id=rule_id or f"lim_{secrets.token_hex(6)}",
            kind=Kind(self.kind),
            limit=limit,
            org_id=self.org_id,
            team_id=self.team_id,
            user_id=self.user_id,
            key_id=self.key_id,
            model=self.model,
            time_zone=self.time_zone,
            soft=self.soft,
            on_failure=self.on_failure or "",
            created=time.time(),
        )


def rule_json(rule: LimitRule) -> dict[str, object]:
    """A rule for listings: money as a decimal in quotes."""
    return {**rule.to_json(), "limit": rule.kind.shown(rule.limit)}


def event_json(event: LimitEvent) -> dict[str, object]:
    """A reached soft limit for listings: money as a decimal in quotes."""
    shown = Kind(event.kind).shown
    return {**asdict(event), "amount": shown(event.amount), "taken": shown(event.taken)}
