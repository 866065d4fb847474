"""A budget of thinking over HTTP: the core closes the reasoning, the answer follows, and usage says how long it was."""

from typing import Any

import pytest
import tokenizers

from deepseek_engine.chat.template_encoder import TemplateEncoder
from deepseek_engine.chat_template import ChatTemplate
from deepseek_engine.messages import ThinkingMarkers
from deepseek_engine.server.reasoning import budget_markers
from deepseek_engine.text_parsers.markup import FORMATS
from deepseek_engine.tokenizer import Tokenizer

CHAT = "/v1/chat/completions"
# As DeepSeek V3.1: the prompt opens the reasoning or closes it; left alone, the model may open it.
TEMPLATE = """\
<|im_start|>{{ messages[0].content }}<|im_end|>
{%- if thinking is defined %}{{ '<think>' if thinking else '</think>' }}{% endif %}"""
BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 24, "ignore_eos": True, "temperature": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """SmolLM2's, with the tags of reasoning in the place of two tokens that it has no use for."""
    text = tokenizer._backend.to_str().replace("<jupyter_start>", "<think>").replace("<jupyter_text>", "</think>")
    encoder = TemplateEncoder(ChatTemplate(TEMPLATE), FORMATS["deepseek-v3.1"])
    backend = tokenizers.Tokenizer.from_str(text)
    return Tokenizer(backend, eos_token_ids=tokenizer.eos_token_ids, chat_encoder=encoder)


def _thinking(budget: Any, kind: str = "enabled") -> dict[str, Any]:
    return {"thinking": {"type": kind, "budget_tokens": budget}}


async def test_the_core_closes_the_reasoning_and_usage_counts_it(core, tokenizer: Tokenizer):
    free = (await core.post(CHAT, return_token_ids=True, **BODY, thinking={"type": "enabled"})).json()
    assert free["usage"]["completion_tokens_details"]["reasoning_tokens"] == 24
    for budget in (0, 1, 7):
        answer = (await core.post(CHAT, return_token_ids=True, **BODY, **_thinking(budget))).json()
        ids = free["choices"][0]["token_ids"][:budget]
        assert answer["choices"][0]["token_ids"][: budget + 1] == [*ids, tokenizer.token_id("</think>")]
        message = answer["choices"][0]["message"]
        assert message.get("reasoning_content", "") == tokenizer.decode(ids)
        assert message["content"] == tokenizer.decode(answer["choices"][0]["token_ids"][budget + 1 :])
        assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == budget
        assert answer["usage"]["completion_tokens"] == 24
        streamed = await _stream(core, **BODY, **_thinking(budget))
        assert streamed == (message.get("reasoning_content", ""), message["content"], answer["usage"])


async def _stream(core: Any, **body: Any) -> tuple[str, str, dict[str, Any]]:
    async with core.stream(CHAT, stream_options={"include_usage": True}, **body) as reader:
        events = await reader.rest()
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    texts = ("".join(delta.get(key) or "" for delta in deltas) for key in ("reasoning_content", "content"))
    return *texts, events[-1]["usage"]


async def test_each_of_several_answers_has_the_budget(core, tokenizer: Tokenizer):
    body = BODY | {"n": 3, "temperature": 1.0, "seed": 7, "return_token_ids": True}
    answer = (await core.post(CHAT, **body, **_thinking(4))).json()
    close = tokenizer.token_id("</think>")
    assert [choice["token_ids"].index(close) for choice in answer["choices"]] == [4, 4, 4]
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 12


async def test_a_begun_answer_past_its_reasoning_has_no_budget(scripted, tokenizer: Tokenizer):
    server = await scripted("fine")
    await server.post(CHAT, **BODY, **_thinking(4))
    assert server.engine.submits[-1].thinking == ThinkingMarkers((tokenizer.token_id("</think>"),), is_open=True)
    begun = BODY["messages"] + [{"role": "assistant", "content": "Well,", "prefix": True}]
    await server.post(CHAT, **(BODY | {"messages": begun}), **_thinking(4))
    assert server.engine.submits[-1].thinking is None  # the begun answer has no more reasoning to hold to a budget
    assert server.engine.submits[-1].params.thinking_token_budget is None


async def test_a_budget_of_no_thinking_says_nothing(scripted):
    server = await scripted("fine")
    answer = await server.post(CHAT, **BODY, **_thinking(4, "disabled"))
    assert answer.json()["choices"][0]["message"]["content"] == "fine"
    assert server.engine.submits[-1].thinking is None


@pytest.mark.parametrize(
    ("budget", "status"), [(-1, 422), (2**31, 422), (10**30, 422), ("5", 400), (1.5, 400), (True, 400)]
)
async def test_what_is_no_budget_is_refused_by_its_field(scripted, budget, status):
    answer = await (await scripted("fine")).post(CHAT, **BODY, **_thinking(budget))
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == "thinking.budget_tokens"


def test_a_model_that_opens_its_reasoning_itself_is_counted_from_there(tokenizer: Tokenizer):
    opens, closes = tokenizer.token_id("<think>"), tokenizer.token_id("</think>")
    markup = FORMATS["qwen3"].reasoning
    assert markup is not None
    assert budget_markers(tokenizer, markup, "possible") == ThinkingMarkers((closes,), (opens,))


class TestTagsOfSeveralTokens:
    """Nothing tells where such a tag ends the reasoning, so no budget is promised."""

    @pytest.fixture
    def tokenizer(self, tokenizer: Tokenizer) -> Tokenizer:
        plain = tokenizer._backend.to_str().replace('"<think>"', '"<jupyter_start>"')
        backend = tokenizers.Tokenizer.from_str(plain.replace('"</think>"', '"<jupyter_text>"'))
        return Tokenizer(backend, eos_token_ids=tokenizer.eos_token_ids, chat_encoder=tokenizer.chat_encoder)

    async def test_refuse_a_budget(self, scripted):
        answer = await (await scripted("fine")).post(CHAT, **BODY, **_thinking(4))
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "thinking.budget_tokens"
