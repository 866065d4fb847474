"""Who used how many tokens, without loss: a journal on local disk first, then rows in the store."""

from deepseek_gateway.ledger.ledger import Ledger, LedgerError, LedgerUnavailableError, StateLockedError

__all__ = ["Ledger", "LedgerError", "LedgerUnavailableError", "StateLockedError"]
