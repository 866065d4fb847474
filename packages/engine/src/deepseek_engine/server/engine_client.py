"""What the server asks of the engine; AsyncEngine is the real one."""

from typing import Protocol, Self

from deepseek_engine.core_watch import CoreVitals
from deepseek_engine.lora.directory import AdapterDirectory
from deepseek_engine.messages import Delta, EngineStats, Ready, Submit


class DeltaStream(Protocol):
    """The deltas of one request: each item is all that has come since the one before; it ends with the last answer."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> list[Delta]:
        """The next deltas.

        Raises:
            EngineDeadError: the core is gone.
        """
        ...

    def close(self) -> None:
        """Cancel the request unless it has ended."""
        ...


class EngineClient(Protocol):
    """An engine that runs somewhere else and talks in messages."""

    @property
    def info(self) -> Ready:
        """What was loaded."""
        ...

    @property
    def stats(self) -> EngineStats:
        """The state after the last step."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether the core can serve."""
        ...

    @property
    def vitals(self) -> CoreVitals:
        """Whether the core is heard of, and what it last said about itself."""
        ...

    @property
    def adapters(self) -> AdapterDirectory:
        """The LoRA adapters that requests may name."""
        ...

    def submit(self, submit: Submit, /) -> DeltaStream:
        """Queue a request.

        Raises:
            ContextLengthError: it does not fit the context.
            InvalidRequestError: it can never be served.
            UnknownAdapterError: its adapter is not loaded.
            QueueFullError: too many wait already.
            EngineDeadError: the core is gone.
        """
        ...

    def cancel(self, request_id: str, index: int | None = None) -> bool:
        """End a request, or one answer of it, with finish reason `abort`; False if no such request is open."""
        ...

    def dump_state(self) -> None:
        """Have the core write its state to the log."""
        ...

    async def wait_dead(self) -> None:
        """Return when the core is gone."""
        ...

    async def shutdown(self) -> None:
        """Stop the core."""
        ...
