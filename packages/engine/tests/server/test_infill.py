"""Filling in the middle: `suffix` of /v1/completions, as DeepSeek's and Qwen's coders were trained on it."""

from typing import Any

import pytest
import tokenizers

from deepseek_engine.infill import INFILL_FORMATS, find_infill
from deepseek_engine.tokenizer import Tokenizer

COMPLETIONS = "/v1/completions"
BEGIN, HOLE, END = "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"
PREFIX, SUFFIX = "def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n"


@pytest.fixture(scope="module")
def tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """SmolLM2's, with the tokens of DeepSeek-Coder in the place of some that it has no use for."""
    text = tokenizer._backend.to_str()
    for old, new in (("<jupyter_start>", BEGIN), ("<jupyter_text>", HOLE), ("<jupyter_code>", END)):
        text = text.replace(old, new)
    return Tokenizer(tokenizers.Tokenizer.from_str(text), eos_token_ids=tokenizer.eos_token_ids)


def _prompts(server: Any) -> list[str]:
    decode = server.state.tokenizer.decode
    return [decode(submit.prompt_token_ids, skip_special_tokens=False) for submit in server.engine.submits]


@pytest.mark.parametrize("path", [COMPLETIONS, "/beta/completions"])
async def test_the_prompt_holds_both_ends_and_the_answer_the_middle(scripted, tokenizer: Tokenizer, path: str):
    server = await scripted("a + b")
    answer = (await server.post(path, prompt=PREFIX, suffix=SUFFIX, max_tokens=10)).json()
    assert answer["choices"][0]["text"] == "a + b"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert _prompts(server) == [f"{BEGIN}{PREFIX}{HOLE}{SUFFIX}{END}"]
    (submit,) = server.engine.submits
    assert answer["usage"]["prompt_tokens"] == len(submit.prompt_token_ids)
    marks = {tokenizer.token_id(token) for token in (BEGIN, HOLE, END)}
    assert marks < set(submit.eos_token_ids)
    assert [index for index in submit.prompt_token_ids if index in marks] == list(
        map(tokenizer.token_id, (BEGIN, HOLE, END))
    )


async def test_it_streams_and_echoes_the_beginning_alone(scripted):
    server = await scripted("a + b")
    async with server.stream(COMPLETIONS, prompt=PREFIX, suffix=SUFFIX, echo=True) as reader:
        events = await reader.rest()
    assert "".join(choice["text"] for event in events for choice in event["choices"]) == PREFIX + "a + b"


async def test_each_of_several_prompts_has_the_suffix(scripted):
    server = await scripted("x")
    answer = (await server.post(COMPLETIONS, prompt=["one", "two"], suffix="end")).json()
    assert len(answer["choices"]) == 2
    assert _prompts(server) == [f"{BEGIN}{text}{HOLE}end{END}" for text in ("one", "two")]


async def test_an_empty_suffix_is_none(scripted):
    server = await scripted("x")
    await server.post(COMPLETIONS, prompt="one", suffix="")
    assert _prompts(server) == ["one"]
    assert server.engine.submits[0].eos_token_ids == server.state.tokenizer.eos_token_ids


@pytest.mark.parametrize(
    "body", [{"prompt": [1, 2]}, {"prompt": ["a", "b"], "echo": True, "logprobs": 1}, {"prompt": [[1], [2]]}], ids=str
)
async def test_what_does_not_go_with_a_suffix_is_refused(scripted, body: dict[str, Any]):
    answer = await (await scripted("x")).post(COMPLETIONS, suffix="end", **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "suffix")


async def test_both_ends_count_for_the_context(scripted):
    answer = await (await scripted("x")).post(COMPLETIONS, prompt="a " * 600, suffix="b " * 600)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize("known", INFILL_FORMATS, ids=lambda known: known.before_prefix)
def test_a_family_is_told_by_its_tokens(known):
    ids = {token: index for index, token in enumerate((*known.tokens, *known.ends[:1]))}
    found = find_infill(ids.get)
    assert found is not None
    assert found.format is known
    assert found.end_token_ids == tuple(ids.values())
    assert known.prompt("P", "S") == f"{known.tokens[0]}P{known.tokens[1]}S{known.tokens[2]}"
    del ids[known.before_suffix]
    assert find_infill(ids.get) is None
