"""Offline use: LLM(...).generate on a tiny checkpoint and on the built-in model."""

import re
from pathlib import Path

import pytest

from deepseek_engine import LLM, SamplingParams
from deepseek_engine.errors import ContextLengthError, InvalidRequestError
from deepseek_engine.testing.checkpoints import TINY_MOE, TinyModel, write_tiny_checkpoint

GREEDY = SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True)
PROMPTS = [{"prompt_token_ids": [(7 * i + j * j) % 256 for j in range(5 + 9 * i)]} for i in range(16)]


@pytest.fixture(scope="module", params=["llama", "moe"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    shape = TinyModel() if request.param == "llama" else TINY_MOE
    return str(write_tiny_checkpoint(tmp_path_factory.mktemp(request.param), shape))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM(str(write_tiny_checkpoint(tmp_path_factory.mktemp("llama"))), dtype="float32")


@pytest.fixture(scope="module")
def alone(checkpoint: str) -> list[list[int]]:
    """The tokens of each prompt in an engine that serves one at a time."""
    llm = LLM(checkpoint, dtype="float32", max_num_seqs=1, enable_prefix_caching=False)
    return [llm.generate(prompt, GREEDY)[0].outputs[0].token_ids for prompt in PROMPTS]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_seqs": 16},
        {"max_num_seqs": 16, "max_num_batched_tokens": 17},
        {"max_num_seqs": 16, "num_kv_blocks": 40, "enable_prefix_caching": False},
        {"max_num_seqs": 5, "max_num_batched_tokens": 23, "num_kv_blocks": 15},
    ],
    ids=["batched", "chunked", "preempted", "chunked-and-preempted"],
)
def test_greedy_tokens_do_not_depend_on_how_the_batch_is_scheduled(
    checkpoint: str, alone: list[list[int]], settings: dict[str, int]
) -> None:
    llm = LLM(checkpoint, dtype="float32", **settings)
    together = [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY)]
    assert together == alone
    if "num_kv_blocks" in settings:
        assert llm.engine.step().stats.num_preemptions > 0


def test_a_prompt_met_before_comes_from_the_cache_and_gives_the_same_tokens(llama: LLM) -> None:
    prompt = {"prompt_token_ids": list(range(100, 180))}
    first, second = llama.generate(prompt, GREEDY)[0], llama.generate(prompt, GREEDY)[0]
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 64)
    assert second.outputs[0].token_ids == first.outputs[0].token_ids


def test_a_seed_gives_the_same_tokens_whatever_else_is_in_the_batch(llama: LLM) -> None:
    seeded = SamplingParams(seed=5, temperature=1.0, top_p=0.95, max_tokens=32, ignore_eos=True)
    other = SamplingParams(temperature=1.5, max_tokens=40, ignore_eos=True)
    alone = llama.generate(PROMPTS[3], seeded)[0].outputs[0].token_ids
    batch = llama.generate(PROMPTS[:8], [seeded if i == 3 else other for i in range(8)])
    assert batch[3].outputs[0].token_ids == alone
    assert llama.generate(PROMPTS[3], SamplingParams(seed=6, max_tokens=32, ignore_eos=True)) != alone


def test_n_answers_share_a_prompt_and_differ(llama: LLM) -> None:
    params = SamplingParams(n=4, seed=1, temperature=1.0, max_tokens=24, ignore_eos=True)
    first, again = llama.generate(PROMPTS[4], params)[0], llama.generate(PROMPTS[4], params)[0]
    answers = [output.token_ids for output in first.outputs]
    assert len({tuple(answer) for answer in answers}) == 4
    assert [output.token_ids for output in again.outputs] == answers


def test_n_greedy_answers_are_equal_to_one(llama: LLM) -> None:
    params = SamplingParams(n=3, temperature=0.0, max_tokens=24, ignore_eos=True)
    one = llama.generate(PROMPTS[5], SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True))[0].outputs[0]
    assert [output.token_ids for output in llama.generate(PROMPTS[5], params)[0].outputs] == [one.token_ids] * 3


def test_a_stop_string_across_tokens_ends_the_answer_before_it(llama: LLM) -> None:
    free = llama.generate(PROMPTS[6], SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True))[0].outputs[0]
    stop = free.text[10:13]
    cut = llama.generate(PROMPTS[6], SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True, stop=(stop,)))[
        0
    ].outputs[0]
    assert cut.text == free.text[: free.text.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert len(cut.token_ids) < len(free.token_ids)


def test_a_stop_token_ends_the_answer_unless_fewer_than_min_tokens_are_out(llama: LLM) -> None:
    free = llama.generate(PROMPTS[7], GREEDY)[0].outputs[0].token_ids
    stop = free[4]
    early = llama.generate(PROMPTS[7], SamplingParams(temperature=0.0, max_tokens=48, stop_token_ids=(stop,)))[0]
    assert early.outputs[0].token_ids == free[: free.index(stop) + 1]
    assert (early.outputs[0].finish_reason, early.outputs[0].stop_reason) == ("stop", stop)
    later = llama.generate(
        PROMPTS[7], SamplingParams(temperature=0.0, max_tokens=48, min_tokens=20, stop_token_ids=(stop,))
    )[0]
    assert len(later.outputs[0].token_ids) >= 20
    assert stop not in later.outputs[0].token_ids[:20]


def test_logprobs_report_the_chosen_token_and_the_likeliest(llama: LLM) -> None:
    output = llama.generate(PROMPTS[2], SamplingParams(temperature=0.0, max_tokens=8, logprobs=3))[0].outputs[0]
    assert output.logprobs is not None
    assert len(output.logprobs) == len(output.token_ids)
    for token_id, entry in zip(output.token_ids, output.logprobs, strict=True):
        assert entry.top[0].token_id == token_id
        assert entry.logprob == entry.top[0].logprob <= 0.0
        assert [t.logprob for t in entry.top] == sorted((t.logprob for t in entry.top), reverse=True)


def test_a_prompt_beyond_the_context_is_refused_and_leaves_nothing_behind(llama: LLM) -> None:
    with pytest.raises(ContextLengthError, match="8192"):
        llama.generate([PROMPTS[0], {"prompt_token_ids": [1] * 9000}], GREEDY)
    assert not llama.engine.has_work
    stats = llama.engine.step().stats
    assert stats.num_free_blocks == stats.num_blocks


def test_prompts_and_parameters_must_match_in_number(llama: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="2 sampling_params for 1 prompts"):
        llama.generate("a", [GREEDY, GREEDY])


def test_the_built_in_model_answers_in_english() -> None:
    llm = LLM("smollm2", num_kv_blocks=64)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    output = llm.chat(question, SamplingParams(temperature=0.0, max_tokens=32))[0].outputs[0]
    assert "Paris" in output.text
    assert output.finish_reason == "stop"


def test_a_missing_checkpoint_is_named() -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        LLM(str(Path("no-such-model")))


def test_the_readme_examples_run_as_they_stand() -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_a_thinking_budget_closes_the_reasoning_that_the_prompt_opened(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        renamed = text.replace("<|im_start|>", "<think>").replace("<|endoftext|>", "</think>")
        (tmp_path / name).write_text(renamed, encoding="utf-8")
    with LLM(str(tmp_path), dtype="float32") as llm:
        opened, closed = llm.tokenizer.token_id("<think>"), llm.tokenizer.token_id("</think>")
        assert opened is not None
        assert closed is not None
        params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, thinking_token_budget=5)
        answers = [
            llm.chat([{"role": "user", "content": "hi"}], params)[0],
            *llm.generate([{"prompt_token_ids": [opened, 7]}, {"prompt_token_ids": [opened, 7, closed, 8]}], params),
        ]
    thought, generated, done = (answer.outputs[0].token_ids for answer in answers)
    assert thought.index(closed) == generated.index(closed) == 5
    assert closed not in done


def test_a_thinking_budget_of_a_model_that_does_not_think_is_refused(llama: LLM) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        llama.generate(PROMPTS[0], SamplingParams(thinking_token_budget=5))
    assert caught.value.param == "thinking_token_budget"


@pytest.mark.parametrize("prompt", [3, {"prompt": "x"}, None])
def test_a_prompt_that_is_none_says_what_to_give(llama: LLM, prompt: object) -> None:
    with pytest.raises(InvalidRequestError, match="give a text, or"):
        llama.generate([prompt])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("messages", ["Hi", ["Hi"], [[{"role": "user", "content": "Hi"}], "Hi"]])
def test_a_chat_of_a_bare_text_says_what_to_give(llama: LLM, messages: object) -> None:
    with pytest.raises(InvalidRequestError, match="give a list of messages"):
        llama.chat(messages)  # pyright: ignore[reportArgumentType]
