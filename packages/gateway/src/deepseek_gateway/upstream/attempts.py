"""What became of each try at an engine: kept with the request, also when another engine answered in the end."""

from dataclasses import dataclass

MAX_ATTEMPTS = 32
"""Tries that are kept of one request: more than one pass over a large pool."""


@dataclass(slots=True)
class Attempt:
    """One try at one engine; times are milliseconds since the call began.

    `id` went to the engine as `x-request-id`, so that its own log can be searched. `status` is the engine's HTTP
    status, None where none came; `model` is the engine's own name for the model. `fault` is None for the try
    that answered.
    """

    number: int
    upstream: str
    id: str
    began_ms: float
    took_ms: float | None = None
    status: int | None = None
    model: str | None = None
    fault: str | None = None

    def copy(self) -> "Attempt":
        """As it is now: one that is given up later changes."""
        return Attempt(
            *(self.number, self.upstream, self.id, self.began_ms),
            *(self.took_ms, self.status, self.model, self.fault),
        )
