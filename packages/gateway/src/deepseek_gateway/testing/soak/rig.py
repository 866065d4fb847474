"""All processes of a soak: a gateway before two engines, PostgreSQL and Redis where they are installed."""

import argparse
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psycopg

from deepseek_gateway.bench.targets import free_port, gateway_output
from deepseek_gateway.testing.postgres import PostgresServer, ServerNotInstalledError, postgres_server
from deepseek_gateway.testing.processes import FAKE_ENGINE, GATEWAY, RunningProcess
from deepseek_gateway.testing.redis_server import RedisServer, redis_program, redis_server
from deepseek_gateway.testing.soak.clock import SettableClock
from deepseek_gateway.testing.soak.seen import Seen
from deepseek_gateway.top.samples import Samples

REQUESTS_PER_MINUTE, CONCURRENT = 300, 3
HEAD_TIMEOUT_S, SEND_TIMEOUT_S = 2, 10


@dataclass(slots=True)
class Rig:
    """The processes, and questions to the gateway. `frail` is the engine that suffers; it keeps its port."""

    gateway: RunningProcess
    url: str
    keys: dict[str, str]
    steady_url: str
    frail_port: int
    frail: RunningProcess
    redis: RedisServer | None
    postgres: PostgresServer | None
    clock: SettableClock | None
    store_url: str | None
    state: Path
    seen: Seen = field(default_factory=Seen)
    _session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """Connections to the gateway."""
        assert self._session is not None
        return self._session

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncGenerator[None]:
        """Connections for as long as the block runs."""
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120)) as session:
            self._session = session
            yield

    @property
    def pid(self) -> int:
        """The gateway's."""
        return self.gateway.process.pid

    @property
    def num_files(self) -> int:
        """Files and sockets that the gateway has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    async def metrics(self) -> Samples:
        """What the gateway says of itself."""
        async with self.session.get(f"{self.url}/metrics") as answer:
            return Samples.parse(await answer.text(), time.monotonic())

    async def faults(self) -> list[str]:
        """What /ready says is wrong, whether it takes traffic or not."""
        async with self.session.get(f"{self.url}/ready") as answer:
            told = await answer.json()
            return list(told.get("faults", ())) if answer.status == 200 else [told["error"]["message"]]

    async def truth(self) -> tuple[int, int]:
        """What the steady engine counted: prompt and completion tokens."""
        async with self.session.get(f"{self.steady_url}/fake/truth") as answer:
            usage = await answer.json()
            return usage["prompt_tokens"], usage["completion_tokens"]

    def kill_engine(self) -> None:
        """End the frail engine at once."""
        self.frail.process.kill()
        self.frail.process.wait()

    def start_engine(self) -> None:
        """Start it again, where it was."""
        self.frail.__exit__(None, None, None)
        self.frail = _engine(self.frail_port)


@contextlib.contextmanager
def rig_for(options: argparse.Namespace, folder: Path) -> Generator[Rig]:
    """Start everything; stop it when the block ends."""
    with contextlib.ExitStack() as stack:
        env = {"GATEWAY_HEAD_TIMEOUT_S": str(HEAD_TIMEOUT_S), "GATEWAY_SEND_TIMEOUT_S": str(SEND_TIMEOUT_S)}
        env |= {"GATEWAY_BODY_TIMEOUT_S": str(HEAD_TIMEOUT_S), "GATEWAY_ACCESS_LOG": "off"}
        redis = None if options.no_redis or redis_program() is None else stack.enter_context(redis_server())
        if redis is not None:
            env["GATEWAY_REDIS_URL"] = redis.url
        postgres, store_url = None, None
        if not options.no_postgres:
            with contextlib.suppress(ServerNotInstalledError):
                postgres = stack.enter_context(postgres_server())
                store_url = env["GATEWAY_STORE_URL"] = postgres.new_database(migrated=False)
                _commit_for_good(store_url)
        state = folder / "state"
        keys = _keys(state, env)
        steady = stack.enter_context(RunningProcess([*FAKE_ENGINE, "--port", "0"]))
        steady_url, frail_port = steady.line("http"), free_port()
        frail, clock = _engine(frail_port), SettableClock.build(folder)
        command = [*GATEWAY, "serve", "--state", str(state), "--port", "0", "--upstream", steady_url]
        command += ["--upstream", f"http://127.0.0.1:{frail_port}"]
        gateway = stack.enter_context(RunningProcess(command, env if clock is None else {**env, **clock.env}))
        url = gateway.line("listening on").split()[2]
        rig = Rig(gateway, url, keys, steady_url, frail_port, frail, redis, postgres, clock, store_url, state)
        try:
            yield rig
        finally:
            rig.frail.__exit__(None, None, None)


def _engine(port: int) -> RunningProcess:
    engine = RunningProcess([*FAKE_ENGINE, "--port", str(port)])
    engine.line("http")
    return engine


def _keys(state: Path, env: dict[str, str]) -> dict[str, str]:
    """A key without limits and one with."""
    gateway_output("migrate", "--state", str(state), env=env)
    limits = ("--rpm", str(REQUESTS_PER_MINUTE), "--concurrent", str(CONCURRENT))
    keys: dict[str, str] = {}
    for name, more in (("free", ()), ("limited", limits)):
        text = gateway_output("key", "create", "--state", str(state), "--name", name, *more, "--json", env=env)
        keys[name] = json.loads(text)["key"]
    return keys


def _commit_for_good(store_url: str) -> None:
    """The tests' server forgets its last commits when it is killed, to be quick: this database shall not."""
    with psycopg.connect(store_url, autocommit=True) as connection:
        connection.execute(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = on', current_database()); END $$"
        )
