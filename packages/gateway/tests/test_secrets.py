"""Secrets are in no answer, log, metric, audit entry or repr, whatever route is called."""

import asyncio
import base64
import logging
from pathlib import Path

import pytest

from deepseek_gateway.auth.records import ADMIN
from deepseek_gateway.openapi.operations import OPERATIONS
from deepseek_gateway.testing.caller import until
from deepseek_gateway.testing.stack import running_stack

PEPPER, UPSTREAM_KEY = "pepper-MARKED-7351-secret", "sk-MARKED8842upstreamkey"
MASTER = base64.b64encode(b"MARKED-master-key-of-32-bytes-xx").decode()


async def test_no_route_tells_a_secret(
    state_dir: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = {"key_pepper": PEPPER, "upstream_key": UPSTREAM_KEY, "payload_key": MASTER, "upstream_probe_s": 0.05}
    async with running_stack(state_dir, **settings) as stack:
        admin = stack.with_key(scopes=ADMIN)
        seen: list[str] = []
        for caller in (stack.caller, admin):
            for operation in OPERATIONS:
                path = operation.path.partition("{")[0] + ("x" if "{" in operation.path else "")
                for body in (b"{}", b"not json"):
                    sent = None if operation.method == "GET" else body
                    async with caller.open(path, sent, method=operation.method) as answer:
                        seen += [str(answer.headers), (await answer.read()).decode("utf-8", "replace")]
        await until(lambda: stack.gateway.running == 0)
        await stack.gateway.ledger.flush()
        entries = await asyncio.to_thread(lambda: list(stack.gateway.store.audit.entries()))
        seen += [
            repr(stack.gateway.settings),
            repr(stack.gateway.payloads.vault),
            repr(stack.gateway.keys),
            *map(repr, entries),
        ]
        keys = [stack.caller.key or "", admin.key or ""]
    output = capfd.readouterr()
    text = "\n".join([*seen, caplog.text, output.out, output.err])
    for secret in (PEPPER, UPSTREAM_KEY, MASTER, "MARKED", *(key.split("_")[2] for key in keys)):
        assert secret not in text
