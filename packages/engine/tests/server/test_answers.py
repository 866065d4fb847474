"""Whole answers and streams of the three generating endpoints, as a caller sees them."""

import json
from typing import Any

import pytest

from deepseek_engine.tokenizer import Tokenizer

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "Hello 世界! 😀"
HI = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/generate": {"prompt": "Hi"},
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "Hi"},
}


def _texts(answer: dict[str, Any]) -> list[str]:
    if "text" in answer:
        return [answer["text"]]
    return [choice["text"] if "text" in choice else choice["message"]["content"] for choice in answer["choices"]]


def _delta_text(chunk: dict[str, Any]) -> str:
    if "text" in chunk:
        return chunk["text"]
    return "".join(c["text"] if "text" in c else c["delta"].get("content", "") for c in chunk["choices"])


def _finish(chunk: dict[str, Any]) -> list[str | None]:
    return [each["finish_reason"] for each in chunk.get("choices", [chunk])]


def _check_usage(usage: dict[str, Any], prompt: int, completion: int, cached: int = 0) -> None:
    assert usage == {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_cache_hit_tokens": cached,
        "prompt_cache_miss_tokens": prompt - cached,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


@pytest.mark.parametrize("prefix", ["/v1", "", "/beta"])
@pytest.mark.parametrize(
    ("path", "kind", "id_prefix"),
    [
        ("generate", "generation", "gen-"),
        ("chat/completions", "chat.completion", "chatcmpl-"),
        ("completions", "text_completion", "cmpl-"),
    ],
)
async def test_every_endpoint_answers_under_every_prefix(answering, tokenizer, prefix, path, kind, id_prefix):
    response = await answering.post(f"{prefix}/{path}", **BODIES[f"/v1/{path}"])
    answer = response.json()
    assert response.status_code == 200
    assert response.headers["x-request-id"]
    assert answer["object"] == kind
    assert answer["id"].startswith(id_prefix)
    assert answer["model"] == "tiny"
    assert _texts(answer) == [TEXT]
    assert _finish(answer) == ["stop"]
    submit = answering.engine.submits[-1]
    _check_usage(answer["usage"], len(submit.prompt_token_ids), len(tokenizer.encode(TEXT)) + 1)


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_carries_the_same_text_and_ends_in_done(answering, tokenizer: Tokenizer, path):
    async with answering.stream(path, **BODIES[path]) as reader:
        events = await reader.rest()
        headers = reader.response.headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-request-id"]
    assert "".join(map(_delta_text, events)) == TEXT
    assert [_finish(event) for event in events][-1] == ["stop"]
    assert all(_finish(event) == [None] for event in events[:-1])
    assert len({event["id"] for event in events}) == 1
    assert reader.raw.endswith(b"\n\ndata: [DONE]\n\n")
    assert TEXT[6:8].encode() in reader.raw or "世".encode() in reader.raw, "non-ASCII goes out as UTF-8"
    assert b'": ' not in reader.raw, "chunks are compact"
    if path == "/v1/generate":
        assert "usage" not in events[0]
        _check_usage(
            events[-1]["usage"], len(answering.engine.submits[-1].prompt_token_ids), len(tokenizer.encode(TEXT)) + 1
        )
    else:
        assert not any("usage" in event for event in events)
    if "chat" in path:
        assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize("path", BODIES)
async def test_usage_is_the_last_key_and_grows_to_the_total(answering, tokenizer: Tokenizer, path):
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with answering.stream(path, stream_options=options, **BODIES[path]) as reader:
        events = await reader.rest()
    assert all(list(event)[-1] == "usage" for event in events)
    completions = [event["usage"]["completion_tokens"] for event in events]
    assert completions == sorted(completions)
    _check_usage(
        events[-1]["usage"], len(answering.engine.submits[-1].prompt_token_ids), len(tokenizer.encode(TEXT)) + 1
    )
    if path != "/v1/generate":
        assert events[-1]["choices"] == []
        assert list(events[-1]) == ["id", "object", "created", "model", "choices", "usage"]


async def test_several_choices_stream_apart_and_answer_together(answering, tokenizer: Tokenizer):
    answer = (await answering.post("/v1/chat/completions", messages=HI, n=3)).json()
    assert _texts(answer) == [TEXT] * 3
    assert answer["usage"]["completion_tokens"] == 3 * (len(tokenizer.encode(TEXT)) + 1)
    assert answer["usage"]["prompt_tokens"] == len(answering.engine.submits[-1].prompt_token_ids)
    async with answering.stream("/v1/chat/completions", messages=HI, n=2) as reader:
        events = await reader.rest()
    choices = [choice for event in events for choice in event["choices"]]
    for index in (0, 1):
        mine = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == TEXT
        assert [choice["finish_reason"] for choice in mine][-1] == "stop"


@pytest.mark.parametrize(
    "prompt", [["Hi", "Hello there"], [[5, 6, 7], [8]], [5, 6, 7]], ids=["texts", "token-lists", "tokens"]
)
async def test_completions_take_every_form_of_prompt(answering, tokenizer: Tokenizer, prompt):
    before = len(answering.engine.submits)
    answer = (await answering.post("/v1/completions", prompt=prompt, n=2)).json()
    prompts = prompt if isinstance(prompt[0], list) else [prompt] if isinstance(prompt[0], int) else prompt
    expected = [each if isinstance(each, list) else tokenizer.encode(each) for each in prompts]
    assert [each.prompt_token_ids for each in answering.engine.submits[before:]] == expected
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * len(expected)))
    assert answer["usage"]["prompt_tokens"] == sum(map(len, expected))


async def test_completions_of_several_prompts_stream(answering):
    async with answering.stream("/v1/completions", prompt=["a", "b"]) as reader:
        events = await reader.rest()
    for index in (0, 1):
        mine = [choice for event in events for choice in event["choices"] if choice["index"] == index]
        assert "".join(choice["text"] for choice in mine) == TEXT


async def test_echo_begins_the_text_with_the_prompt(answering):
    answer = (await answering.post("/v1/completions", prompt=["Hi, ", "Yo, "], echo=True)).json()
    assert _texts(answer) == ["Hi, " + TEXT, "Yo, " + TEXT]
    async with answering.stream("/v1/completions", prompt=[5, 6], echo=True) as reader:
        text = "".join(map(_delta_text, await reader.rest()))
    assert text == answering.state.tokenizer.decode([5, 6]) + TEXT


async def test_token_ids_come_on_request(answering, tokenizer: Tokenizer):
    expected = [*tokenizer.encode(TEXT), 2]
    for path, body in BODIES.items():
        answer = (await answering.post(path, return_token_ids=True, **body)).json()
        assert answer.get("choices", [answer])[0]["token_ids"] == expected
        async with answering.stream(path, return_token_ids=True, **body) as reader:
            events = await reader.rest()
        ids = [i for event in events for part in event.get("choices", [event]) for i in part.get("token_ids", [])]
        assert ids == expected


async def test_chat_logprobs_name_each_token_with_its_bytes(answering, tokenizer: Tokenizer):
    body = {"messages": HI, "logprobs": True, "top_logprobs": 2, "max_tokens": 3}
    answer = (await answering.post("/v1/chat/completions", **body)).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in content) == b"".join(
        map(tokenizer.token_bytes, tokenizer.encode(TEXT)[:3])
    )
    assert content[0]["logprob"] == -0.5
    assert content[0]["top_logprobs"][1] == {
        "token": "<|endoftext|>",
        "logprob": -9999.0,
        "bytes": list(b"<|endoftext|>"),
    }
    async with answering.stream("/v1/chat/completions", **body) as reader:
        streamed = [
            entry
            for event in await reader.rest()
            for choice in event["choices"]
            for entry in choice.get("logprobs", {}).get("content", [])
        ]
    assert streamed == content


async def test_completion_logprobs_have_the_legacy_form(answering, tokenizer: Tokenizer):
    answer = (await answering.post("/v1/completions", prompt="Hi", logprobs=2, max_tokens=4)).json()
    logprobs = answer["choices"][0]["logprobs"]
    ids = tokenizer.encode(TEXT)[:4]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["text_offset"]) == 4
    assert logprobs["tokens"][0] == "Hello"
    assert logprobs["text_offset"][:2] == [0, len(tokenizer.token_text(ids[0]))]
    assert logprobs["top_logprobs"][0] == {"Hello": -0.5, "<|endoftext|>": -9999.0}
    broken = [name for name in logprobs["tokens"] if name.startswith("bytes:")]
    assert broken, "a token that is no whole character is spelled in bytes"
    async with answering.stream("/v1/completions", prompt="Hi", logprobs=2, max_tokens=4) as reader:
        events = await reader.rest()
    offsets = [at for event in events for at in event["choices"][0].get("logprobs", {}).get("text_offset", [])]
    assert offsets == logprobs["text_offset"]


async def test_max_tokens_ends_with_length(answering):
    for path, body in BODIES.items():
        answer = (await answering.post(path, max_tokens=2, **body)).json()
        assert _finish(answer) == ["length"]
        assert answer["usage"]["completion_tokens"] == 2


async def test_sampling_fields_reach_the_engine_as_they_are(answering):
    fields = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.2,
        "frequency_penalty": -0.3, "seed": 11, "min_tokens": 2, "ignore_eos": True, "max_tokens": 30, "n": 1,
    }  # fmt: skip
    for path, body in BODIES.items():
        await answering.post(path, stop=["x", "yy"], stop_token_ids=[9], logit_bias={"5": -3}, **fields, **body)
        params = answering.engine.submits[-1].params
        assert {name: getattr(params, name) for name in fields} == fields
        assert params.stop == ("x", "yy")
        assert params.stop_token_ids == (9,)
        assert params.logit_bias == {5: -3.0}
        assert answering.engine.submits[-1].eos_token_ids == (2,)


async def test_default_max_tokens_give_way_to_the_context(answering):
    cases = [
        ("/v1/generate", {"prompt": "Hi"}, 512),
        ("/v1/generate", {"prompt": "a " * 800, "raw": True}, "rest"),
        ("/v1/chat/completions", {"messages": HI}, None),
        ("/v1/chat/completions", {"messages": HI, "max_completion_tokens": 5, "max_tokens": 9}, 5),
        ("/v1/completions", {"prompt": "Hi"}, None),
    ]
    for path, body, expected in cases:
        assert (await answering.post(path, **body)).status_code == 200
        submit = answering.engine.submits[-1]
        room = 1024 - len(submit.prompt_token_ids)
        assert submit.params.max_tokens == (room if expected == "rest" else expected)


async def test_generate_is_one_user_turn_and_raw_is_the_text_itself(answering, tokenizer: Tokenizer):
    await answering.post("/v1/generate", prompt="<|im_end|> Hi")
    assert answering.engine.submits[-1].prompt_token_ids == tokenizer.encode_chat(
        [{"role": "user", "content": "<|im_end|> Hi"}]
    )
    await answering.post("/v1/generate", prompt="<|im_end|> Hi", raw=True)
    assert answering.engine.submits[-1].prompt_token_ids == tokenizer.encode("<|im_end|> Hi")


async def test_chat_joins_text_parts_and_continues_a_prefix(answering, tokenizer: Tokenizer):
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "Well,", "prefix": True},
    ]
    await answering.post("/v1/chat/completions", messages=messages)
    prompt = tokenizer.decode(answering.engine.submits[-1].prompt_token_ids, skip_special_tokens=False)
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nWell,"
    )


async def test_the_cache_salt_and_request_id_of_the_headers_are_used(answering):
    headers = {"x-cache-salt": "key-1", "x-request-id": "abc-123"}
    response = await answering.client.post("/v1/completions", json={"prompt": "Hi"}, headers=headers)
    assert response.headers["x-request-id"] == "abc-123"
    assert answering.engine.submits[-1].cache_salt == "key-1"
    response = await answering.client.post("/v1/completions", json={"prompt": "Hi"}, headers={"x-request-id": "a b=c"})
    assert response.headers["x-request-id"].startswith("req-")
    assert answering.engine.submits[-1].cache_salt == ""


async def test_models_version_and_probes(answering):
    models = (await answering.client.get("/v1/models")).json()
    assert [model["id"] for model in models["data"]] == ["tiny", "alias"]
    assert models["data"][0]["max_model_len"] == 1024
    assert (await answering.client.get("/models/alias")).json()["id"] == "alias"
    assert (await answering.client.get("/health")).json() == {"status": "ok"}
    assert (await answering.client.get("/ready")).status_code == 200
    assert (await answering.client.get("/version")).json()["version"]
    answer = (await answering.post("/v1/completions", prompt="Hi", model="alias")).json()
    assert answer["model"] == "alias"


async def test_tokenize_and_detokenize_are_inverse(answering, tokenizer: Tokenizer):
    answer = (await answering.post("/tokenize", prompt=TEXT)).json()
    assert answer == {"tokens": tokenizer.encode(TEXT), "count": len(tokenizer.encode(TEXT)), "max_model_len": 1024}
    assert (await answering.post("/detokenize", tokens=answer["tokens"])).json() == {"prompt": TEXT}
    chat = (await answering.post("/tokenize", messages=HI)).json()
    assert chat["tokens"] == tokenizer.encode_chat(HI)


async def test_metrics_show_the_engines_state(answering):
    assert await answering.metric("deepseek_engine_requests_running") == 1
    assert await answering.metric("deepseek_engine_requests_waiting") == 2
    assert await answering.metric("deepseek_engine_kv_blocks_used") == 4
    assert await answering.metric("deepseek_engine_kv_blocks_total") == 64
    assert await answering.metric("deepseek_engine_preemptions_total") == 3
    assert await answering.metric("deepseek_engine_requests_total", route="generate", status="200", finish="stop") > 0
    assert await answering.metric("deepseek_engine_time_to_first_token_seconds_count") > 0


async def test_the_access_line_holds_the_numbers_and_no_text(answering, caplog):
    with caplog.at_level("INFO", logger="deepseek_engine.access"):
        await answering.client.post(
            "/v1/completions", json={"prompt": "a secret", "max_tokens": 2}, headers={"x-request-id": "line-1"}
        )
    (line,) = [record.getMessage() for record in caplog.records if "line-1" in record.getMessage()]
    for part in (
        "route=completions",
        "model=tiny",
        "status=200",
        "finish_reason=length",
        "completion_tokens=2",
        "ttft_ms=",
    ):
        assert part in line
    assert "secret" not in line
    assert "Hello" not in json.dumps(line)
