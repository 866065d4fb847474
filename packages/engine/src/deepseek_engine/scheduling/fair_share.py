"""How much of the engine each tenant has had: virtual token counters (VTC, arXiv 2401.00588).

Whoever has had least goes next. A tenant that comes back after a pause starts at the level of those that are being
served: time spent away earns no credit that could later be used to shut the others out.
"""

from typing import Final

PROMPT_TOKEN_COST: Final = 1
OUTPUT_TOKEN_COST: Final = 2
"""A decoded token takes a pass over the weights of its own, a prompt's tokens share one (the paper's weights)."""

MAX_TENANTS: Final = 4096
"""Counters kept. Those that are dropped first are the ones nearest to a newcomer's."""


class FairShare:
    """Counters of served tokens by tenant; they only grow."""

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._floor = 0

    def served(self, tenant: str) -> int:
        """Cost of what the tenant was given, counted from where it came in."""
        return self._served.get(tenant, self._floor)

    def join(self, tenant: str) -> None:
        """The tenant begins to wait, after nothing of it did."""
        self._served[tenant] = max(self.served(tenant), self._floor)
        if len(self._served) > 2 * MAX_TENANTS:
            self._forget_the_least_served()

    def choose(self, tenant: str) -> None:
        """The tenant's turn has come: newcomers start at its counter from now on."""
        self._floor = max(self._floor, self.served(tenant))

    def charge(self, tenant: str, cost: int) -> None:
        """Count what was given to the tenant."""
        self._served[tenant] = self._served.get(tenant, self._floor) + cost

    def _forget_the_least_served(self) -> None:
        kept = sorted(self._served.items(), key=lambda entry: entry[1])[-MAX_TENANTS:]
        self._served = dict(kept)
