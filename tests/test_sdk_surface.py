"""What only the SDK calls, through the gateway to the engine."""

import pytest

from deepseek_client import DeepSeek, ResponseTextDelta
from processes import Stack

CHAT = [{"role": "user", "content": "Explain quantum computing in two sentences."}]
GREEDY = {"temperature": 0.0, "max_tokens": 8}


@pytest.fixture
def client(stack: Stack):
    with DeepSeek(api_key=stack.user_key, base_url=stack.url) as client:
        yield client


@pytest.mark.parametrize("profile", ["auto", "gateway"])
def test_an_answer_goes_on_from_a_prefix(client: DeepSeek, profile: str) -> None:
    whole = client.chat.completions.create(messages=CHAT, **GREEDY).choices[0].message.content
    prefix = whole[: len(whole) // 2]
    answer = client.with_options(profile=profile).chat.completions.continue_prefix(
        messages=CHAT, prefix=prefix, **GREEDY
    )
    assert answer.choices[0].message.content.startswith(prefix)
    assert len(answer.choices[0].message.content) > len(prefix)
    assert answer.usage.completion_tokens == 8


def test_responses_and_their_stream_give_the_same_text(client: DeepSeek) -> None:
    answer = client.responses.create(input=CHAT, temperature=0, max_output_tokens=8)
    with client.responses.create(input=CHAT, temperature=0, max_output_tokens=8, stream=True) as stream:
        text = "".join(event.delta for event in stream if isinstance(event, ResponseTextDelta))
    assert answer.output_text == text == stream.snapshot.output_text
    assert answer.output_text == client.chat.completions.create(messages=CHAT, **GREEDY).choices[0].message.content
    assert answer.status == stream.snapshot.status == "incomplete"
    assert answer.usage.output_tokens == stream.usage.completion_tokens == 8


def test_the_gateway_shows_the_balance(client: DeepSeek) -> None:
    assert client.user.balance().is_available


def test_tokens_are_counted_as_the_engine_counts_them(client: DeepSeek) -> None:
    count = client.tokens.count(CHAT)
    assert count.tokens == client.generate(CHAT[0]["content"], **GREEDY).usage.prompt_tokens
    assert len(client.tokens.count("Hello").token_ids) == client.tokens.count("Hello").tokens
