"""What was spent of a budget, as the books say."""

import asyncio
from concurrent.futures import Executor
from dataclasses import dataclass

from deepseek_gateway.ledger.ledger import Ledger
from deepseek_gateway.limits.rulebook import Meter
from deepseek_gateway.limits.rules import Kind
from deepseek_gateway.limits.windows import Window
from deepseek_gateway.storage.store import Store


@dataclass(frozen=True, slots=True)
class BudgetReader:
    """Reads a budget, with all that this gateway has settled; in the budget's unit."""

    ledger: Ledger
    store: Store
    executor: Executor

    async def __call__(self, meter: Meter, window: Window) -> int:
        """What was spent in a window."""
        loop, table = asyncio.get_running_loop(), self.store.ledger
        if meter.kind is Kind.BALANCE:
            await self.ledger.flush()
            account = meter.rule.id.removeprefix("balance:")
            balance = await loop.run_in_executor(self.executor, self.store.balances.find, account)
            return 0 if balance is None else balance.spent_nano
        await self.ledger.flush_of(meter.scope)
        arguments = meter.scope, meter.kind.unit, window.start, window.end
        return await loop.run_in_executor(self.executor, table.spent, *arguments)
