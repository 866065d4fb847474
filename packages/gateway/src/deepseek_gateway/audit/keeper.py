"""Keeps texts while requests run: a bounded queue to the store that loses texts rather than hold up a request."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from deepseek_gateway.audit.payload import Capture, Payload, Policy, subject_of
from deepseek_gateway.audit.retention import expiry
from deepseek_gateway.audit.texts import text_of
from deepseek_gateway.audit.vault import Vault
from deepseek_gateway.auth.records import KeyRecord
from deepseek_gateway.storage.payloads import SWEEP, PlainPayload
from deepseek_gateway.storage.store import Store

logger = logging.getLogger(__name__)

REFRESH_S = 2.0
"""Seconds that a change of a policy takes to reach this gateway."""

SWEEP_EVERY_S = 60.0
BATCH = 50
FLUSH_DELAY_S = 0.05


@dataclass(frozen=True, slots=True)
class Keeping:
    """One request whose texts are kept: `answer` is a stage of its relay."""

    keeper: "PayloadKeeper"
    request_id: str
    key: KeyRecord
    policy: Policy
    request: bytes = field(repr=False)
    answer: Capture = field(repr=False)
    is_stream: bool

    def finish(self) -> None:
        """Hand over what was asked and answered, however the request ended."""
        self.keeper.keep(self)


class PayloadKeeper:
    """Decides whose texts are kept, and brings them into the store.

    Args:
        store: where they are kept.
        vault: opens the master key; None where there is none, and then texts are lost until there is one.
        executor: where the store may block, and texts are sealed.
        count: told of texts that were `kept` or `lost`, and how many.
        max_bytes: longest request or answer that is kept whole.
        queue_bytes: texts that wait for the store, in bytes; more are lost.
        life_days: days that lives of requests are kept; 0 keeps them for good.
        wall: Unix time.
    """

    def __init__(
        self,
        store: Store,
        vault: Callable[[], Vault | None],
        executor: Executor,
        count: Callable[[str, int], None],
        *,
        max_bytes: int,
        queue_bytes: int,
        life_days: int = 0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._open_vault = vault
        self._vault = vault()
        self._executor = executor
        self._count = count
        self._max_bytes = max_bytes
        self._queue_bytes = queue_bytes
        self._life_days = life_days
        self._wall = wall
        self._policies: dict[tuple[str, str], Policy] = {}
        self._waiting: deque[Payload] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.failure: str | None = None

    @property
    def vault(self) -> Vault | None:
        """The master key; looked for again while there is none: `payload keep` makes it beside a running gateway."""
        if self._vault is None:
            self._vault = self._open_vault()
        return self._vault

    async def start(self) -> None:
        """Read the policies, then keep texts until `close`."""
        await self.refresh()
        loops = (self._refresh_forever(), self._flush_forever(), self._sweep_forever())
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    async def close(self) -> None:
        """Bring what waits into the store, if it takes it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(Exception):
            await self.flush()

    def begin(self, request_id: str, key: KeyRecord, request: bytes, *, is_stream: bool) -> "Keeping | None":
        """Keep a request's texts; None where they are not to be kept."""
        policy = self._policy_of(key) if self._policies else None
        if policy is None:
            return None
        return Keeping(self, request_id, key, policy, request, Capture(self._max_bytes), is_stream)

    def keep(self, keeping: "Keeping") -> None:
        """Put a request's texts into the queue; when that is full they are lost."""
        answer, request = keeping.answer, keeping.request
        payload = Payload(
            keeping.request_id,
            subject_of(keeping.key),
            keeping.key.public_id,
            keeping.policy,
            self._wall(),
            request[: self._max_bytes],
            tuple(answer.parts),
            keeping.is_stream,
            answer.is_truncated or len(request) > self._max_bytes,
        )
        if self._waiting_bytes + payload.size > self._queue_bytes:
            self._lose(1, "the queue is full")
            return
        self._waiting.append(payload)
        self._waiting_bytes += payload.size
        self._wake.set()

    def _policy_of(self, key: KeyRecord) -> Policy | None:
        """A key's own policy, else its organisation's."""
        policy = self._policies.get(("key", key.public_id))
        if policy is None and key.org_id is not None:
            policy = self._policies.get(("org", key.org_id))
        return policy if policy is not None and policy.days > 0 else None

    async def flush(self) -> None:
        """Bring what waits into the store; a batch that the store does not take is lost."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            self._waiting_bytes -= sum(payload.size for payload in batch)
            try:
                await loop.run_in_executor(self._executor, self._keep, batch)
            except Exception as error:  # whatever it is: requests go on
                self._lose(len(batch), str(error))
            else:
                self.failure = None
                self._count("kept", len(batch))

    async def refresh(self) -> None:
        """Read the policies; while the store cannot be read the old ones stand."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(Exception):
            self._policies = await loop.run_in_executor(self._executor, self._store.payloads.policies)

    async def sweep(self) -> int:
        """Delete texts and lives whose days are over, a batch at a time; gives how many texts."""
        loop, total = asyncio.get_running_loop(), 0
        while deleted := await loop.run_in_executor(self._executor, self._store.payloads.sweep, self._wall()):
            total += deleted
            if deleted < SWEEP:
                break
        while self._life_days and await loop.run_in_executor(self._executor, self._purge_lives) >= SWEEP:
            pass
        return total

    def _purge_lives(self) -> int:
        until = self._wall() - self._life_days * 86400
        return self._store.lives.purge(self._store.audit, until, SWEEP)

    def _keep(self, batch: list[Payload]) -> None:
        vault = self.vault
        if vault is None:
            raise RuntimeError("there is no master key: GATEWAY_PAYLOAD_KEY, or the file payload-key")
        plain = [
            PlainPayload(
                *(payload.request_id, payload.subject, payload.key_id, payload.created),
                *(expiry(payload.policy, payload.created), payload.policy.mask_pii),
                text_of(payload),
            )
            for payload in batch
        ]
        self._store.payloads.keep(plain, vault)

    def _lose(self, number: int, reason: str) -> None:
        if self.failure != reason:
            logger.error("texts of requests are lost: %s", reason)
        self.failure = reason
        self._count("lost", number)

    async def _flush_forever(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(FLUSH_DELAY_S)
            self._wake.clear()
            await self.flush()

    async def _refresh_forever(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            await self.refresh()

    async def _sweep_forever(self) -> None:
        while True:
            with contextlib.suppress(Exception):  # the store is down: later
                await self.sweep()
            await asyncio.sleep(SWEEP_EVERY_S)
