"""Recordings and their book, without sockets: what followers see, and what is kept."""

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_gateway.errors import ApiError
from deepseek_gateway.replay.book import ENTRY_OVERHEAD_BYTES, ReplayBook
from deepseek_gateway.replay.recording import AHEAD_BYTES, LostError, Recording, Terms

START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
}


def recording(max_bytes: int = 2**20, grace_s: float = 30) -> Recording:
    return Recording("req-1", "key", b"digest", Terms(), max_bytes=max_bytes, grace_s=grace_s)


def part(data: bytes, *, more: bool = True) -> dict:
    return {"type": "http.response.body", "body": data, "more_body": more}


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 200)), max_size=20),
    st.lists(st.integers(0, 60), max_size=4),
    st.lists(st.integers(0, 3), max_size=20),
)
def test_every_follower_sees_every_event_from_its_place_on_once(writes, places, pauses) -> None:
    async def run() -> None:
        made = recording()
        seen: dict[int, bytes] = {}

        async def follow(at: int, place: int) -> None:
            while made.next < place and not made.is_over:  # noqa: ASYNC110  turns of the loop are the point
                await asyncio.sleep(0)
            if made.next < place:
                return
            follower, data = made.join(place), b""
            while True:
                await made.news(follower)
                is_over, new = made.is_over, made.take(follower)
                data += new
                for _ in range(pauses[at % len(pauses)] if pauses else 0):
                    await asyncio.sleep(0)
                if is_over:
                    break
            made.leave(follower)
            seen[at] = data

        following = [asyncio.create_task(follow(at, place)) for at, place in enumerate(places)]
        await made.send(START)
        for events, size in writes:
            await made.send(part(b"".join(b"data: " + b"x" * size + b"\n\n" for _ in range(events)) + b": hm\n\n"))
            await asyncio.sleep(0)
        await made.send(part(b"", more=False))
        await asyncio.gather(*following)
        pieces = made.pieces()
        assert len(pieces) == sum(events for events, _ in writes)
        for at, place in enumerate(places):
            if at in seen:
                assert seen[at] == b"".join(pieces[place:])

    asyncio.run(run())


async def test_an_exchange_waits_for_the_fastest_follower_and_goes_on_without_any() -> None:
    made = recording()
    await made.send(START)
    follower = made.join(0)
    sending = asyncio.create_task(made.send(part(b"data: " + b"x" * (AHEAD_BYTES + 1) + b"\n\n")))
    await asyncio.sleep(0)
    assert not sending.done()
    made.take(follower)
    await sending
    blocked = asyncio.create_task(made.send(part(b"data: " + b"x" * (AHEAD_BYTES + 1) + b"\n\n")))
    await asyncio.sleep(0)
    assert not blocked.done()
    made.leave(follower)
    await blocked


async def test_a_follower_that_the_ring_has_left_behind_is_told() -> None:
    made = recording(max_bytes=100)
    await made.send(START)
    slow, fast = made.join(0), made.join(0)
    for _ in range(10):
        await made.send(part(b"data: " + b"x" * 30 + b"\n\n"))
        made.take(fast)
    assert made.size <= 100
    with pytest.raises(LostError):
        made.take(slow)
    with pytest.raises(LostError):
        made.join(0)


async def test_the_grace_period_begins_when_the_last_follower_leaves() -> None:
    made = recording(grace_s=0)
    first, second = made.join(0), made.join(0)
    made.leave(first)
    waiting = asyncio.create_task(made.receive())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    made.leave(second)
    assert (await waiting)["type"] == "http.disconnect"


@given(
    st.lists(st.tuples(st.integers(0, 400), st.booleans(), st.booleans(), st.floats(0, 5)), max_size=40),
    st.integers(0, 20_000),
)
def test_a_book_is_bounded_in_bytes_and_time_and_forgets_nothing_it_counts(steps, max_bytes: int) -> None:
    async def run() -> None:
        now = 0.0
        book = ReplayBook(max_bytes, 4096, ttl_s=10, grace_s=2, clock=lambda: now)
        for number, (size, is_kept, is_named, wait_s) in enumerate(steps):
            made = book.start(f"req-{number}", "key", b"d", f"k{number}" if is_named else None, Terms())
            await made.send(START)
            await made.send(part(b"data: " + b"x" * size * 10 + b"\n\n", more=False))
            book.over(made, is_kept=is_kept)
            assert book.size <= max_bytes
            assert book.size >= len(book) * ENTRY_OVERHEAD_BYTES
            if not is_kept:
                assert book.of_request("key", f"req-{number}") is None
            now += wait_s
        now += 11
        book.expire()
        assert (book.size, len(book)) == (0, 0)

    asyncio.run(run())


async def test_what_is_forgotten_while_it_is_followed_is_followed_to_its_end() -> None:
    book = ReplayBook(10_000, 4096, ttl_s=10, grace_s=2)
    made = book.start("req-1", "key", b"d", "k", Terms())
    await made.send(START)
    follower = made.join(0)
    await made.send(part(b"data: x\n\n", more=False))
    book.over(made, is_kept=False)
    assert book.named("key", "k", b"d") is None
    assert made.take(follower) == b"id: req-1:0\ndata: x\n\n"
    made.leave(follower)
    assert book.size == 0


async def test_a_key_is_its_callers_and_its_bodys() -> None:
    book = ReplayBook(10_000, 4096, ttl_s=10, grace_s=2)
    made = book.start("req-1", "key", b"d", "k", Terms())
    assert book.named("key", "k", b"d") is made
    assert book.named("other", "k", b"d") is None
    assert book.of_request("other", "req-1") is None
    with pytest.raises(ApiError) as refusal:
        book.named("key", "k", b"e")
    assert refusal.value.status == 422
    with contextlib.suppress(LostError):
        made.join(1)


async def test_what_is_forgotten_while_nobody_follows_it_counts_no_more_when_it_is_over() -> None:
    book = ReplayBook(10_000, 10_000, 60, 60)
    recording = book.start("r", "key", b"d", None, Terms())
    await recording.send({"type": "http.response.start", "status": 200, "headers": []})
    assert book.forget_keys({"key"}) == 1
    await recording.send({"type": "http.response.body", "body": b"x" * 100, "more_body": True})
    recording.end()
    book.over(recording, is_kept=False)
    assert (len(book), book.size) == (0, 0)
