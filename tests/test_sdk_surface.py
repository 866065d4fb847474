"""What only the SDK calls, through the gateway to the engine."""

import pytest

from deepseek_client import DeepSeek
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
