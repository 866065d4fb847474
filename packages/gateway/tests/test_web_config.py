"""The configuration in the pages: what is in force, where it comes from, and what is wrong with the file."""

import asyncio
from pathlib import Path

import pytest

from deepseek_gateway.config.effective import effective_settings
from deepseek_gateway.settings import ConfigSource, Settings
from deepseek_gateway.testing.stack import Stack
from deepseek_gateway.testing.visitor import Visitor

SECRET = "swordfish-and-chips"


async def written(stack: Stack, text: str) -> bool:
    """Put a file where the gateway looks for one, and let it be read."""
    path = stack.gateway.settings.state_dir / "gateway.toml"
    await asyncio.to_thread(path.write_text, text)
    await asyncio.to_thread(path.chmod, 0o600)
    return await stack.gateway.reload()


async def test_settings_are_shown_with_their_sources_and_no_secrets(stack: Stack, visitor: Visitor) -> None:
    assert await written(stack, f'queue_size = 77\nupstream_key = "{SECRET}"\nmax_requests = 123\n')
    page = (await visitor.get("/ui/config")).body.decode()
    for told in ("gateway.toml:1", "77", "queue_size", "--upstream", "set, not shown", "put in force"):
        assert told in page, told
    assert stack.gateway.snapshot.version in page
    assert SECRET not in page
    assert "wait for the next start" not in page


async def test_a_setting_that_waits_for_a_start_says_so(stack: Stack, visitor: Visitor) -> None:
    assert await written(stack, "web_session_s = 7200\n")
    page = (await visitor.get("/ui/config")).body.decode()
    assert "changes at the next start" in page
    assert "43200" in page  # what is in force


async def test_faults_of_the_last_reading_stand_on_the_page_until_they_are_mended(
    stack: Stack, visitor: Visitor
) -> None:
    assert await written(stack, "max_requests = 4321\n")
    assert not await written(stack, 'queue_size = "many"\nqueue_sise = 4\n')
    page = (await visitor.get("/ui/config")).body.decode()
    assert "queue_sise" in page
    assert "gateway.toml:1" in page  # where the value in force came from
    assert "4321" in page
    assert "stays in force" in page
    assert "broken" in page
    assert await written(stack, "queue_size = 9\n")
    assert "stays in force" not in (await visitor.get("/ui/config")).body.decode()


async def test_a_gateway_without_a_source_shows_what_is_in_force(stack: Stack, visitor: Visitor) -> None:
    stack.gateway._reloader = None
    assert b"queue_size" in (await visitor.get("/ui/config")).body


@pytest.mark.parametrize("name", ["GATEWAY_REDIS_URL", "GATEWAY_DATABASE_URL"])
def test_urls_with_passwords_are_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:

    monkeypatch.setenv(name, f"redis://me:{SECRET}@localhost/0")
    loaded = ConfigSource(None, {"state_dir": tmp_path}).read()
    assert SECRET not in repr(effective_settings(Settings, loaded))
