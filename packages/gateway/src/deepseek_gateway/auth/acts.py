"""What administrators do, as the services tell it: each act once, after it took effect."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from deepseek_gateway.auth.principal import Principal

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Act:
    """One act.

    Attributes:
        action: `key.create`, `org.rename` and the like.
        target: the id of what it was done to; of a batch, the first.
        org_id: the organisation that the target is, or is of.
        before, after: the target as listings show it, so without any secret; None where there was nothing.
        count: how many were made at once.
    """

    by: Principal
    action: str
    target: str
    org_id: str | None = None
    before: Mapping[str, object] | None = field(default=None, repr=False)
    after: Mapping[str, object] | None = field(default=None, repr=False)
    count: int = 1


ActRecorder = Callable[[Act], None]


def log_act(act: Act) -> None:
    """The least that is done with an act: a line in the log."""
    logger.info(
        "act=%s target=%s org=%s by=%s request_id=%s count=%d",
        act.action,
        act.target,
        act.org_id or "-",
        act.by,
        act.by.request_id or "-",
        act.count,
    )
