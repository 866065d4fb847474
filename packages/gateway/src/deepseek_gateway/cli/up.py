"""`deepseek-gateway up`: the whole stack on one machine."""

import argparse
import asyncio
import json
import shlex
import sys
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import uvloop

from deepseek_gateway.access_log import set_up_logging
from deepseek_gateway.auth.drafts import KeyDraft
from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.cli.common import Commands, add_listen_flags, add_state_flag, settings_of, source_of
from deepseek_gateway.config.sections import UpstreamSection
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.server import GatewayServer, keep_pauses_short, listen
from deepseek_gateway.settings import ConfigSource, Settings
from deepseek_gateway.stack.engine import EngineFiles, EngineProcess
from deepseek_gateway.stack.supervisor import EngineSupervisor
from deepseek_gateway.state_dir import prepare_state
from deepseek_gateway.web.accounts import Accounts

DEFAULT_MODEL = "smollm2"
DEFAULT_ENGINE = (sys.executable, "-m", "deepseek_engine.server")
OWN_ENGINE = "local"
"""The upstream's name of the engine that `up` starts."""
PROGRESS_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What `up` was asked to do."""

    settings: Settings
    source: ConfigSource
    files: EngineFiles
    command: tuple[str, ...]
    start_timeout_s: float
    as_json: bool


@dataclass(frozen=True, slots=True)
class NewKeys:
    """The keys of this start, at the one moment when they are known."""

    admin: str
    user: str


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "up",
        help="run the whole stack on this machine: an engine, and the gateway in front of it",
        epilog="What stands after -- goes to the engine: deepseek-gateway up -- --dtype float32",
    )
    add_state_flag(parser)
    add_listen_flags(parser)
    parser.add_argument("--model-path", default=DEFAULT_MODEL, help=f"model of the engine ({DEFAULT_MODEL})")
    parser.add_argument(
        "--engine-command", type=shlex.split, default=DEFAULT_ENGINE, help="another engine that takes the same flags"
    )
    parser.add_argument("--start-timeout", type=float, default=600.0, help="seconds that the engine has to start (600)")
    parser.add_argument(
        "--json",
        action="store_true",
        help="when ready, print one line with url, admin_key and user_key, new each start",
    )
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT."""
    given = settings_of(parsed)
    prepare_state(given)
    files = EngineFiles.within(given.state_dir)
    own = UpstreamSection.model_validate({"name": OWN_ENGINE, "url": f"unix://{files.socket}"})
    source = replace(source_of(parsed), own_upstreams=(own,))
    settings = source.load()
    set_up_logging(settings.log_level, settings.access_log)
    flags = ("--model-path", parsed.model_path, "--uds", str(files.socket))
    command = (*parsed.engine_command, *flags, *parsed.engine_arguments)
    uvloop.run(_up(Plan(settings, source, files, command, parsed.start_timeout, parsed.json)))
    return 0


async def _up(plan: Plan) -> None:
    settings = plan.settings
    gateway = Gateway(settings, plan.source)  # takes the state directory's lock before an engine starts
    listener = listen(settings.host, settings.port, settings.send_timeout_s)
    server = GatewayServer(gateway, listener)
    supervisor = EngineSupervisor(lambda: EngineProcess(plan.command, plan.files), plan.start_timeout_s)
    with server.handling_signals():
        try:
            if await server.unless_stopped(supervisor.start(_Progress(plan.command))):
                async with gateway:
                    keep_pauses_short()
                    await server.serve(lambda url: _announce(plan, gateway, url))
        finally:
            if server.is_stopping_now:
                supervisor.kill()
            await supervisor.stop()
            plan.files.clear()


async def _announce(plan: Plan, gateway: Gateway, url: str) -> None:
    keys = await asyncio.to_thread(_new_keys, plan, gateway)
    if plan.as_json:
        assert keys is not None
        print(json.dumps({"url": url, "admin_key": keys.admin, "user_key": keys.user}), flush=True)
        return
    print(f"listening on {url}")
    if keys is not None:
        print(f"admin key: {keys.admin}\nuser key:  {keys.user}\nThis is the only time that these keys are shown.")
    if gateway.settings.web:
        account = await asyncio.to_thread(Accounts(gateway.store).create_first)
        if account is not None:
            print(f"admin page: {url}/ui/ with the account {account[0]!r} and the password {account[1]}")
            print("This is the only time that the password is shown; `deepseek-gateway admin passwd` sets a new one.")
    key = keys.user if keys is not None else "$DEEPSEEK_API_KEY"
    body = '{"prompt": "Explain quantum computing in two sentences.", "max_tokens": 128, "stream": true}'
    print(f"try: curl -N {url}/v1/generate -H 'authorization: Bearer {key}' -d '{body}'", flush=True)


def _new_keys(plan: Plan, gateway: Gateway) -> NewKeys | None:
    """Keys for this start: always under --json, else only for a store that has none."""
    if not plan.as_json and gateway.store.keys.has_any():
        return None
    when = datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%d %H:%M")
    by = Principal.operator()
    admin = gateway.keys.create(by, KeyDraft(name=f"up: admin, {when}", scopes=["admin-read", "admin-write"]))
    user = gateway.keys.create(by, KeyDraft(name=f"up: user, {when}"))
    return NewKeys(admin.text, user.text)


class _Progress:
    """Tells on stderr how long the engine has been starting."""

    def __init__(self, command: tuple[str, ...]) -> None:
        print(f"starting the engine: {shlex.join(command)}", file=sys.stderr, flush=True)
        self._next_s = PROGRESS_EVERY_S

    def __call__(self, waited_s: float) -> None:
        if waited_s >= self._next_s:
            self._next_s += PROGRESS_EVERY_S
            print(f"waiting for the engine: {waited_s:.0f} s", file=sys.stderr, flush=True)
