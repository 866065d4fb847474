"""Every error shape that servers send gives a message, a class and an id; and so does what no server should send."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_client import errors
from deepseek_client.error_mapping import error_of_event, error_of_response, request_id_of


def error_of(status, body, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return error_of_response(status, headers, content, secret=None, now_s=0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "m"}}, "m"),
        ({"error": "m"}, "m"),
        ({"object": "error", "message": "m", "code": 400}, "m"),
        ({"detail": "m"}, "m"),
        ({"detail": [{"loc": ["body", "n"], "msg": "too big"}, {"loc": ["body"], "msg": "x"}]}, "n: too big; body: x"),
        ("m", "m"),
        ([{"error": {"message": "m"}}], "m"),
        (b"plain words", "plain words"),
        (b"", "Bad Request"),
        ({}, "Bad Request"),
        (None, "Bad Request"),
        ({"error": {"message": {"nested": 1}}}, "Bad Request"),
    ],
)
def test_a_message_is_found_in_every_shape(body, message):
    assert error_of(400, body).message == message


def test_deepseek_s_402_is_classed_by_its_status():
    body = {"error": {"message": "Insufficient Balance", "type": "unknown_error", "code": "invalid_request_error"}}
    error = error_of(402, body, **{"x-ds-trace-id": "t"})
    assert (type(error), error.request_id) == (errors.InsufficientBalanceError, "t")


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "no", "code": "context_length_exceeded"}},
        {"error": {"message": "This model's maximum context length is 8192 tokens. However, you requested 9000"}},
        {"error": {"message": "prompt has 9000 tokens, max_tokens=512: the context is 8192 tokens, so at most 7680"}},
        {"object": "error", "message": "The input exceeds the maximum allowed length (8192 tokens)", "code": 400},
        {"error": {"message": "the request exceeds the available context size", "type": "exceed_context_size_error"}},
    ],
)
def test_a_prompt_that_is_too_long_is_known_on_every_server(body):
    assert type(error_of(400, body)) is errors.ContextLengthError


def test_deepseek_s_wish_for_the_reasoning_back_has_a_class():
    message = "The `reasoning_content` in the thinking mode must be passed back to the API."
    assert type(error_of(400, {"error": {"message": message}})) is errors.ReasoningContentRequiredError


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (500, errors.InternalServerError),
        (502, errors.InternalServerError),
        (504, errors.GatewayTimeoutError),
        (503, errors.OverloadedError),
        (418, errors.APIStatusError),
    ],
)
def test_statuses_without_a_class_of_their_own_fall_to_the_branch(status, cls):
    assert type(error_of(status, {})) is cls


def test_the_request_id_is_found_under_every_name():
    names = ["x-request-id", "x-ds-trace-id", "x-deepseek-request-id", "request-id"]
    for position, name in enumerate(names):
        assert request_id_of({later: later for later in names[position:]}) == name
    assert request_id_of({}) is None


NAMES = st.sampled_from(
    ["error", "detail", "message", "msg", "type", "param", "code", "loc", "object", "response", "x"]
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(["error", "429", "<p>"])
)
BODIES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=12,
)
HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "retry-after-ms", "content-type", "x-request-id", "x-should-retry"]),
    st.one_of(st.text(max_size=12), st.sampled_from(["Wed, 21 Oct 2015 07:28:00 GMT", "1e400", "-1", "0x10", "inf"])),
)


@settings(max_examples=int(os.environ.get("FUZZ_SSE_EXAMPLES", "200")))
@given(status=st.integers(100, 999), headers=HEADERS, body=st.one_of(BODIES.map(json.dumps), st.text(), st.binary()))
def test_any_body_gives_an_error_with_a_message(status, headers, body):
    content = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    error = error_of_response(status, headers, content, secret="dsk_x", now_s=0)
    assert (error.status_code, bool(error.message)) == (status, True)
    assert error.retry_after is None or error.retry_after >= 0
    assert error_of_event(content.decode("utf-8", "replace"), headers, secret=None).message


def test_a_body_nested_thousands_deep_is_an_error_like_any_other():
    for body in (b"[" * 100_000, b'{"error":' * 100_000, b'{"error":' * 300 + b'"m"' + b"}" * 300):
        assert error_of(503, body).message
        assert error_of_event(body.decode(), {}, secret=None).message


def test_a_long_message_is_searched_in_bounded_time():
    error = error_of(400, {"error": {"message": "reasoning_content " * 100_000}})
    assert type(error) is errors.BadRequestError
