"""Which answers wait for the disk: a sync is held back, and either the answer comes all the same or it does not."""

import asyncio
import threading
from pathlib import Path

import aiohttp
import pytest

from deepseek_gateway.ledger import disk
from deepseek_gateway.testing.caller import Caller, until
from deepseek_gateway.testing.fake_engine import FakeEngine
from deepseek_gateway.testing.serving import serving
from deepseek_gateway.testing.stack import running_gateway

BODY = {"prompt": "a", "fake": {"tokens": 1}}


@pytest.mark.parametrize("wait", ["money", "always"])
async def test_an_answer_without_money_waits_for_the_disk_only_where_all_do(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, wait: str
) -> None:
    may_go_on, sync, engine = threading.Event(), disk.sync_files, FakeEngine()

    def slow_sync(*arguments: object) -> None:
        assert may_go_on.wait(30)
        sync(*arguments)

    async with (
        serving(engine) as at,
        running_gateway(state_dir, at.url, journal_wait=wait) as running,
        aiohttp.ClientSession() as session,
    ):
        caller = Caller(session, running.url, running.key())
        monkeypatch.setattr(disk, "sync_files", slow_sync)
        try:
            asking = asyncio.create_task(caller.post(body=BODY))
            await until(lambda: len(engine.finished) == 1)
            if wait == "always":
                for _ in range(3):  # turns of the loop in which the answer would leave
                    await asyncio.sleep(0.01)
                assert not asking.done()
                may_go_on.set()
            assert (await asking).status == 200
        finally:
            may_go_on.set()
