"""What a flush writes: ledger rows, lives, and their place in the audit log, together."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from deepseek_gateway.audit.life import Refusal, life_of, refused_life
from deepseek_gateway.errors import StoreValueError
from deepseek_gateway.ledger.records import Settled
from deepseek_gateway.storage.audit import AuditTable
from deepseek_gateway.storage.ledger import LedgerTable
from deepseek_gateway.storage.lives import LifeTable

logger = logging.getLogger(__name__)

BATCH = 500
"""Requests a transaction: thousands may wait after an hour without a store, and other writers wait meanwhile."""


@dataclass(frozen=True, slots=True)
class Books:
    """The tables that requests end in."""

    ledger: LedgerTable
    lives: LifeTable
    audit: AuditTable

    def keep(self, settled: Sequence[Settled], refusals: Sequence[Refusal] = ()) -> None:
        """Keep requests that are over. Those that are there stay as they are: replays are harmless.

        One that the store cannot hold goes into the log, and holds up none of the others.
        """
        for start in range(0, max(1, len(settled)), BATCH):
            self._keep_all(settled[start : start + BATCH], refusals if start == 0 else ())

    def _keep_all(self, settled: Sequence[Settled], refusals: Sequence[Refusal]) -> None:
        try:
            self._keep(settled, refusals)
        except StoreValueError as error:
            if len(settled) + len(refusals) <= 1:
                logger.error("a request cannot be kept, here is all of it: %s %s: %s", settled, refusals, error)  # noqa: TRY400
                return
            if settled and refusals:
                parts = [(settled, ()), ((), refusals)]
            else:
                half, rest = len(settled) // 2, len(refusals) // 2
                parts = [(settled[:half], refusals[:rest]), (settled[half:], refusals[rest:])]
            for part in parts:
                self._keep_all(*part)

    def _keep(self, settled: Sequence[Settled], refusals: Sequence[Refusal]) -> None:
        lives, refused = [*map(life_of, settled)], [*map(refused_life, refusals)]
        with self.ledger.database.transaction() as transaction:
            pairs = self.ledger.insert([each.row for each in settled])
            self.lives.insert(transaction, self.audit, lives, refused)
        self.ledger.owners.remember(pairs)
