"""The load of a soak: bodies, streams, callers that leave, that read late or not at all, half-open connections."""

import asyncio
import contextlib
import random  # not for secrets
import time
from typing import Any

import aiohttp

from deepseek_gateway.testing.soak.rig import HEAD_TIMEOUT_S, SEND_TIMEOUT_S, Rig

PATIENCE_S = 20.0
"""Seconds beyond its timeout that the gateway has to end a connection."""

STUCK_EVERY_S = 30.0
_KINDS = {"body": 34, "stream": 34, "slow": 5, "limited": 14, "half-open": 6, "wrong key": 5}


async def load(rig: Rig, until_s: float) -> None:
    """One caller: request after request."""
    while time.monotonic() < until_s:
        kind = random.choices(list(_KINDS), list(_KINDS.values()))[0]
        try:
            if kind == "half-open":
                await half_open(rig)
            elif kind == "limited":
                await limited(rig)
            else:
                await plain(rig, kind)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            rig.seen.answers[f"{kind} {type(error).__name__}"] += 1
        await asyncio.sleep(random.random() * 0.05)


async def leave(rig: Rig, began_s: float, until_s: float, wanted: int) -> None:
    """One caller that leaves its streams, at a pace that gives so many in all, and after the time until there are."""
    patience_s = until_s + 300
    while rig.seen.disconnects < wanted and time.monotonic() < patience_s:
        share = (time.monotonic() - began_s) / max(1.0, (until_s - began_s) * 0.95)
        if rig.seen.disconnects >= wanted * share:
            await asyncio.sleep(0.05)
            continue
        try:
            await leave_one(rig)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            rig.seen.answers[f"leave {type(error).__name__}"] += 1


async def leave_one(rig: Rig) -> None:
    """A stream that is left: at once, or after some events."""
    script = {"tokens": 200, "delay_s": 0.02, "prompt_tokens": 7}
    patience = random.choice((0, 1, 3, 10))
    async with _post(rig, "free", script, stream=True) as answer:
        rig.seen.answers[f"leave {answer.status}"] += 1
        if answer.status != 200:
            await asyncio.sleep(0.1)
            return
        for _ in range(patience):
            await answer.content.readuntil(b"\n\n")
        rig.seen.disconnects += 1
        answer.close()


async def plain(rig: Rig, kind: str) -> None:
    """A body or a stream; `slow` reads late."""
    script = {"tokens": random.randint(1, 60), "delay_s": random.choice((0, 0, 0.005, 0.02)), "prompt_tokens": 7}
    key = "wrong" if kind == "wrong key" else "free"
    async with _post(rig, key, script, stream=kind != "body") as answer:
        rig.seen.answers[f"{kind} {answer.status}"] += 1
        events = 0
        async for _ in answer.content:
            events += 1
            if kind == "slow" and events % 10 == 0:
                await asyncio.sleep(0.2)


async def limited(rig: Rig) -> None:
    """A request of a key with limits: what is admitted is counted here, independently."""
    script = {"tokens": 5, "delay_s": 0.02, "prompt_tokens": 1}
    async with _post(rig, "limited", script, stream=True) as answer:
        rig.seen.answers[f"limited {answer.status}"] += 1
        if answer.status != 200:
            return
        rig.seen.admitted()
        await anext(aiter(answer.content), b"")
        rig.seen.begins()
        try:
            # The engine's last word comes after this wait, so that whoever is counted here is running there.
            await asyncio.sleep(0.02)
        finally:
            rig.seen.ends()
        await answer.read()


async def half_open(rig: Rig) -> None:
    """A peer that is there and says nothing more: within the head, within the body, or a connection left idle."""
    head = b"POST /v1/generate HTTP/1.1\r\nhost: h\r\n"
    whole = head + f"authorization: Bearer {rig.keys['free']}\r\ncontent-length: 100\r\n\r\n".encode()
    sent = random.choice((b"", head, whole + b'{"prompt": "a'))
    reader, writer = await _connect(rig)
    try:
        writer.write(sent)
        async with asyncio.timeout(HEAD_TIMEOUT_S + PATIENCE_S):
            while await reader.read(65536):
                pass
        rig.seen.half_open_ended += 1
    except TimeoutError:
        rig.seen.half_open_kept += 1
    except OSError:
        rig.seen.half_open_ended += 1
    finally:
        writer.transport.abort()


async def stay_stuck(rig: Rig, until_s: float) -> None:
    """Now and then a caller that asks for a large stream and never reads: the gateway must end it."""
    while time.monotonic() + SEND_TIMEOUT_S + PATIENCE_S < until_s:
        with contextlib.suppress(OSError):
            await stuck(rig)
        await asyncio.sleep(STUCK_EVERY_S * random.random())


async def stuck(rig: Rig) -> None:
    """One of them. Whether it was ended shows when it reads at last: the answer breaks off, or does not."""
    body = b'{"prompt": "a", "stream": true, "max_tokens": 4000, "fake": {"tokens": 4000, "word_bytes": 4096}}'
    head = f"POST /v1/generate HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {rig.keys['free']}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    reader, writer = await _connect(rig)
    try:
        writer.write(head.encode() + body)
        status = await reader.readline()
        rig.seen.answers[f"stuck {status.decode().split()[1] if status else 'cut'}"] += 1
        if b" 200 " not in status:
            return
        writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue]
        await asyncio.sleep(SEND_TIMEOUT_S + PATIENCE_S / 2)
        writer.transport.resume_reading()  # pyright: ignore[reportAttributeAccessIssue]
        tail = b""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while piece := await reader.read(65536):
                    tail = (tail + piece)[-64:]
        except OSError:
            pass
        if b"[DONE]" in tail:
            rig.seen.stuck_kept += 1
        else:
            rig.seen.stuck_ended += 1
    except TimeoutError:
        rig.seen.stuck_kept += 1
    finally:
        writer.transport.abort()


def _post(rig: Rig, key: str, script: dict[str, Any], *, stream: bool) -> Any:
    """A request with a script for the engine."""
    body = {"prompt": "a b c", "max_tokens": 300, "stream": stream, "fake": script}
    headers = {"authorization": f"Bearer {rig.keys.get(key, 'dsk_wrong')}"}
    return rig.session.post(f"{rig.url}/v1/generate", json=body, headers=headers)


async def _connect(rig: Rig) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = rig.url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port), limit=65536)
