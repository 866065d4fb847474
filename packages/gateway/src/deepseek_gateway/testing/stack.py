"""A whole gateway behind a real socket in the running event loop."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from deepseek_gateway.app import create_app
from deepseek_gateway.auth.drafts import KeyDraft, LimitsDraft, ScopeName
from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.edge.protocol import GuardedProtocol
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.ledger.records import LedgerRow
from deepseek_gateway.limits.local import LocalLimiter
from deepseek_gateway.people.service import OrgDraft
from deepseek_gateway.settings import ConfigSource
from deepseek_gateway.state_dir import prepare_state
from deepseek_gateway.testing.caller import DEADLINE_S, Caller, until
from deepseek_gateway.testing.fake_engine import FakeEngine
from deepseek_gateway.testing.serving import Served, serving

OPERATOR = Principal.operator()


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """A gateway that is being served."""

    gateway: Gateway
    url: str

    def key(
        self,
        *,
        scopes: Sequence[ScopeName] = ("inference",),
        models: Sequence[str] | None = None,
        cidrs: Sequence[str] | None = None,
        tags: Sequence[str] = (),
        expires: float | None = None,
        org_id: str | None = None,
        team_id: str | None = None,
        user_id: str | None = None,
        **limits: int,
    ) -> str:
        """The text of a new key."""
        draft = KeyDraft(
            name="test",
            scopes=list(scopes),
            models=None if models is None else list(models),
            cidrs=None if cidrs is None else list(cidrs),
            tags=list(tags),
            expires=expires,
            org_id=org_id,
            team_id=team_id,
            user_id=user_id,
            limits=LimitsDraft(**limits),
        )
        return self.gateway.keys.create(OPERATOR, draft).text

    def org(self, name: str) -> str:
        """The id of a new organisation."""
        return self.gateway.people.create_org(OPERATOR, OrgDraft(name=name)).id

    async def rows(self, number: int = 0) -> list[LedgerRow]:
        """The ledger, once it has at least so many rows.

        Raises:
            TimeoutError: it has not within the deadline of all waits.
        """
        async with asyncio.timeout(DEADLINE_S):
            while True:
                await self.gateway.ledger.flush()
                rows = await asyncio.to_thread(self.gateway.store.ledger.rows)
                if len(rows) >= number:
                    return rows
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running_gateway(
    state_dir: Path, *upstreams: str | Mapping[str, object], **settings: object
) -> AsyncGenerator[RunningGateway]:
    """Migrate, start and serve a gateway in front of these engines; more settings by name.

    Without engines here they are those of `gateway.toml` in the state directory. A busy machine makes the event loop
    late: unless a test wants it, nobody is turned away for that.
    """
    flags = {"state_dir": state_dir, "upstreams": list(upstreams) or None, "shed_loop_lag_s": 0.0, **settings}
    source = ConfigSource(None, flags)
    loaded = source.load()
    await asyncio.to_thread(prepare_state, loaded)
    async with Gateway(loaded, source) as gateway, serving(create_app(gateway), protocol=GuardedProtocol) as served:
        yield RunningGateway(gateway, served.url)


@dataclass(frozen=True, slots=True)
class Stack:
    """One fake engine, one gateway, one caller whose key may do everything."""

    engine: FakeEngine
    served: Served
    running: RunningGateway
    caller: Caller

    @property
    def gateway(self) -> Gateway:
        """The gateway."""
        return self.running.gateway

    def with_key(self, **rules: Any) -> Caller:
        """A caller with a new key, made by `RunningGateway.key`."""
        return self.caller.with_key(self.running.key(**rules))

    def meter(self, counter: str) -> Any:
        """A counter of the gateway's limiter, which must be the local one."""
        limiter = self.gateway.limiter
        assert isinstance(limiter, LocalLimiter)
        return limiter.state(counter)

    async def row(self) -> LedgerRow:
        """The newest of the ledger's rows, once no request runs."""
        await until(lambda: self.gateway.running == 0)
        return (await self.running.rows(1))[-1]


@contextlib.asynccontextmanager
async def running_stack(state_dir: Path, **settings: object) -> AsyncGenerator[Stack]:
    """All of it on one event loop, behind real sockets."""
    engine = FakeEngine()
    async with (
        serving(engine) as served,
        running_gateway(state_dir, served.url, **settings) as running,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        yield Stack(engine, served, running, Caller(session, running.url, running.key()))
