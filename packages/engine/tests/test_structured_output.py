"""Structured output through the engine: a model with random weights writes what it must, whatever it would like to."""

import json
import random
import re
import runpy
from pathlib import Path

import jsonschema
import pytest

from deepseek_engine.errors import GrammarError, InvalidRequestError
from deepseek_engine.grammar.params import StructuredOutputsParams
from deepseek_engine.grammar.source import GrammarUse
from deepseek_engine.llm import LLM
from deepseek_engine.messages import Submit
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.testing.checkpoints import TinyModel, write_tiny_checkpoint

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), TinyModel(max_position_embeddings=2048)))


@pytest.fixture(scope="module")
def llm(checkpoint: str) -> LLM:
    return LLM(checkpoint, dtype="float32")


def ask(
    *, temperature: float = 1.0, max_tokens: int = 400, seed: int = 0, n: int = 1, **kind: object
) -> SamplingParams:
    described = StructuredOutputsParams(**kind)  # pyright: ignore[reportArgumentType]
    return SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed, n=n, structured_outputs=described)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_every_finished_answer_follows_its_schema(llm: LLM, temperature: float):
    params = [ask(json=PERSON, temperature=temperature, seed=seed) for seed in range(4)]
    answers = [result.outputs[0] for result in llm.generate([f"prompt {i}" for i in range(4)], params)]
    for answer in answers:
        assert answer.finish_reason == "stop"
        jsonschema.validate(json.loads(answer.text), PERSON)


@pytest.mark.parametrize("keyword", ["anyOf", "oneOf"])
def test_a_choice_of_values_may_stand_beside_null(llm: LLM, keyword: str):
    """What pydantic makes of `Literal["a", "b"] | None`, alone and below an allOf that has alternatives too."""
    optional = {keyword: [{"enum": ["a", "b"], "type": "string"}, {"type": "null"}], "description": "perhaps"}
    narrowed = {"allOf": [optional, {"anyOf": [{"const": "a"}, {"const": 5}]}]}
    schema = {"type": "object", "properties": {"x": optional, "y": narrowed}, "required": ["x", "y"]}
    schema["additionalProperties"] = False
    (result,) = llm.generate("prompt", ask(json=schema, n=4))
    for answer in result.outputs:
        jsonschema.validate(json.loads(answer.text), schema)


def test_all_answers_to_one_prompt_have_a_place_of_their_own_in_the_grammar(llm: LLM):
    (result,) = llm.generate("prompt", ask(json=PERSON, n=4))
    assert len({answer.text for answer in result.outputs}) > 1
    for answer in result.outputs:
        jsonschema.validate(json.loads(answer.text), PERSON)


def test_a_choice_a_pattern_and_a_grammar_are_followed_to_the_end(llm: LLM):
    params = [
        ask(choice=("yes", "no", 'say "é"\n')),
        ask(regex=r"[a-c]{3}-\d{2,4}"),
        ask(grammar='root ::= "(" item ("," item)? ")"\nitem ::= [0-9] | "x"'),
    ]
    choice, pattern, grammar = (result.outputs[0] for result in llm.generate(["a", "b", "c"], params))
    assert choice.text in ("yes", "no", 'say "é"\n')
    assert re.fullmatch(r"[a-c]{3}-\d{2,4}", pattern.text)
    assert re.fullmatch(r"\((\d|x)(,(\d|x))?\)", grammar.text)
    assert {answer.finish_reason for answer in (choice, pattern, grammar)} == {"stop"}


def test_json_object_gives_an_object(llm: LLM):
    seeds = [ask(json_object=True, seed=seed, max_tokens=400) for seed in range(6)]
    answers = [result.outputs[0] for result in llm.generate(["x"] * 6, seeds)]
    finished = [answer.text for answer in answers if answer.finish_reason == "stop"]
    assert finished
    assert all(isinstance(json.loads(text), dict) for text in finished)
    assert all(answer.text.startswith("{") for answer in answers)


def test_free_answers_beside_constrained_ones_are_what_they_are_alone(llm: LLM):
    free = SamplingParams(temperature=1.0, seed=7, max_tokens=24)
    alone = llm.generate("free", free)[0].outputs[0]
    beside = llm.generate(["a", "free", "b"], [ask(json=PERSON), free, ask(choice=("u", "v"))])
    assert beside[1].outputs[0].token_ids == alone.token_ids


def test_preemption_keeps_the_place_in_the_grammar(checkpoint: str, llm: LLM):
    prompts = [f"prompt {i}" for i in range(4)]
    params = [ask(json=PERSON, seed=seed, max_tokens=200) for seed in range(4)]
    cramped = LLM(checkpoint, dtype="float32", num_kv_blocks=14, enable_prefix_caching=False)
    expected = [result.outputs[0].token_ids for result in llm.generate(prompts, params)]
    assert [result.outputs[0].token_ids for result in cramped.generate(prompts, params)] == expected
    assert cramped.engine.step().stats.num_preemptions > 0


def test_an_answer_that_is_cut_off_says_so(llm: LLM):
    (result,) = llm.generate("prompt", ask(json=PERSON, max_tokens=5))
    assert result.outputs[0].finish_reason == "length"
    assert result.outputs[0].text.startswith("{")


def test_bias_penalties_and_minimum_length_yield_to_the_grammar(llm: LLM):
    described = StructuredOutputsParams(choice=("no", "yes"))
    (z,), (n,) = llm.tokenizer.encode("z"), llm.tokenizer.encode("n")
    params = SamplingParams(
        temperature=0, max_tokens=20, min_tokens=10, ignore_eos=True, structured_outputs=described,
        logit_bias={z: 100.0, n: -100.0}, repetition_penalty=2.0, frequency_penalty=2.0,
    )  # fmt: skip
    (result,) = llm.generate("prompt", params)
    assert result.outputs[0].text == "yes", "the bias chooses among what is allowed, and the grammar's end is the end"
    assert result.outputs[0].stop_reason in llm.tokenizer.eos_token_ids
    assert len(result.outputs[0].token_ids) == len("yes") + 1


def test_a_minimum_length_puts_the_end_off_while_there_is_something_else_to_write(llm: LLM):
    described = StructuredOutputsParams(regex="[ab]*")
    params = SamplingParams(
        temperature=0,
        max_tokens=40,
        min_tokens=9,
        structured_outputs=described,
        logit_bias=dict.fromkeys(llm.tokenizer.eos_token_ids, 100.0),
    )
    (result,) = llm.generate("prompt", params)
    assert len(result.outputs[0].text) == 9
    assert result.outputs[0].finish_reason == "stop"


def test_a_stop_string_and_a_stop_token_end_an_answer_within_its_grammar(llm: LLM):
    described = StructuredOutputsParams(regex="[a-d]{200}")
    by_text = SamplingParams(temperature=1, seed=1, max_tokens=300, stop=("b",), structured_outputs=described)
    by_token = SamplingParams(
        temperature=1,
        seed=1,
        max_tokens=300,
        stop_token_ids=tuple(llm.tokenizer.encode("b")),
        structured_outputs=described,
    )
    texts = [result.outputs[0] for result in llm.generate(["x", "x"], [by_text, by_token])]
    assert [answer.finish_reason for answer in texts] == ["stop", "stop"]
    assert texts[0].text == texts[1].text.removesuffix("b")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"json": "{nonsense"}, "not JSON"),
        ({"json": {"type": "strange"}}, "#: type='strange'"),
        ({"json": {"properties": {"a": {"items": {"not": {}}}}}}, "#/a/items: not is not supported"),
        ({"regex": "(unclosed"}, "a bracket is not closed"),
        ({"grammar": 'root ::= "a" rule'}, '"rule" is not defined'),
        ({"grammar": "(" * 100 + '"a"' + ")" * 100}, "100 deep"),
        ({"choice": ()}, "0 choices"),
        ({"choice": ("a", "")}, "empty"),
        ({"regex": "a" * 70_000}, "70000 bytes"),
        ({}, "exactly one"),
        ({"regex": "a", "json_object": True}, "regex, json_object"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_its_reason(llm: LLM, kind: dict[str, object], message: str):
    with pytest.raises(GrammarError, match=message):
        llm.generate("x", ask(**kind))


def test_a_refused_prompt_leaves_nothing_behind(llm: LLM):
    with pytest.raises(InvalidRequestError):
        llm.generate(["a", "b"], [SamplingParams(max_tokens=4), ask(regex="(")])
    stats = llm.engine.step().stats
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_free_blocks == stats.num_blocks


def test_a_grammar_begins_behind_the_reasoning_and_the_answer_does_not_end_before(llm: LLM):
    close = tuple(llm.tokenizer.encode("|~"))
    bias = dict.fromkeys((*close, *llm.tokenizer.eos_token_ids), 8.0)
    params = SamplingParams(temperature=1, seed=3, max_tokens=900, logit_bias=bias)
    use = GrammarUse(StructuredOutputsParams(choice=("yes", "no")).to_source(), begin_after=close)
    prompt = llm.tokenizer.encode("think")
    llm.engine.add_request(Submit("reasoning", prompt, params, llm.tokenizer.eos_token_ids, grammar=use))
    tokens: list[int] = []
    while llm.engine.has_work:
        tokens += [token for delta in llm.engine.step().deltas for token in delta.token_ids]
    reasoning, _, answer = llm.tokenizer.decode(tokens[:-1]).partition("|~")
    assert answer in ("yes", "no")
    assert reasoning
    assert not set(tokens[:-1]) & set(llm.tokenizer.eos_token_ids)


def test_no_finished_answer_breaks_one_of_sixty_random_schemas(llm: LLM):
    suite = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "json_schema_suite.py"))
    choose = random.Random(1)
    tally = suite["run"](llm, [suite["random_schema"](choose) for _ in range(60)], 200)
    assert tally.invalid == []
    assert tally.num_valid > 40
    assert tally.num_valid + tally.num_truncated + tally.refused.total() == 60
