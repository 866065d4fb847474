"""Answers of the admin API."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from deepseek_gateway.auth.drafts import LimitsDraft
from deepseek_gateway.auth.records import Scope
from deepseek_gateway.storage.keys import KeyState


class Answer(BaseModel):
    """A JSON object; times are Unix seconds."""

    model_config = ConfigDict(extra="forbid")


class OrgAnswer(Answer):
    """An organisation."""

    id: str
    name: str
    created: float
    disabled: float | None


class TeamAnswer(OrgAnswer):
    """A team of an organisation."""

    org_id: str


class UserAnswer(TeamAnswer):
    """A user of an organisation, perhaps in a team."""

    team_id: str | None


class KeyAnswer(Answer):
    """A key without its secret."""

    id: str
    name: str
    scopes: list[Scope]
    state: KeyState
    org_id: str | None
    team_id: str | None
    user_id: str | None
    models: list[str] | None
    cidrs: list[str] | None
    tags: list[str]
    limits: LimitsDraft
    created: float
    created_by: str | None
    expires: float | None
    disabled: float | None
    owner_disabled: Literal["org", "team", "user"] | None
    revoked: float | None
    last_used: float | None
    previous_secret_until: float | None


class IssuedKeyAnswer(KeyAnswer):
    """A key at the one moment when its text is known."""

    key: str


class Page(Answer):
    """A part of a list."""

    next_cursor: str | None = Field(description="`cursor` of the next page; null at the end")


class OrgPage(Page):
    """Organisations, the oldest first."""

    data: list[OrgAnswer]


class TeamPage(Page):
    """Teams, the oldest first."""

    data: list[TeamAnswer]


class UserPage(Page):
    """Users, the oldest first."""

    data: list[UserAnswer]


class KeyPage(Page):
    """Keys, the oldest first."""

    data: list[KeyAnswer]


class IssuedKeyList(Answer):
    """New keys, in the order of their numbers."""

    data: list[IssuedKeyAnswer]


class UsageLineAnswer(Answer):
    """Sums of one combination of values. Of the dimensions only those that were asked for are there."""

    hour: str | None = Field(None, description="such as 2026-11-23T14:00, in the zone that was asked for")
    day: str | None = Field(None, description="such as 2026-11-23")
    key_id: str | None = None
    key_name: str | None = None
    org_id: str | None = None
    org_name: str | None = None
    team_id: str | None = None
    team_name: str | None = None
    user_id: str | None = None
    user_name: str | None = None
    tag: str | None = None
    model: str | None = None
    served_model: str | None = None
    route: str | None = None
    upstream: str | None = None
    status: str | None = None
    reason: str | None = None
    requests: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    total_tokens: int
    cost_nano: int = Field(description="1e-9 of the currency of the prices")


class UsageAnswer(Page):
    """Sums, in the order that was asked for."""

    data: list[UsageLineAnswer]
