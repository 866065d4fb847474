"""What administrators do, as the services tell it: each act once, in the transaction that makes the change."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.storage.audit import AuditTable

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


def record_act(audit: AuditTable, act: Act) -> None:
    """Write an act into the audit log, as the last step of the transaction that makes the change; and into the log."""
    with audit.database.transaction() as transaction:
        audit.record(transaction, act.by, act.action, act.target, before=act.before, after=act.after)
    logger.info(
        "act=%s target=%s org=%s by=%s request_id=%s count=%d",
        act.action,
        act.target,
        act.org_id or "-",
        act.by,
        act.by.request_id or "-",
        act.count,
    )
