"""A chat template that takes its time keeps nobody waiting but those who ask for it."""

import asyncio

import pytest

from deepseek_engine.chat.bounded_template import BoundedTemplate
from deepseek_engine.chat.template_encoder import TemplateEncoder
from deepseek_engine.tokenizer import Tokenizer

BOMB = "{% if messages[0].content == 'boom' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
TEMPLATE = BOMB + "{% endfor %}{% endif %}<|im_start|>user\n{{ messages[0].content }}<|im_end|>\n"


@pytest.fixture(scope="module")
def tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    encoder = TemplateEncoder(BoundedTemplate(TEMPLATE, cpu_s=0.5))
    return Tokenizer(tokenizer._backend, eos_token_ids=tokenizer.eos_token_ids, chat_encoder=encoder)


async def test_others_are_served_while_a_template_runs_wild(scripted):
    server = await scripted("fine")
    boom = {"messages": [{"role": "user", "content": "boom"}]}
    wild = [asyncio.create_task(server.post("/v1/chat/completions", **boom)) for _ in range(3)]
    await server.eventually(lambda: server.state.converter._encoder._template_threads._work_queue.qsize() > 0)
    for _ in range(5):
        answer = await server.post("/v1/completions", prompt="hello " * 834)
        assert answer.json()["choices"][0]["text"] == "fine"
    assert not any(task.done() for task in wild)
    for answer in await asyncio.gather(*wild):
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "messages"
        assert "0.5 s" in answer.json()["error"]["message"]
    served = await server.post("/v1/chat/completions", messages=[{"role": "user", "content": "hi"}])
    assert served.json()["choices"][0]["message"]["content"] == "fine"
    assert server.state.tokenizer.decode(server.engine.submits[-1].prompt_token_ids) == "user\nhi"


async def test_a_prompt_of_one_turn_comes_through_the_template_too(scripted):
    server = await scripted("fine")
    assert (await server.post("/v1/generate", prompt="hi")).json()["text"] == "fine"
    assert server.state.tokenizer.decode(server.engine.submits[-1].prompt_token_ids) == "user\nhi"
