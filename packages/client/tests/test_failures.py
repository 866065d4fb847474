"""Failing calls over a real socket: which exception, how often it is tried, what it says."""

import socket
import time

import pytest

from deepseek_client import errors
from deepseek_client.settings import Timeout

STATUSES = {
    400: errors.BadRequestError,
    401: errors.AuthenticationError,
    402: errors.InsufficientBalanceError,
    403: errors.PermissionDeniedError,
    404: errors.NotFoundError,
    413: errors.RequestTooLargeError,
    418: errors.APIStatusError,
    422: errors.UnprocessableEntityError,
}


@pytest.mark.parametrize("status", STATUSES)
async def test_a_refusal_is_raised_at_once_as_its_class(server, connect, kit, status):
    body = {"error": {"message": "no", "type": "t", "param": "temperature", "code": "c"}}
    server.script(kit.reply(body, status, x_request_id="req-1"))
    with pytest.raises(STATUSES[status]) as caught:
        await kit.settle(connect().chat.completions.create(messages=kit.MESSAGES, model="m"))
    error = caught.value
    assert type(error) is STATUSES[status]
    assert (error.status_code, error.code, error.type, error.param) == (status, "c", "t", "temperature")
    assert (error.message, error.body, error.request_id, error.retries_taken) == ("no", body, "req-1", 0)
    assert str(error) == f"{status} c: no (request req-1)"
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
async def test_a_passing_failure_is_tried_again(server, connect, kit, status):
    server.script(
        kit.reply({}, status, retry_after="0"), kit.reply({}, status, retry_after="0"), kit.reply(kit.GENERATION)
    )
    assert (await kit.settle(connect().generate("Hi"))).text == "Hello"
    assert len(server.requests) == 3
    assert server.num_connections == 1


async def test_the_last_failure_is_raised_with_its_count(server, connect, kit):
    server.script(kit.reply({"error": {"message": "slow down"}}, 429, retry_after="0"))
    with pytest.raises(errors.RateLimitError, match="slow down") as caught:
        await kit.settle(connect(max_retries=1).generate("Hi"))
    assert (caught.value.retries_taken, caught.value.retry_after, len(server.requests)) == (1, 0.0, 2)


async def test_a_long_retry_after_is_the_caller_s_to_plan_with(server, connect, kit):
    server.script(kit.reply({}, 503, retry_after="3600"))
    with pytest.raises(errors.OverloadedError) as caught:
        await kit.settle(connect().generate("Hi"))
    assert (caught.value.retry_after, len(server.requests)) == (3600.0, 1)


async def test_a_blank_answer_is_tried_again_and_then_typed(server, connect, kit):
    server.script(kit.reply(b"\n\n", x_ds_trace_id="trace"))
    with pytest.raises(errors.EmptyResponseError, match="empty body") as caught:
        await kit.settle(connect(max_retries=1).generate("Hi"))
    assert (caught.value.request_id, len(server.requests)) == ("trace", 2)


async def test_an_answer_of_another_shape_is_typed(server, connect, kit):
    server.script(kit.reply({"id": "x"}), kit.reply(b"<html>Hello</html>", content_type="text/html"))
    client = connect()
    with pytest.raises(errors.ResponseValidationError, match="not a ChatCompletion: choices: Field required"):
        await kit.settle(client.chat.completions.create(messages=kit.MESSAGES))
    with pytest.raises(errors.ResponseValidationError, match="<html>Hello</html>"):
        await kit.settle(client.chat.completions.create(messages=kit.MESSAGES))


async def test_an_error_with_status_200_is_an_error(server, connect, kit):
    server.script(kit.reply({"error": {"message": "broke", "code": 402}}))
    with pytest.raises(errors.InsufficientBalanceError, match="broke"):
        await kit.settle(connect().generate("Hi"))


async def test_a_redirect_never_takes_the_key_along(server, connect, kit):
    server.script(kit.reply(b"", 307, location="http://example.invalid/"))
    with pytest.raises(errors.APIStatusError, match="307"):
        await kit.settle(connect().generate("Hi"))
    assert len(server.requests) == 1


async def test_a_page_of_html_says_that_the_base_url_may_be_wrong(server, connect, kit):
    server.script(kit.reply(b"<html><h1>404</h1></html>", 404, content_type="text/html"))
    with pytest.raises(errors.NotFoundError, match="is the base URL right"):
        await kit.settle(connect(profile="gateway").generate("Hi"))


async def test_a_connection_cut_before_the_answer_is_tried_again(server, connect, kit):
    server.script(lambda connection: False, kit.reply(kit.GENERATION))
    assert (await kit.settle(connect().generate("Hi"))).text == "Hello"
    assert len(server.requests) == 2


async def test_an_unreachable_server_is_a_connection_error_that_names_it(connect, kit):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(errors.APIConnectionError, match=f"cannot reach http://127.0.0.1:{port}"):
        await kit.settle(connect(base_url=f"http://127.0.0.1:{port}", max_retries=0).generate("Hi"))


async def test_a_silent_server_is_a_timeout_that_is_not_retried(server, connect, kit):
    server.script(lambda connection: connection.until_closed())
    with pytest.raises(errors.APITimeoutError) as caught:
        await kit.settle(connect(timeout=Timeout(first_token_s=0.1)).generate("Hi"))
    assert caught.value.phase == "first_token"
    assert isinstance(caught.value, TimeoutError)
    await kit.until(lambda: server.requests)
    assert len(server.requests) == 1


async def test_a_number_limits_the_whole_call_also_when_bytes_keep_coming(server, connect, kit):
    def drip(connection):
        connection.head(content_type="application/json")
        while True:
            connection.chunk(b" ")
            time.sleep(0.02)

    server.script(drip)
    began = time.monotonic()
    with pytest.raises(errors.APITimeoutError) as caught:
        await kit.settle(connect().generate("Hi", timeout=0.2))
    assert caught.value.phase == "total"
    assert 0.1 < time.monotonic() - began < 30


async def test_the_deadline_covers_the_waits_between_attempts(server, connect, kit):
    server.script(kit.reply({}, 503, retry_after="30"))
    with pytest.raises(errors.OverloadedError):
        await kit.settle(connect(timeout=1.0).generate("Hi"))
    assert len(server.requests) == 1


async def test_no_message_repeats_a_key(server, connect, kit):
    key = "dsk_test_secretsecret1234"
    server.script(kit.reply({"error": {"message": f"bad key {key}, or sk-abcdefghijkl"}}, 401))
    client = connect()
    with pytest.raises(errors.AuthenticationError) as caught:
        await kit.settle(client.generate("Hi"))
    everything = f"{caught.value} {caught.value!r} {caught.value.body} {client!r} {client._core.settings!r}"
    assert "secretsecret" not in everything
    assert "abcdefghijkl" not in everything
    assert "...1234" in repr(client)
