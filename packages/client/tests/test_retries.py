"""What is tried again and after how long: pure functions, and the flows that use them, without sockets or clocks."""

import logging

import pytest

from deepseek_client import errors
from deepseek_client.core import Core
from deepseek_client.effects import Close, Fetch, Open, Opened, Read, Reply, Sleep
from deepseek_client.exchange import Exchange
from deepseek_client.pacing import RetryPolicy, is_retryable, retry_after_s, retry_delay_s
from deepseek_client.settings import Timeout, read_settings
from deepseek_client.sse import KEEP_ALIVE

NOW_S = 1_800_000_000.0  # Fri, 15 Jan 2027 08:00:00 GMT


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Fri, 15 Jan 2027 08:00:30 GMT"}, 30.0),
        ({"retry-after": "Fri, 15 Jan 2027 07:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers, expected):
    assert retry_after_s(headers, NOW_S) == expected


def status(code, retry_after=None, **headers):
    return errors.class_of_status(code)("x", status_code=code, retry_after=retry_after, headers=headers)


def test_a_verdict_of_the_server_wins():
    assert not is_retryable(status(503, **{"x-should-retry": "false"}))
    assert is_retryable(status(400, **{"x-should-retry": "true"}))


def test_only_timeouts_before_the_request_was_sent_are_tried_again():
    retried = {
        phase
        for phase in ("connect", "pool", "write", "first_token", "idle", "total")
        if is_retryable(errors.APITimeoutError("x", phase=phase))
    }
    assert retried == {"connect", "pool"}


def test_waits_double_up_to_a_cap_and_are_spread_over_the_whole_range():
    policy = RetryPolicy(max_retries=9)
    full = [retry_delay_s(policy, status(503), retries_taken=n, left_s=None, chance=1.0) for n in range(7)]
    assert full == [0.5, 1, 2, 4, 8, 8, 8]
    assert retry_delay_s(policy, status(503), retries_taken=6, left_s=None, chance=0.0) == 0


def test_retry_after_is_honoured_up_to_its_cap_and_the_deadline():
    def wait(asked, left_s=None):
        return retry_delay_s(RetryPolicy(), status(429, asked), retries_taken=0, left_s=left_s, chance=0.5)

    assert (wait(30.0), wait(60.0), wait(61.0)) == (30.0, 60.0, None)
    assert (wait(5.0, left_s=6.0), wait(5.0, left_s=5.0)) == (5.0, None)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def core(**settings):
    clock = Clock()
    options = {"base_url": "http://h", **settings}
    return Core(Exchange(read_settings(**options), clock=clock, chance=lambda: 0.5)), clock


def test_the_flow_of_a_call_waits_between_attempts_and_then_raises():
    flow = core()[0].generate("Hi", 5, {})
    assert isinstance(next(flow), Fetch)
    assert flow.send(Reply(503, {}, b"")) == Sleep(0.25)
    assert isinstance(flow.send(None), Fetch)
    assert flow.throw(errors.APIConnectionError("reset")) == Sleep(0.5)
    assert isinstance(flow.send(None), Fetch)
    with pytest.raises(errors.OverloadedError) as caught:
        flow.send(Reply(503, {}, b""))
    assert caught.value.retries_taken == 2


def test_the_limit_of_a_read_follows_the_data_and_not_the_comments():
    the_core, clock = core(timeout=Timeout(first_token_s=10, idle_s=4))
    stream = the_core.open_text("Hi", 5, {})
    flow = stream.fill()
    assert isinstance(next(flow), Open)
    clock.now += 3  # the head took three of the ten seconds
    read = flow.send(Opened(200, {}, "body"))
    assert read == Read("body", 110.0, "first_token")
    clock.now += 5
    assert flow.send(KEEP_ALIVE) == read
    assert flow.send(b'data: {"id":"x","text":""}\n\n') == Read("body", 112.0, "idle")
    clock.now += 1
    assert flow.send(KEEP_ALIVE) == Read("body", 112.0, "idle")
    late = errors.APITimeoutError("late", phase="idle")
    assert flow.throw(late) == Close("body")
    with pytest.raises(errors.APITimeoutError):
        flow.send(None)


def test_nothing_is_sent_again_after_the_first_delivered_token():
    the_core, _ = core()
    stream = the_core.open_text("Hi", 5, {})
    flow = stream.fill()
    next(flow)
    flow.send(Opened(200, {}, "body"))
    with pytest.raises(StopIteration):
        flow.send(b'data: {"id":"x","text":"Hel"}\n\n')
    assert stream.take() == "Hel"
    flow = stream.fill()
    next(flow)
    assert flow.throw(errors.APIConnectionError("reset")) == Close("body")
    with pytest.raises(errors.StreamTruncatedError, match="reset"):
        flow.send(None)


def test_a_failed_reopening_counts_the_retries_of_the_whole_stream():
    the_core, _ = core(max_retries=1)
    stream = the_core.open_text("Hi", 5, {})
    flow = stream.fill()
    next(flow)
    flow.send(Opened(200, {}, "body"))
    assert flow.throw(errors.APIConnectionError("reset")) == Close("body")
    assert flow.send(None) == Sleep(0.25)
    assert isinstance(flow.send(None), Open)
    with pytest.raises(errors.OverloadedError) as caught:
        flow.send(Reply(503, {}, b""))
    assert caught.value.retries_taken == 1


def test_retries_of_all_calls_share_a_budget_that_successes_fill_again():
    the_core, _ = core(max_retries=1)

    def fails():
        flow = the_core.generate("Hi", 5, {})
        next(flow)
        try:
            flow.send(Reply(503, {}, b""))
        except errors.OverloadedError:
            return 0
        flow.send(None)
        with pytest.raises(errors.OverloadedError):
            flow.send(Reply(503, {}, b""))
        return 1

    assert [fails() for _ in range(12)] == [1] * 10 + [0] * 2
    for _ in range(10):
        flow = the_core.generate("Hi", 5, {})
        next(flow)
        with pytest.raises(StopIteration):
            flow.send(Reply(200, {}, b'{"id": "x", "text": "Hello"}'))
    assert [fails() for _ in range(2)] == [1, 0]


async def test_a_retry_is_told_and_logged_once(server, connect, kit, caplog):
    server.script(kit.reply({}, 503, retry_after="0", x_request_id="req-7"), kit.reply(kit.GENERATION))
    told = []
    with caplog.at_level(logging.INFO, "deepseek_client"):
        await kit.settle(connect(on_retry=told.append).generate("Hi"))
    assert [(type(retry.error), retry.number, retry.delay_s) for retry in told] == [(errors.OverloadedError, 1, 0.0)]
    assert [record.getMessage() for record in caplog.records if record.name.startswith("deepseek_client")] == [
        "retry 1 in 0.00 s after OverloadedError (request req-7)"
    ]


async def test_the_gateway_gets_one_idempotency_key_for_all_attempts_of_a_call(server, connect, kit):
    busy = kit.reply({}, 503, retry_after="0")
    server.script(busy, kit.reply(kit.GENERATION), busy, kit.events(kit.text_event("Hello", "stop")))
    client = connect(profile="gateway")
    await kit.settle(client.generate("Hi"))
    await kit.collect(client.generate_stream("Hi"))
    first, again, stream, stream_again = [request.headers["idempotency-key"] for request in server.requests]
    assert first == again != stream == stream_again


async def test_other_servers_get_no_idempotency_key_and_a_caller_s_own_is_kept(server, connect, kit):
    server.script(kit.reply(kit.GENERATION))
    await kit.settle(connect().generate("Hi"))
    await kit.settle(connect(profile="gateway").generate("Hi", extra_headers={"Idempotency-Key": "order-17"}))
    assert [request.headers.get("idempotency-key") for request in server.requests] == [None, "order-17"]
