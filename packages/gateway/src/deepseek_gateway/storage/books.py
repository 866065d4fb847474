"""What a flush writes: ledger rows, lives, and their place in the audit log, together."""

from collections.abc import Sequence
from dataclasses import dataclass

from deepseek_gateway.audit.life import Refusal, life_of, refused_life
from deepseek_gateway.ledger.records import Settled
from deepseek_gateway.storage.audit import AuditTable
from deepseek_gateway.storage.ledger import LedgerTable
from deepseek_gateway.storage.lives import LifeTable

BATCH = 500
"""Requests a transaction: thousands may wait after an hour without a store, and other writers wait meanwhile."""


@dataclass(frozen=True, slots=True)
class Books:
    """The tables that requests end in."""

    ledger: LedgerTable
    lives: LifeTable
    audit: AuditTable

    def keep(self, settled: Sequence[Settled], refusals: Sequence[Refusal] = ()) -> None:
        """Keep requests that are over. Those that are there stay as they are: replays are harmless."""
        for start in range(0, max(1, len(settled)), BATCH):
            self._keep(settled[start : start + BATCH], refusals if start == 0 else ())

    def _keep(self, settled: Sequence[Settled], refusals: Sequence[Refusal]) -> None:
        lives = [*map(life_of, settled), *map(refused_life, refusals)]
        with self.ledger.database.transaction() as transaction:
            self.ledger.insert([each.row for each in settled])
            self.lives.insert(transaction, self.audit, lives)
