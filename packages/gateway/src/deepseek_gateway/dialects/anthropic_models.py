"""Anthropic's GET /v1/models, for its packages: they say which version of its API they speak, others do not."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from starlette.types import Scope

from deepseek_gateway.edge.context import header
from deepseek_gateway.foreign import Fields

PREFIX = "/anthropic/"


def speaks_anthropic(scope: Scope) -> bool:
    """Whether a caller speaks Anthropic's API."""
    return scope["path"].startswith(PREFIX) or header(scope, b"anthropic-version") is not None


def model_of(model: Fields) -> Fields:
    """One model; one of unknown age is from the epoch, as Anthropic has it."""
    created: Any = model.get("created")
    context: Any = model.get("max_model_len")
    made: Fields = {
        "type": "model",
        "id": model["id"],
        "display_name": model["id"],
        "created_at": _time(created if isinstance(created, int) and 0 <= created < 2**35 else 0),
    }
    return {**made, "max_input_tokens": context} if isinstance(context, int) else made


def page_of(models: Sequence[Fields]) -> Fields:
    """All models, on one page."""
    data = [model_of(model) for model in models]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"data": data, "has_more": False, **ends}


def _time(created: int) -> str:
    return datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
