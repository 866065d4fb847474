"""Prompt log-probabilities and embeddings: those of transformers, in bounded memory, however a prompt is computed."""

import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from deepseek_engine import LLM, SamplingParams
from deepseek_engine.config import EngineConfig
from deepseek_engine.engine import Engine
from deepseek_engine.errors import EngineError, InvalidRequestError
from deepseek_engine.messages import Cancel, Delta, EmbedParams, Submit
from deepseek_engine.prompt_reader import MAX_ROWS
from deepseek_engine.testing.checkpoints import TINY_MOE, TinyModel, write_tiny_checkpoint
from deepseek_engine.testing.fake_runner import build_fake_runner

LENGTHS = (1, 2, 17, 90, 300)
PROMPTS = [{"prompt_token_ids": [(5 * n + i * i) % 256 for i in range(n)]} for n in LENGTHS]
SCHEDULES = {
    "whole": {},
    "chunked": {"max_num_batched_tokens": 29, "max_num_seqs": 4},
    "preempted": {"preempt_every_steps": 2, "max_num_batched_tokens": 64, "max_num_seqs": 5},
}


@pytest.fixture(scope="module", params=["llama", "moe"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = TinyModel(num_hidden_layers=3) if request.param == "llama" else TINY_MOE
    return write_tiny_checkpoint(tmp_path_factory.mktemp(request.param), shape)


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Log-probabilities and hidden states after the last norm, of each prompt."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    found = []
    with torch.inference_mode():
        for prompt in PROMPTS:
            output = model(torch.tensor([prompt["prompt_token_ids"]]), output_hidden_states=True)
            found.append((output.logits[0].log_softmax(-1), output.hidden_states[-1][0]))
    return found


@pytest.mark.parametrize("settings", SCHEDULES.values(), ids=SCHEDULES)
def test_prompt_logprobs_are_those_of_transformers(
    checkpoint: Path, oracle: list[tuple[torch.Tensor, torch.Tensor]], settings: dict[str, int]
) -> None:
    llm = LLM(str(checkpoint), dtype="float32", **settings)
    llm.generate(PROMPTS, SamplingParams(max_tokens=1))  # what the prefix cache now holds is not read
    for prompt, (logprobs, _), output in zip(PROMPTS, oracle, llm.score(PROMPTS, prompt_logprobs=3), strict=True):
        ids = prompt["prompt_token_ids"]
        assert output.prompt_logprobs is not None
        first, *rest = output.prompt_logprobs
        assert first is None
        assert len(rest) == len(ids) - 1
        for position, entry in enumerate(rest):
            assert entry.logprob == pytest.approx(logprobs[position, ids[position + 1]].item(), abs=1e-4)
            best = logprobs[position].topk(3).values.tolist()
            assert [top.logprob for top in entry.top] == pytest.approx(best, abs=1e-4)
        assert (output.outputs[0].token_ids, output.outputs[0].finish_reason) == ([], "length")


def test_an_answer_after_a_scored_prompt_is_the_one_without(checkpoint: Path) -> None:
    llm = LLM(str(checkpoint), dtype="float32", max_num_batched_tokens=64)
    plain = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    scored = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, prompt_logprobs=0, n=2)
    for prompt in PROMPTS:
        output = llm.generate(prompt, scored)[0]
        assert output.num_cached_tokens == 0
        assert len(output.prompt_logprobs or ()) == len(prompt["prompt_token_ids"])
        expected = llm.generate(prompt, plain)[0].outputs[0].token_ids
        assert [answer.token_ids for answer in output.outputs] == [expected] * 2


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("settings", SCHEDULES.values(), ids=SCHEDULES)
def test_embeddings_are_pooled_hidden_states_of_transformers(
    checkpoint: Path, oracle: list[tuple[torch.Tensor, torch.Tensor]], settings: dict[str, int], pooling: str
) -> None:
    llm = LLM(str(checkpoint), dtype="float32", **settings)
    outputs = llm.embed(PROMPTS, pooling=pooling, normalise=False)
    for output, (_, hidden) in zip(outputs, oracle, strict=True):
        expected = hidden.mean(0) if pooling == "mean" else hidden[-1]
        assert output.embedding == pytest.approx(expected.tolist(), abs=1e-4)


def test_embeddings_have_length_one_by_default(checkpoint: Path) -> None:
    for output in LLM(str(checkpoint), dtype="float32").embed(PROMPTS):
        assert sum(x * x for x in output.embedding) == pytest.approx(1.0)


def test_embeddings_run_in_one_batch_with_answers(checkpoint: Path) -> None:
    llm = LLM(str(checkpoint), dtype="float32")
    engine = llm.engine
    ids = PROMPTS[3]["prompt_token_ids"]
    engine.add_request(Submit("answer", ids, SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)))
    engine.add_request(Submit("vector", ids, SamplingParams(max_tokens=0), embed=EmbedParams()))
    engine.add_request(Submit("score", ids, SamplingParams(max_tokens=0, prompt_logprobs=0)))
    deltas = [delta for _ in range(4) for delta in engine.step().deltas]
    assert {delta.request_id for delta in deltas[:5]} == {"answer", "vector", "score"}
    assert engine.step().stats.num_steps == 4
    tokens = [token_id for delta in deltas for token_id in delta.token_ids]
    alone = llm.generate(PROMPTS[3], SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True))
    assert tokens == alone[0].outputs[0].token_ids


def test_logits_of_a_prompt_exist_a_few_rows_at_a_time(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(str(checkpoint), dtype="float32")
    rows: list[int] = []
    reader = llm.engine._runner._prompt_reader
    to_logits = reader._to_logits
    monkeypatch.setattr(reader, "_to_logits", lambda hidden: rows.append(hidden.shape[0]) or to_logits(hidden))
    llm.score({"prompt_token_ids": [7] * 700})
    assert sum(rows) == 699
    assert max(rows) <= MAX_ROWS


def make_engine(**settings: int) -> Engine:
    config = EngineConfig(model="fake", num_kv_blocks=64, max_model_len=256, **settings)
    return Engine(config, build_fake_runner(config))


def run(engine: Engine) -> list[Delta]:
    deltas: list[Delta] = []
    while engine.has_work:
        deltas += engine.step().deltas
        engine._scheduler.check()
    return deltas


def test_each_prompt_token_is_reported_once_when_another_answer_takes_over() -> None:
    engine = make_engine(max_num_batched_tokens=32)
    prompt = list(range(100, 200))
    engine.add_request(Submit("a", prompt, SamplingParams(max_tokens=3, n=3, prompt_logprobs=0)))
    deltas = [*engine.step().deltas, *engine.step().deltas]
    engine.inbox.append(Cancel("a", 0))
    forward = engine._runner.forward

    def forward_while_a_cancel_arrives(batch):
        engine.inbox.append(Cancel("a", 1))
        engine._runner.forward = forward
        return forward(batch)

    engine._runner.forward = forward_while_a_cancel_arrives
    deltas += run(engine)
    reported = [entry.logprob for delta in deltas for entry in delta.prompt_logprobs]
    assert reported == [-float(token_id) for token_id in prompt[1:]]
    assert deltas[-1].index == 2
    assert deltas[-1].finish_reason == "length"


def test_a_last_token_embedding_may_come_from_the_prefix_cache_and_a_mean_may_not() -> None:
    engine = make_engine()
    prompt = list(range(40))
    for pooling, num_cached in (("mean", 0), ("last", 32), ("mean", 0)):
        engine.add_request(Submit("a", prompt, SamplingParams(max_tokens=0), embed=EmbedParams(pooling=pooling)))
        vector, last = run(engine)
        assert vector.embedding is not None
        assert (last.finish_reason, last.num_prompt_tokens, last.num_cached_tokens) == ("length", 40, num_cached)


def test_several_answers_without_tokens_all_end() -> None:
    engine = make_engine()
    engine.add_request(Submit("a", list(range(50)), SamplingParams(max_tokens=0, n=3, prompt_logprobs=0)))
    deltas = run(engine)
    assert sum(len(delta.prompt_logprobs) for delta in deltas) == 49
    assert sorted(delta.index for delta in deltas if delta.finish_reason == "length") == [0, 1, 2]


@pytest.mark.parametrize(
    "params", [{"max_tokens": 5}, {"max_tokens": 0, "n": 2}, {"max_tokens": 0, "prompt_logprobs": 0}]
)
def test_an_embedding_with_an_answer_is_refused(params: dict[str, int]) -> None:
    with pytest.raises(InvalidRequestError, match="embed goes with max_tokens=0"):
        make_engine().add_request(Submit("a", [1], SamplingParams(**params), embed=EmbedParams()))


def test_an_interrupt_ends_the_call_after_its_step_and_the_model_can_be_used_again(checkpoint: Path) -> None:
    with LLM(str(checkpoint), dtype="float32", num_kv_blocks=64) as llm:
        forward = llm.engine._runner.forward
        steps = []

        def forward_and_interrupt(batch):
            steps.append(len(batch))
            if len(steps) == 3:
                signal.raise_signal(signal.SIGINT)
            return forward(batch)

        llm.engine._runner.forward = forward_and_interrupt
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS[:3], SamplingParams(max_tokens=50, ignore_eos=True))
        assert len(steps) == 3
        llm.engine._runner.forward = forward
        stats = llm.engine.step().stats
        assert stats.num_free_blocks == stats.num_blocks
        assert len(llm.generate(PROMPTS[0], SamplingParams(max_tokens=2))[0].outputs[0].token_ids) == 2
    with pytest.raises(EngineError, match="closed"):
        llm.generate("again")


@pytest.mark.parametrize("use_tqdm", [True, False])
def test_the_progress_bar_counts_prompts(checkpoint: Path, capsys: pytest.CaptureFixture[str], use_tqdm: bool) -> None:
    LLM(str(checkpoint), dtype="float32").generate(PROMPTS[:3], SamplingParams(max_tokens=2), use_tqdm=use_tqdm)
    assert ("3/3" in capsys.readouterr().err) == use_tqdm
