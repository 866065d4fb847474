"""Keys as administrators write them."""

from typing import Annotated, Literal

from pydantic import Field

from deepseek_gateway.auth.fields import Cidr, Draft, Id, ModelPattern, Name, Tag, UnixTime
from deepseek_gateway.limits.rules import Limits

MAX_LIMIT = 2**53 - 1
"""Beyond it JavaScript, and so the pages, would round."""

ScopeName = Literal["inference", "admin-read", "admin-write", "admin"]
Scopes = Annotated[list[ScopeName], Field(min_length=1, max_length=4, description="admin is both of its kinds")]
Models = Annotated[
    list[ModelPattern] | None,
    Field(max_length=256, description="exact names, or prefix*; null allows every model, an empty list none"),
]
Cidrs = Annotated[
    list[Cidr] | None,
    Field(max_length=256, description="networks; null allows every address, an empty list none"),
]
Tags = Annotated[list[Tag], Field(max_length=32)]
Limit = Annotated[int | None, Field(ge=1, le=MAX_LIMIT)]
Expires = Annotated[UnixTime | None, Field(description="Unix time; null is never")]


class LimitsDraft(Draft):
    """The limits of a key; one that is left out, or null, is no limit."""

    requests_per_minute: Limit = None
    tokens_per_minute: Limit = None
    concurrent_requests: Limit = None
    tokens_per_month: Limit = None

    def to_limits(self) -> Limits:
        """As the limiter takes them."""
        return Limits(**self.model_dump())


class KeyDraft(Draft):
    """A new key. Its organisation is its team's or user's where it is left out."""

    name: Name
    scopes: Scopes = Field(default=["inference"])
    org_id: Id | None = None
    team_id: Id | None = None
    user_id: Id | None = None
    models: Models = None
    cidrs: Cidrs = None
    tags: Tags = Field(default=[])
    limits: LimitsDraft = LimitsDraft()
    expires: Expires = None


class KeyChanges(Draft):
    """What to change of a key; what is left out stays. Limits are replaced together."""

    name: Name = Field(default_factory=str)
    scopes: Scopes = Field(default_factory=list)
    team_id: Id | None = None
    user_id: Id | None = None
    models: Models = None
    cidrs: Cidrs = None
    tags: Tags = Field(default=[])
    limits: LimitsDraft = LimitsDraft()
    expires: Expires = None
