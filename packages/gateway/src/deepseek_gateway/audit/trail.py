"""What a request's life tells beside its ledger row: versions that were in force, tries at engines, steps."""

import re
from dataclasses import dataclass
from typing import Any

from deepseek_gateway.upstream.attempts import Attempt

MAX_CLIENT_ID = 128
MAX_STEPS = 32

_PLAIN = re.compile(rf"[0-9A-Za-z._:/+=@-]{{1,{MAX_CLIENT_ID}}}")


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened on the way; `at_ms` counts from the request's arrival."""

    name: str
    at_ms: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Trail:
    """See the module. `client_request_id` is the caller's own `X-Request-ID`."""

    client_request_id: str | None = None
    policy_version: str = ""
    list_version: str = ""
    attempts: tuple[Attempt, ...] = ()
    steps: tuple[Step, ...] = ()
    is_kept: bool = False

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Trail":
        """Read the journal's form."""
        given = dict(values)
        given["attempts"] = tuple(Attempt(**attempt) for attempt in values.get("attempts", ()))
        given["steps"] = tuple(Step(**step) for step in values.get("steps", ()))
        return cls(**given)


NO_TRAIL = Trail()


def plain_id(text: str | None) -> str | None:
    """A caller's own request id, where it is short and plain; else None: it goes into logs and pages."""
    return text if text is not None and _PLAIN.fullmatch(text) else None
