"""Secrets are in no output of a command, no page, no log and no row, URLs that hold a password included."""

import asyncio
import base64
import contextlib
import io
import logging
from pathlib import Path

import aiohttp
import pytest

from deepseek_gateway.auth.records import ADMIN
from deepseek_gateway.cli import main
from deepseek_gateway.settings import load_settings
from deepseek_gateway.state_dir import open_store, prepare_state
from deepseek_gateway.storage.store import Store
from deepseek_gateway.testing.caller import until
from deepseek_gateway.testing.postgres import PostgresServer
from deepseek_gateway.testing.redis_server import RedisServer
from deepseek_gateway.testing.stack import running_stack
from deepseek_gateway.testing.visitor import Visitor
from deepseek_gateway.web.accounts import Accounts
from deepseek_gateway.web.app import pages

PASSWORD, NEXT_PASSWORD = "MARKED battery staple", "MARKED battery stapler"
MASTER = base64.b64encode(b"MARKED-master-key-of-32-bytes-xx").decode()
SECRETS = {
    "KEY_PEPPER": "pepper-MARKED-7351-secret-of-43-characters-or-so",
    "UPSTREAM_KEY": "sk-MARKED8842upstreamkey",
    "PAYLOAD_KEY": MASTER,
    "OIDC_CLIENT_SECRET": "MARKED-client",
}
COMMANDS = """
check
org create acme
org list
team create --org acme blue
user create --org acme ann
key list
key list --json
key show {key}
key change {key} --tags a,b
key disable {key}
key enable {key}
limit set --key {key} tokens_per_day 1000
limit list
balance top-up --key {key} 1
balance show --key {key}
words import --demonstration list
words list
words policy list block
usage --by key
admin create --password-stdin root
admin passwd --password-stdin root
admin list
payload keep --key {key} --days 1
payload policies
audit list
audit list --json
audit export
audit verify
trace req-nobody
key revoke {key}
org list --no-such-flag
key show nobody
balance top-up --key {key} many
"""


@pytest.fixture
def secret_urls(postgres: PostgresServer, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A store and a Redis whose URLs hold passwords, and everything else that is secret, in the environment."""
    assert redis_server.command("CONFIG SET requirepass MARKED-redis").startswith(b"+OK")
    store_url = postgres.new_database().replace("tests@", "tests:MARKED-store@")
    settings = {
        **SECRETS, "STORE_URL": store_url, "REDIS_URL": f"{redis_server.url}?password=MARKED-redis",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(f"GATEWAY_{name}", value)
    return settings


def all_rows(store: Store) -> str:
    """Every row of every table."""
    names = store.database.read("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
    return "\n".join(repr(store.database.read(f"SELECT * FROM {name}")) for (name,) in names)


def test_no_command_tells_a_secret(
    state_dir: Path,
    secret_urls: dict[str, str],
    cheap_passwords: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)

    def run(line: str) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{PASSWORD}\n"))
        command = line.split()
        at = 2 if len(command) > 1 and command[0] not in {"check", "trace", "usage", "migrate"} else 1
        with contextlib.suppress(SystemExit):
            main([*command[:at], "--state", str(state_dir), *command[at:]])
        output = capfd.readouterr()
        return output.out + output.err

    text = run("migrate")
    shown = run("key create --name k --json")  # the one time that it is
    key = shown.partition('"dsk_')[2].partition('"')[0].split("_")
    assert len(key) == 3
    outputs = {line: run(line.format(key=key[0])) for line in COMMANDS.split("\n") if line}
    rotated = run(f"key rotate {key[0]}").partition("dsk_")[2].split("_")
    assert "acme" in outputs["org list"]
    assert "(set)" in outputs["check"]
    assert "root" in outputs["admin list"]
    settings = load_settings(state_dir=state_dir)
    store, _ = open_store(settings)
    text += "\n".join([*outputs.values(), caplog.text, repr(settings), repr(store), all_rows(store)])
    store.close()
    for secret in ("MARKED", MASTER, key[1], *rotated[1:2]):
        assert secret not in text


async def test_no_page_tells_a_secret_or_keeps_one_as_it_is(
    state_dir: Path,
    secret_urls: dict[str, str],
    cheap_passwords: None,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    await asyncio.to_thread(prepare_state, load_settings(state_dir=state_dir))
    async with running_stack(state_dir) as stack, aiohttp.ClientSession(cookie_jar=jar()) as session:
        await asyncio.to_thread(Accounts(stack.gateway.store).create, "admin", PASSWORD)
        visitor, seen = Visitor(session, stack.running.url), []
        seen.append(await visitor.sign_in("admin", f"{PASSWORD} wrong"))
        seen.append(await visitor.sign_in("nobody", PASSWORD))
        signed_in = await visitor.sign_in("admin", PASSWORD)
        assert signed_in.status == 303
        cookies = {cookie.value for cookie in session.cookie_jar}
        for route in pages():
            path = route.path.partition("{")[0] + ("x" if "{" in route.path else "")
            if route.method == "GET":
                seen.append(await visitor.get(path))
            elif "logout" not in path:
                seen.append(await visitor.post(path, None, password=PASSWORD, name="x"))
        form = {"old": PASSWORD, "password": NEXT_PASSWORD, "again": NEXT_PASSWORD}
        changed = await visitor.submit("/ui/account/password", page="/ui/account", **form)
        assert changed.status == 303
        admin = stack.with_key(scopes=ADMIN)
        for path in ("/metrics", "/ready", "/admin/audit", "/admin/keys", "/openapi.json"):
            seen.append(await admin.get(path))
        await until(lambda: stack.gateway.running == 0)
        rows = await asyncio.to_thread(all_rows, stack.gateway.store)
        reprs = [repr(each) for each in (stack.gateway.settings, stack.gateway.store, stack.gateway.limiter)]
        assert sum(reply.status == 200 for reply in seen) > 15
    output = capfd.readouterr()
    bodies = [reply.body.decode("utf-8", "replace") for reply in seen]
    text = "\n".join([*bodies, rows, *reprs, caplog.text, output.out, output.err])
    for secret in ("MARKED", MASTER, *(cookie for cookie in cookies if len(cookie) > 20)):
        assert secret not in text


def jar() -> aiohttp.CookieJar:
    return aiohttp.CookieJar(unsafe=True)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("STORE_URL", "postgresql://gw:MAR%KED@127.0.0.1:1/x"),
        ("STORE_URL", "postgresql://gw:MARKED/9@127.0.0.1:1/x"),
        ("STORE_URL", "postgresql://gw:MARKED@[127.0.0.1:1/x"),
        ("STORE_URL", "postgresql://gw@127.0.0.1:1/x?pasword=MARKED"),
        ("STORE_URL", "mysql://gw:MARKED@127.0.0.1:1/x"),
        ("REDIS_URL", "redis://:MARKED/9@127.0.0.1:1/0"),
        ("REDIS_URL", "redis://:MARKED@127.0.0.1:1/0"),
        ("REDIS_URL", "redis://:MARK[ED@127.0.0.1:1/0"),
        ("REDIS_URL", "http://:MARKED@127.0.0.1:1/0"),
        ("UPSTREAMS", "http://gw:MARKED@127.0.0.1:1"),
        ("UPSTREAMS", "http://gw:MARKED/9@127.0.0.1:1"),
        ("UPSTREAMS", "http://[gw:MARKED@127.0.0.1:1"),
    ],
)
def test_a_url_that_does_not_work_is_named_and_not_quoted(
    name: str,
    url: str,
    state_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    prepare_state(load_settings(state_dir=state_dir))
    monkeypatch.setattr("deepseek_gateway.storage.postgres.WAIT_S", 0.1)
    monkeypatch.setenv(f"GATEWAY_{name}", url)
    assert main(["check", "--state", str(state_dir)]) == 1
    output = capfd.readouterr()
    assert f"GATEWAY_{name}" in output.out
    assert "MARK" not in output.out + output.err + caplog.text
