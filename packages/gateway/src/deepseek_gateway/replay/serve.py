"""Serve a request that may be a retry, or go on where a stream broke."""

import logging
from collections.abc import Awaitable, Callable

from starlette.types import Receive, Send

from deepseek_gateway.edge.context import RequestContext
from deepseek_gateway.errors import ApiError
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.replay.book import lost
from deepseek_gateway.replay.follow import follow
from deepseek_gateway.replay.recording import Recording
from deepseek_gateway.replay.wish import ReplayWish

logger = logging.getLogger(__name__)

Exchange = Callable[[Receive, Send], Awaitable[None]]
"""Admits one request and relays its answer."""


async def serve_replayable(
    gateway: Gateway,
    wish: ReplayWish,
    digest: bytes,
    context: RequestContext,
    exchange: Exchange,
    receive: Receive,
    send: Send,
) -> None:
    """Follow the earlier request's answer if there was one, else make one that later requests can follow.

    Raises:
        ApiError: 409, an answer is not kept whole; 422, the Idempotency-Key belongs to another request.
        WatchError: the caller left; the answer goes on for the grace period.
    """
    assert context.key_id is not None
    recording = None if wish.key is None else gateway.replays.named(context.key_id, wish.key, digest)
    if recording is None:
        recording = gateway.replays.start(context.request_id, context.key_id, digest, wish.key)
        gateway.spawn(_make(gateway, recording, context, exchange))
    else:
        context.outcome = "replayed"
        gateway.metrics.replayed("running" if not recording.is_over else "finished")
        if not recording.is_whole:
            raise lost("the first request's answer is too large to be kept")
    await follow(gateway, recording, 0, context, receive, send)


async def resume(
    gateway: Gateway, wish: ReplayWish, digest: bytes | None, context: RequestContext, receive: Receive, send: Send
) -> None:
    """Go on with a stream after the last event that its caller saw.

    Raises:
        ApiError: 404, there is no such stream of this key's; 409, its next event is not kept any more; 422, the body is
            another request's.
        WatchError: the caller left.
    """
    assert context.key_id is not None
    assert wish.resume is not None
    request_id, number = wish.resume
    recording = gateway.replays.of_request(context.key_id, request_id)
    if recording is None:
        message = f"there is no stream {request_id[:60]!r} to go on with: it is over, or was never resumable"
        raise ApiError(404, message, param="Last-Event-ID", code="stream_not_found")
    if digest is not None and digest != recording.digest:
        message = f"the body is not that of the stream {request_id[:60]!r}: send the same one, or none"
        raise ApiError(422, message, param="Last-Event-ID", code="resume_mismatch")
    context.outcome = "resumed"
    gateway.metrics.replayed("resumed")
    await follow(gateway, recording, number + 1, context, receive, send)


async def _make(gateway: Gateway, recording: Recording, context: RequestContext, exchange: Exchange) -> None:
    """Have the exchange write into the recording, and decide whether its answer is kept."""
    try:
        with gateway.running_request():
            await exchange(recording.receive, recording.send)
    except ApiError as error:
        recording.fail(error)
    except Exception:
        logger.exception("request %s failed", context.request_id)
        recording.fail(ApiError(500, "the gateway failed; the log has the request's id"))
    finally:
        recording.end()
        # Only a whole answer is worth keeping: after a failure, a retry shall try again.
        gateway.replays.over(recording, is_kept=context.outcome == "finished")
