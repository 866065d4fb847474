"""Scored prompts, embeddings and tokenising over HTTP, with a real core that runs a tiny model."""

import base64
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pytest
import pytest_asyncio

from deepseek_engine import LLM, SamplingParams
from deepseek_engine.async_engine import AsyncEngine
from deepseek_engine.config import EngineConfig
from deepseek_engine.testing.checkpoints import TinyModel, projection_shapes, write_tiny_checkpoint
from deepseek_engine.tokenizer import load_tokenizer

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "one two, one two, 你 one two"
HIDDEN_SIZE = 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), TinyModel()))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tiny(checkpoint: str, serve: Callable[..., Any]) -> AsyncIterator[Any]:
    config = EngineConfig(
        model=checkpoint, dtype="float32", num_kv_blocks=128, max_num_seqs=8, max_num_batched_tokens=16,
        max_model_len=1024, speculation="ngram",
    )  # fmt: skip
    async with serve(await AsyncEngine.start(config), load_tokenizer(checkpoint)) as server:
        yield server


@pytest.fixture(scope="module")
def llm(checkpoint: str) -> LLM:
    return LLM(checkpoint, dtype="float32")


async def post(server: Any, path: str, **body: Any) -> Any:
    response = await server.post(path, **body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_echo_with_logprobs_scores_the_prompt_and_its_answer(tiny: Any, llm: LLM) -> None:
    answer = await post(tiny, "/v1/completions", prompt=TEXT, echo=True, logprobs=2, max_tokens=4, temperature=0, n=2)
    reference = llm.generate(TEXT, SamplingParams(temperature=0, max_tokens=4, logprobs=2, prompt_logprobs=2))[0]
    ids = reference.prompt_token_ids
    expected = [*(reference.prompt_logprobs or ()), *(reference.outputs[0].logprobs or ())]
    for choice in answer["choices"]:
        logprobs = choice["logprobs"]
        assert choice["text"].startswith(TEXT)
        assert "".join(name for name in logprobs["tokens"][: len(ids)] if not name.startswith("bytes:")) == (
            TEXT.replace("你", "")
        )
        assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0], logprobs["text_offset"][0]) == (
            None,
            None,
            0,
        )
        for value, entry in zip(logprobs["token_logprobs"][1:], expected[1:], strict=True):
            assert entry is not None
            assert value == pytest.approx(entry.logprob, abs=1e-4)
        assert all(2 <= len(top) <= 3 for top in logprobs["top_logprobs"][1:])
        assert logprobs["text_offset"][len(ids) :] == sorted(logprobs["text_offset"][len(ids) :])
        assert logprobs["text_offset"][len(ids)] == len(TEXT)
    assert answer["usage"]["prompt_tokens"] == len(ids)


async def test_a_prompt_can_be_scored_without_an_answer(tiny: Any, llm: LLM) -> None:
    texts = [TEXT, "a"]
    answer = await post(tiny, "/v1/completions", prompt=texts, echo=True, logprobs=0, max_tokens=0)
    for text, choice, reference in zip(texts, answer["choices"], llm.score(texts), strict=True):
        assert (choice["text"], choice["finish_reason"]) == (text, "length")
        expected = [entry and pytest.approx(entry.logprob, abs=1e-4) for entry in reference.prompt_logprobs or ()]
        assert choice["logprobs"]["token_logprobs"] == expected
    assert answer["usage"]["completion_tokens"] == 0
    plain = await post(tiny, "/v1/completions", prompt=TEXT, echo=True, max_tokens=0)
    assert plain["choices"][0]["text"] == TEXT


async def test_a_stream_echoes_the_same_log_probabilities(tiny: Any) -> None:
    body = {"prompt": TEXT, "echo": True, "logprobs": 1, "max_tokens": 3, "temperature": 0, "n": 2}
    whole = await post(tiny, "/v1/completions", **body)
    texts, merged = ["", ""], [{name: [] for name in whole["choices"][0]["logprobs"]} for _ in range(2)]
    async with tiny.stream("/v1/completions", **body) as reader:
        for event in await reader.rest():
            for choice in event["choices"]:
                texts[choice["index"]] += choice["text"]
                for name, values in (choice.get("logprobs") or {}).items():
                    merged[choice["index"]][name] += values
    for index, choice in enumerate(whole["choices"]):
        assert texts[index] == choice["text"]
        assert merged[index]["tokens"] == choice["logprobs"]["tokens"]
        assert merged[index]["text_offset"] == choice["logprobs"]["text_offset"]
        assert merged[index]["token_logprobs"][1:] == pytest.approx(choice["logprobs"]["token_logprobs"][1:], abs=1e-4)


async def test_prompt_logprobs_have_vllms_form(tiny: Any, llm: LLM) -> None:
    answer = await post(tiny, "/v1/completions", prompt="abc", prompt_logprobs=1, max_tokens=1)
    first, *rest = answer["choices"][0]["prompt_logprobs"]
    reference = llm.score("abc", prompt_logprobs=1)[0]
    assert first is None
    for token_id, candidates, entry in zip(
        reference.prompt_token_ids[1:], rest, (reference.prompt_logprobs or ())[1:], strict=True
    ):
        assert entry is not None
        assert candidates[str(token_id)]["logprob"] == pytest.approx(entry.logprob, abs=1e-4)
        assert candidates[str(token_id)]["decoded_token"] in "abc"
        best = entry.top[0].token_id
        assert candidates[str(best)]["rank"] == 1
        assert candidates.keys() == {str(token_id), str(best)}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
async def test_embeddings_come_in_the_order_of_their_inputs(tiny: Any, llm: LLM, path: str) -> None:
    texts = ["first", TEXT * 5, "third"]
    answer = await post(tiny, path, input=texts, model="tiny")
    assert [(item["object"], item["index"]) for item in answer["data"]] == [("embedding", i) for i in range(3)]
    for item, reference in zip(answer["data"], llm.embed(texts), strict=True):
        assert item["embedding"] == pytest.approx(reference.embedding, abs=1e-4)
    assert (answer["object"], answer["model"]) == ("list", "tiny")
    num_tokens = sum(len(llm.tokenizer.encode(text)) for text in texts)
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["total_tokens"]) == (num_tokens, num_tokens)


async def test_embeddings_take_pooling_token_ids_and_base64(tiny: Any, llm: LLM) -> None:
    ids = llm.tokenizer.encode("hello")
    answer = await post(
        tiny, "/v1/embeddings", input=ids, pooling="last", normalize=False, encoding_format="base64",
        dimensions=HIDDEN_SIZE,
    )  # fmt: skip
    numbers = struct.unpack(f"<{HIDDEN_SIZE}f", base64.b64decode(answer["data"][0]["embedding"]))
    expected = llm.embed("hello", pooling="last", normalise=False)[0].embedding
    assert list(numbers) == pytest.approx(expected, abs=1e-4)


async def test_the_openai_package_reads_embeddings(tiny: Any, llm: LLM) -> None:
    async with openai.AsyncOpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as client:
        answer = await client.embeddings.create(model="tiny", input=["a b c", "d"])
    for item, reference in zip(answer.data, llm.embed(["a b c", "d"]), strict=True):
        assert item.embedding == pytest.approx(reference.embedding, abs=1e-4)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"input": []}, 400, "input"),
        ({"input": ""}, 400, "input"),
        ({"input": ["a"] * 513}, 400, "input"),
        ({"input": "word " * 1000}, 400, "input"),
        ({"input": [[1, 999]]}, 422, "input"),
        ({"input": "a", "dimensions": 8}, 400, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ({"input": "a", "pooling": "max"}, 400, "pooling"),
        ({"input": "a", "stream": True}, 400, "stream"),
        ({"input": "a", "model": "other"}, 404, "model"),
        ({}, 400, "input"),
    ],
)
async def test_embeddings_that_cannot_be_made_are_refused_by_field(
    tiny: Any, body: dict[str, Any], status: int, param: str
) -> None:
    response = await tiny.post("/v1/embeddings", **body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_text_becomes_tokens_and_text_again(tiny: Any, llm: LLM, prefix: str) -> None:
    answer = await post(tiny, f"{prefix}/tokenize", prompt="Hi <|im_end|>", return_token_strs=True)
    assert answer["tokens"] == llm.tokenizer.encode("Hi <|im_end|>")
    assert answer["token_strs"] == ["H", "i", " ", "<|im_end|>"]
    assert (answer["count"], answer["max_model_len"]) == (4, 1024)
    assert await post(tiny, f"{prefix}/detokenize", tokens=answer["tokens"]) == {"prompt": "Hi <|im_end|>"}
    skipped = await post(tiny, f"{prefix}/detokenize", tokens=answer["tokens"], skip_special_tokens=True)
    assert skipped == {"prompt": "Hi "}


async def test_a_conversation_is_tokenised_as_a_chat_sends_it(tiny: Any) -> None:
    messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi <|im_end|>"}]
    answer = await post(tiny, "/tokenize", messages=messages)
    chat = await post(tiny, "/v1/chat/completions", messages=messages, max_tokens=1)
    assert answer["count"] == chat["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, 400, "prompt"),
        ("/tokenize", {"prompt": 5}, 400, "prompt"),
        ("/tokenize", {"messages": [{"role": "nobody", "content": "b"}]}, 400, "messages[0].role"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": [1, 999]}, 422, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 422, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, 400, "tokens[0]"),
    ],
)
async def test_what_cannot_be_tokenised_is_refused_by_field(
    tiny: Any, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    response = await tiny.post(path, **body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text


async def test_metrics_count_guesses_and_how_many_were_right(tiny: Any) -> None:
    loop = "ab" * 60
    await post(tiny, "/v1/completions", prompt=loop, max_tokens=64, temperature=0, ignore_eos=True)
    drafts = await tiny.metric("deepseek_engine_spec_draft_tokens_total")
    assert 0 < await tiny.metric("deepseek_engine_spec_accepted_tokens_total") <= drafts


async def test_metrics_say_how_many_bytes_the_weights_have_by_type(tiny: Any) -> None:
    shapes = projection_shapes(TinyModel()).values()
    others = 2 * 259 * HIDDEN_SIZE + 5 * HIDDEN_SIZE  # embedding and head, norms
    expected = 4 * (sum(rows * columns for rows, columns in shapes) + others)
    assert await tiny.metric("deepseek_engine_weight_bytes", dtype="float32") == expected
    assert await tiny.metric("deepseek_engine_weight_bytes") == expected
