"""Our SDK and the openai package, sync and async, streaming and not, through the gateway to the engine."""

import json
import subprocess

import httpx
import openai
import pytest

from deepseek_client import (
    AsyncDeepSeek,
    AuthenticationError,
    BadRequestError,
    ContextLengthError,
    DeepSeek,
    InsufficientBalanceError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    UnprocessableEntityError,
)
from processes import Stack, issue_key, program

PROMPT = "Explain quantum computing in two sentences."
CHAT = [{"role": "user", "content": PROMPT}]
GREEDY = {"temperature": 0.0, "max_tokens": 16}


@pytest.fixture
def client(stack: Stack):
    with DeepSeek(api_key=stack.user_key, base_url=stack.url) as client:
        yield client


@pytest.fixture
def openai_client(stack: Stack):
    with openai.OpenAI(api_key=stack.user_key, base_url=f"{stack.url}/v1") as client:
        yield client


def test_generate_and_its_stream_give_the_same_text_and_usage(client: DeepSeek) -> None:
    answer = client.generate(PROMPT, **GREEDY)
    with client.generate_stream(PROMPT, **GREEDY) as stream:
        text = "".join(stream)
    assert text == answer.text
    assert stream.finish_reason == answer.finish_reason == "length"
    assert answer.usage is not None
    assert stream.usage is not None
    assert (answer.usage.completion_tokens, stream.usage.completion_tokens) == (16, 16)
    assert answer.usage.prompt_tokens == stream.usage.prompt_tokens


def test_chat_and_its_stream_give_the_same_text(client: DeepSeek) -> None:
    answer = client.chat.completions.create(messages=CHAT, **GREEDY)
    with client.chat.completions.create(messages=CHAT, stream=True, **GREEDY) as stream:
        text = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
    assert text == answer.choices[0].message.content


async def test_the_async_client_gives_the_same_answers(stack: Stack, client: DeepSeek) -> None:
    expected = client.generate(PROMPT, **GREEDY).text
    async with AsyncDeepSeek(api_key=stack.user_key, base_url=stack.url) as asynchronous:
        assert (await asynchronous.generate(PROMPT, **GREEDY)).text == expected
        async with asynchronous.generate_stream(PROMPT, **GREEDY) as stream:
            assert "".join([text async for text in stream]) == expected


def test_the_openai_package_works_unchanged(openai_client: openai.OpenAI, client: DeepSeek) -> None:
    expected = client.chat.completions.create(messages=CHAT, **GREEDY).choices[0].message.content
    model = openai_client.models.list().data[0].id
    answer = openai_client.chat.completions.create(model=model, messages=CHAT, **GREEDY)
    assert answer.choices[0].message.content == expected
    assert answer.usage.completion_tokens == 16
    chunks = list(openai_client.chat.completions.create(model=model, messages=CHAT, stream=True, **GREEDY))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert all(chunk.usage is None for chunk in chunks), "usage that nobody asked for"
    with_usage = list(
        openai_client.chat.completions.create(
            model=model, messages=CHAT, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    assert [chunk.usage.completion_tokens for chunk in with_usage if chunk.usage] == [16]
    completion = openai_client.completions.create(model=model, prompt="1, 2, 3,", logprobs=2, **GREEDY)
    assert len(completion.choices[0].logprobs.tokens) == 16


async def test_the_async_openai_package_works_unchanged(stack: Stack, client: DeepSeek) -> None:
    expected = client.chat.completions.create(messages=CHAT, **GREEDY).choices[0].message.content
    async with openai.AsyncOpenAI(api_key=stack.user_key, base_url=f"{stack.url}/v1") as asynchronous:
        model = (await asynchronous.models.list()).data[0].id
        answer = await asynchronous.chat.completions.create(model=model, messages=CHAT, **GREEDY)
        assert answer.choices[0].message.content == expected
        stream = await asynchronous.chat.completions.create(model=model, messages=CHAT, stream=True, **GREEDY)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == expected


def test_n_answers_stop_strings_and_seeds_work_through_the_whole_stack(client: DeepSeek) -> None:
    answers = client.chat.completions.create(messages=CHAT, n=3, seed=4, temperature=1.0, max_tokens=12)
    again = client.chat.completions.create(messages=CHAT, n=3, seed=4, temperature=1.0, max_tokens=12)
    texts = [choice.message.content for choice in answers.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) == 3
    free = client.generate(PROMPT, temperature=0.0, max_tokens=40).text
    stop = free[8:10]
    cut = client.generate(PROMPT, temperature=0.0, max_tokens=40, stop=stop)
    assert (cut.text, cut.finish_reason) == (free[: free.index(stop)], "stop")


def test_a_wrong_key_is_401_and_never_shown(stack: Stack) -> None:
    wrong = stack.user_key[:-1] + ("a" if stack.user_key[-1] != "a" else "b")
    with DeepSeek(api_key=wrong, base_url=stack.url) as client, pytest.raises(AuthenticationError) as caught:
        client.generate(PROMPT)
    assert caught.value.request_id
    assert wrong not in str(caught.value)


def test_a_prompt_beyond_the_context_is_a_clear_400(client: DeepSeek) -> None:
    with pytest.raises(ContextLengthError, match="8192") as caught:
        client.generate("word " * 9000, raw=True)
    assert caught.value.status_code == 400
    assert caught.value.code == "context_length_exceeded"


def test_parameters_out_of_range_are_named(client: DeepSeek) -> None:
    with pytest.raises(UnprocessableEntityError) as caught:
        client.generate(PROMPT, temperature=5.0)
    assert caught.value.param == "temperature"
    with pytest.raises(NotFoundError) as missing:
        client.chat.completions.create(messages=CHAT, model="no-such-model")
    assert missing.value.code == "model_not_found"
    with pytest.raises(BadRequestError, match="messages"):
        client.chat.completions.create(messages=[])


def test_requests_a_minute_end_in_429_with_the_time_to_wait(stack: Stack) -> None:
    key = issue_key(stack.state, "--name", "slow", "--rpm", "2")
    with DeepSeek(api_key=key, base_url=stack.url, max_retries=0) as client:
        client.generate(PROMPT, **GREEDY)
        client.generate(PROMPT, **GREEDY)
        with pytest.raises(RateLimitError) as caught:
            client.generate(PROMPT, **GREEDY)
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= 60
    assert caught.value.headers["x-ratelimit-limit-requests"] == "2"


def test_a_used_up_token_budget_is_402(stack: Stack) -> None:
    key = issue_key(stack.state, "--name", "poor", "--tokens-per-month", "150")
    with DeepSeek(api_key=key, base_url=stack.url, max_retries=0) as client:

        def spend_everything() -> None:
            for _ in range(20):
                client.generate(PROMPT, **GREEDY)

        with pytest.raises(InsufficientBalanceError) as caught:
            spend_everything()
    assert caught.value.code == "insufficient_balance"


def test_a_key_for_other_models_is_403(stack: Stack) -> None:
    key = issue_key(stack.state, "--name", "narrow", "--model", "another-*")
    with DeepSeek(api_key=key, base_url=stack.url) as client:
        with pytest.raises(PermissionDeniedError):
            client.generate(PROMPT, **GREEDY)
        assert client.models.list().data == []


def test_the_command_line_talks_to_the_stack(stack: Stack) -> None:
    command = [program("deepseek"), "generate", PROMPT, "--temperature", "0", "--max-tokens", "16", "--json"]
    options = ["--base-url", stack.url, "--api-key", stack.user_key]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["usage"]["completion_tokens"] == 16


def test_bad_json_is_a_clear_400(stack: Stack) -> None:
    headers = {"authorization": f"Bearer {stack.user_key}", "content-type": "application/json"}
    for path in ("generate", "chat/completions", "completions"):
        response = httpx.post(f"{stack.url}/v1/{path}", content=b'{"prompt": ', headers=headers)
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request_error"
        assert response.headers["x-request-id"]
