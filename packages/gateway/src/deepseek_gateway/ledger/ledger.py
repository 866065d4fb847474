"""The ledger: admit, observe, settle. What `settle` has returned for survives kill -9 and is billed once."""

from pathlib import Path

from deepseek_gateway.operator_errors import OperatorError
from deepseek_gateway.records import Admission, Settlement
from deepseek_gateway.storage.base import Store


class LedgerError(OperatorError):
    """The ledger cannot do its work."""


class StateLockedError(LedgerError):
    """Another process runs on this state directory; the message names it."""


class LedgerUnavailableError(LedgerError):
    """A record cannot be made durable: the disk failed, or too many rows wait for the store."""


class Ledger:
    """One per process and state directory. `open` blocks; the rest belongs to one event loop."""

    @classmethod
    def open(cls, state_dir: Path, store: Store) -> "Ledger":
        """Lock the state directory and bring what a crash left in the journal into the store. Blocks.

        Raises:
            StateLockedError: another process has it.
            StoreError: the store refuses the rows; the journal stays as it is.
        """
        raise NotImplementedError

    async def admit(self, admission: Admission) -> None:
        """Note that a request begins; returns when that is durable.

        From the call on, the request must be settled, even if the call is cancelled; not if it raises.

        Raises:
            LedgerUnavailableError: refuse the request with 503.
        """
        raise NotImplementedError

    def observe(self, request_id: str, attempt: int, prompt_tokens: int, completion_tokens: int) -> None:
        """Note the usage so far, to be billed if the process dies. Cheap: written about once a second."""
        raise NotImplementedError

    async def settle(self, settlement: Settlement) -> None:
        """Note how a request ended, once; returns when that is durable. One never admitted may be settled too.

        A cancelled call still settles.

        Raises:
            LedgerUnavailableError: the disk failed; the row goes straight to the store, but a crash may lose it.
        """
        raise NotImplementedError

    async def flush(self) -> None:
        """Return when every settled row is in the store.

        Raises:
            StoreUnavailableError: the store refused; the rows stay queued.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Flush, stop, and unlock the state directory. Requests still open are settled at the next start."""
        raise NotImplementedError

    @property
    def num_unstored(self) -> int:
        """Rows that are durable in the journal and not yet in the store."""
        raise NotImplementedError
