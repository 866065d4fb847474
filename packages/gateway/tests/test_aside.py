"""Embeddings, tokenizers, counting and filling in: relayed with key, limits and an exact bill."""

from typing import Any

import anthropic
import openai
import pytest

from deepseek_gateway.testing.caller import Caller
from deepseek_gateway.testing.stack import Stack, running_gateway

TURN: dict[str, Any] = {"messages": [{"role": "user", "content": "a b c"}]}
ASIDE: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"model": "fake-model", "input": "one three five"},
    "/v1/tokenize": {"model": "fake-model", "prompt": "one three five"},
    "/v1/detokenize": {"model": "fake-model", "tokens": [1, 2]},
    "/v1/messages/count_tokens": {"model": "fake-model", **TURN},
}


async def test_embeddings_come_to_the_openai_package_and_are_billed(stack: Stack) -> None:
    async with openai.AsyncOpenAI(api_key=stack.caller.key, base_url=f"{stack.running.url}/v1") as client:
        made = await client.embeddings.create(model="fake-model", input="one three five", encoding_format="float")
    assert made.data[0].embedding == [3.0, 5.0, 4.0]
    assert made.usage.prompt_tokens == 3
    row = await stack.row()
    assert (row.route, row.status, row.end_reason) == ("/v1/embeddings", "finished", "answered")
    assert (row.prompt_tokens, row.completion_tokens, row.accuracy) == (3, 0, "exact")


@pytest.mark.parametrize("prefix", ["", "/v1", "/beta"])
async def test_tokens_of_a_text_and_back_cost_no_tokens(stack: Stack, prefix: str) -> None:
    counted = await stack.caller.post(f"{prefix}/tokenize", {"prompt": "one three five"})
    assert (counted.status, counted.json["count"]) == (200, 3)
    text = await stack.caller.post(f"{prefix}/detokenize", {"tokens": [1, 2]})
    assert text.json == {"prompt": "w1 w2"}
    rows = await stack.running.rows(2)
    assert {(row.status, row.prompt_tokens, row.completion_tokens, row.accuracy) for row in rows} == {
        ("finished", 0, 0, "exact")
    }


async def test_the_anthropic_package_counts_tokens_of_the_translated_conversation(stack: Stack) -> None:
    tool: Any = {"name": "f", "input_schema": {"type": "object"}}
    async with anthropic.AsyncAnthropic(api_key=stack.caller.key, base_url=stack.running.url, max_retries=0) as client:
        ask: Any = {"model": "fake-model", **TURN, "system": "Be kind.", "tools": [tool]}
        count = await client.messages.count_tokens(**ask)
        assert count.input_tokens > 3
        (sent,) = stack.engine.bodies
        assert sent["messages"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "a b c"}]
        assert sent["tools"][0]["function"]["name"] == "f"
        stack.engine.lacks.add("tokenize")
        with pytest.raises(anthropic.NotFoundError, match="has no /tokenize"):
            await client.messages.count_tokens(**ask)
        with pytest.raises(anthropic.BadRequestError, match="messages"):
            await client.messages.count_tokens(model="fake-model", messages=[])


@pytest.mark.parametrize("path", ASIDE)
async def test_key_model_and_limits_hold_here_too(stack: Stack, path: str) -> None:
    body = ASIDE[path]
    assert (await stack.caller.with_key(None).post(path, body)).status == 401
    assert (await stack.with_key(models=("other",)).post(path, body)).status == 403
    limited = stack.with_key(requests_per_minute=1)
    assert (await limited.post(path, body)).status == 200
    assert (await limited.post(path, body)).status == 429
    assert (await stack.caller.post(path, {**body, "model": 3})).status == 400


@pytest.mark.parametrize("path", [path for path in ASIDE if "count" not in path])
async def test_a_server_that_has_it_not_is_said_to(stack: Stack, path: str) -> None:
    stack.engine.lacks.add(path.removeprefix("/v1/"))
    reply = await stack.caller.post(path, ASIDE[path])
    assert (reply.status, reply.error["code"]) == (404, "unsupported_route")
    assert path.removeprefix("/v1/") in reply.error["message"]
    streamed = await stack.caller.post(path, {**ASIDE[path], "stream": True})
    assert (streamed.status, streamed.error["param"]) == (400, "stream")


async def test_servers_of_other_makers_have_their_tokenizer_beside_the_api(stack: Stack, tmp_path) -> None:
    section = {"url": f"{stack.served.url}/v1", "kind": "openai"}
    async with running_gateway(tmp_path / "other", upstreams=(section,)) as other:
        caller = Caller(stack.caller.session, other.url, other.key())
        assert (await caller.post("/v1/tokenize", {"prompt": "a b"})).json["count"] == 2
        assert (await caller.post("/v1/embeddings", {"input": "a b"})).status == 200
    assert stack.engine.paths == ["/tokenize", "/v1/embeddings"]


async def test_servers_of_other_makers_continue_an_answer_in_their_own_way(stack: Stack, tmp_path) -> None:
    section = {"url": stack.served.url, "kind": "openai"}
    asked = {"max_tokens": 9, "messages": [*TURN["messages"], {"role": "assistant", "content": "The answer is"}]}
    async with running_gateway(tmp_path / "other", upstreams=(section,)) as other:
        caller = Caller(stack.caller.session, other.url, other.key())
        assert (await caller.post("/v1/messages", asked)).status == 200
    (sent,) = stack.engine.bodies
    assert sent["messages"][-1] == {"role": "assistant", "content": "The answer is"}
    assert (sent["continue_final_message"], sent["add_generation_prompt"]) == (True, False)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/beta/completions"])
async def test_filling_in_reaches_the_engine_with_its_suffix(stack: Stack, path: str, stream: bool) -> None:
    base_url = stack.running.url + path.removesuffix("/completions")
    async with openai.AsyncOpenAI(api_key=stack.caller.key, base_url=base_url) as client:
        ask: Any = {"model": "fake-model", "prompt": "def f(", "suffix": "return 1", "max_tokens": 4}
        if stream:
            chunks = [chunk async for chunk in await client.completions.create(**ask, stream=True)]
            text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
        else:
            text = (await client.completions.create(**ask)).choices[0].text
    assert text.startswith("w1")
    (sent,) = stack.engine.bodies
    assert (sent["prompt"], sent["suffix"]) == ("def f(", "return 1")
    row = await stack.row()
    assert (row.route, row.completion_tokens, row.accuracy) == ("/v1/completions", 4, "exact")
