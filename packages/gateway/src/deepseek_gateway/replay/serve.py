"""Serve a request that may be a retry, or go on where a stream broke."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from starlette.types import Receive, Send

from deepseek_gateway.edge.context import RequestContext
from deepseek_gateway.edge.watch import QuietError, RequestWatch, StoppingError
from deepseek_gateway.errors import ApiError
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.replay.book import lost, reused_key
from deepseek_gateway.replay.follow import follow
from deepseek_gateway.replay.recording import Recording
from deepseek_gateway.replay.rights import Rights
from deepseek_gateway.replay.shared import LEASE_S, SharedAnswers, idempotent_name
from deepseek_gateway.replay.wish import ReplayWish

logger = logging.getLogger(__name__)

POLL_S = 0.1
"""Seconds between looks at an answer that another gateway makes."""

RETRY_S = 0.5
"""Seconds until a claim is made again that the server may not know."""

ANOTHER_KEY = "send the request with another Idempotency-Key, and it is judged and billed as a new one"

Exchange = Callable[[Receive, Send], Awaitable[None]]
"""Admits one request and relays its answer."""


async def serve_replayable(
    gateway: Gateway,
    wish: ReplayWish,
    digest: bytes,
    rights: Rights,
    context: RequestContext,
    exchange: Exchange,
    receive: Receive,
    send: Send,
) -> None:
    """Follow the earlier request's answer if there was one, else make one that later requests can follow.

    Raises:
        ApiError: 403 or 404, the key may not have it any more; 409, an answer is not kept whole, or was made under
            other word lists; 422, the Idempotency-Key belongs to another request.
        WatchError: the caller left; the answer goes on for the grace period.
    """
    assert context.key_id is not None
    terms = await rights.terms(context.model)
    recording = None if wish.key is None else gateway.replays.named(context.key_id, wish.key, digest)
    if recording is None:
        recording = gateway.replays.start(context.request_id, context.key_id, digest, wish.key, terms)
        gateway.spawn(_make(gateway, recording, wish.key, rights, context, exchange))
    else:
        await rights.check(recording.terms, ANOTHER_KEY)
        context.outcome = "replayed"
        gateway.metrics.replayed("running" if not recording.is_over else "finished")
        if not recording.is_whole:
            raise lost("the first request's answer is too large to be kept")
    await follow(gateway, recording, 0, context, receive, send)


async def resume(
    gateway: Gateway,
    wish: ReplayWish,
    digest: bytes | None,
    rights: Rights,
    context: RequestContext,
    receive: Receive,
    send: Send,
) -> None:
    """Go on with a stream after the last event that its caller saw.

    Raises:
        ApiError: 403 or 404, the key may not use its model any more; 404, there is no such stream of this key's; 409,
            its next event is not kept any more, or it was made under other word lists; 422, the body is another
            request's.
        WatchError: the caller left.
    """
    assert context.key_id is not None
    assert wish.resume is not None
    request_id, number = wish.resume
    recording = gateway.replays.of_request(context.key_id, request_id)
    if recording is None and gateway.shared_answers is not None:
        recording = await _of_another(gateway, gateway.shared_answers, context.key_id, request_id, receive)
    if recording is None:
        message = (
            f"there is no stream {request_id[:60]!r} to go on with: it is over, was never resumable, or has no "
            "Idempotency-Key and runs at another gateway"
        )
        raise ApiError(404, message, param="Last-Event-ID", code="stream_not_found")
    if digest is not None and digest != recording.digest:
        message = f"the body is not that of the stream {request_id[:60]!r}: send the same one, or none"
        raise ApiError(422, message, param="Last-Event-ID", code="resume_mismatch")
    await rights.check(recording.terms, "send the request again without Last-Event-ID")
    context.outcome = "resumed"
    gateway.metrics.replayed("resumed")
    await follow(gateway, recording, number + 1, context, receive, send)


async def _of_another(
    gateway: Gateway, shared: SharedAnswers, key_id: str, request_id: str, receive: Receive
) -> Recording | None:
    """An answer that another gateway made; waits for one that it makes.

    Raises:
        CallerGoneError: the caller left.
        ApiError: 503, this gateway stops.
    """
    known = await shared.of_request(key_id, request_id)
    if known is not None and known.state == "running":
        watch = RequestWatch(receive, gateway.settings.keep_alive_s, gateway.settings.send_timeout_s)
        gateway.watches.add(watch)
        try:
            while known is not None and known.state == "running":
                with contextlib.suppress(QuietError):
                    await watch.reading(asyncio.sleep(POLL_S))
                known = await shared.of_request(key_id, request_id)
        except StoppingError:
            raise ApiError(503, "the gateway stops", code="shutting_down", headers={"retry-after": "5"}) from None
        finally:
            gateway.watches.discard(watch)
            watch.close()
    if known is None or known.status == 0:
        return None
    recording = Recording(request_id, key_id, known.digest, known.terms, max_bytes=len(known.body), grace_s=0)
    known.load_into(recording)
    return recording


async def _make(
    gateway: Gateway,
    recording: Recording,
    idempotency_key: str | None,
    rights: Rights,
    context: RequestContext,
    exchange: Exchange,
) -> None:
    """Have an answer written into the recording, the exchange's or another gateway's, and decide whether it is kept."""
    shared, is_kept, renewing = gateway.shared_answers, False, None
    name = None if idempotency_key is None or shared is None else idempotent_name(recording.key_id, idempotency_key)
    try:
        with gateway.house:
            if shared is not None and name is not None:
                if await _take_over(shared, name, idempotency_key or "", recording, rights):
                    context.outcome, is_kept = "replayed", True
                    gateway.metrics.replayed("elsewhere")
                    return
                renewing = asyncio.create_task(_renew(shared, name, recording))
            await exchange(recording.receive, recording.send)
            # Only a whole answer is worth keeping: after a failure, a retry shall try again.
            is_kept = context.outcome == "finished" and not recording.is_forgotten
    except ApiError as error:
        recording.fail(error)
    except Exception:
        logger.exception("request %s failed", context.request_id)
        recording.fail(ApiError(500, "the gateway failed; the log has the request's id"))
    finally:
        recording.end()
        parting = None
        if renewing is not None and shared is not None and name is not None:
            renewing.cancel()
            parting = shared.parting(name, recording, is_kept=is_kept)
        gateway.replays.over(recording, is_kept=is_kept)
        if parting is not None and shared is not None:
            await shared.finish(parting)


async def _take_over(
    shared: SharedAnswers, name: str, idempotency_key: str, recording: Recording, rights: Rights
) -> bool:
    """Wait for the answer that another gateway makes or has made; False when it is ours to make.

    Raises:
        ApiError: 403, 404 or 409, the key may not have it any more; 409, the answer is not kept whole; 422, the key
            belongs to another request.
    """
    while not recording.is_abandoned:
        known = await shared.claim(name, recording)
        if known is None:
            return False
        if known.digest != recording.digest:
            raise reused_key(idempotency_key)
        if known.state == "finished":
            await rights.check(known.terms, ANOTHER_KEY)
            if known.status == 0:
                raise lost("the first request's answer is too large to be kept")
            known.load_into(recording)
            return True
        await asyncio.sleep(POLL_S)
    raise ApiError(503, "the caller has left", code="abandoned")


async def _renew(shared: SharedAnswers, name: str, recording: Recording) -> None:
    is_known = False  # while the server is away, a claim may not have been made
    while True:
        await asyncio.sleep(LEASE_S / 3 if is_known else RETRY_S)
        is_known = await shared.renew(name, recording)
