"""Built-in shapes: random weights for every parameter, the same for the same seed, and text that is numbers."""

from pathlib import Path

import pytest
import torch

from deepseek_engine import LLM, SamplingParams
from deepseek_engine.errors import InvalidRequestError, ModelLoadError
from deepseek_engine.model_config import parse_model_config
from deepseek_engine.model_runner import open_model
from deepseek_engine.model_source import model_display_name, resolve_model
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.random_source import RandomSource
from deepseek_engine.shapes import SHAPES, shape_fields
from deepseek_engine.tokenizer import load_tokenizer
from deepseek_engine.weights import load_weights, store_as_int8

CPU = torch.device("cpu")


def loaded(shape: str, *, seed: int = 0, int8: bool = False) -> Transformer:
    config = parse_model_config(shape_fields(f"shape:{shape}"), shape)
    model = Transformer(config, 16, torch.float32)
    if int8:
        store_as_int8(model)
    for parameter in model.parameters():
        parameter.data.fill_(77)  # what is not written stays so
    with torch.inference_mode():
        load_weights(model, RandomSource(config, CPU, seed))
    return model


@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize("shape", ["tiny-moe", "tiny-v2"])
def test_every_parameter_is_drawn_like_a_fresh_model_s(shape: str, int8: bool):
    for name, parameter in loaded(shape, int8=int8).named_parameters():
        if parameter.dtype is torch.int8:
            assert parameter.abs().amax(dim=-1).eq(127).all(), name
        elif "norm" in name:
            assert parameter.eq(1).all(), name
        elif name.endswith("_scale"):
            assert ((parameter * 127 > 0.02) & (parameter * 127 < 0.12)).all(), name  # the largest of 32..96 values
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
            assert parameter.abs().max() < 0.12, name


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    one, same, other = loaded("tiny-moe"), loaded("tiny-moe"), loaded("tiny-moe", seed=1)
    for (name, a), b, c in zip(one.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert "norm" in name or not torch.equal(a, c), name


def test_no_two_matrices_are_alike():
    tensors = [t for _, t in open_model("shape:tiny-v2", CPU)[1].tensors() if t.dim() > 1]
    assert len({float(t.flatten()[0]) for t in tensors}) == len(tensors)


def test_an_answer_is_token_ids_and_its_text_their_numbers():
    llm = LLM("shape:tiny-moe", dtype="float32")
    as_text, as_ids = llm.generate(["12 7", {"prompt_token_ids": [12, 7]}], SamplingParams(temperature=0, max_tokens=5))
    assert as_text.prompt_token_ids == [12, 7]
    assert as_text.outputs[0].token_ids == as_ids.outputs[0].token_ids
    assert as_ids.outputs[0].text == " ".join(map(str, as_ids.outputs[0].token_ids))
    assert as_ids.outputs[0].finish_reason == "length"


def test_without_detokenizing_there_is_no_text():
    llm = LLM("shape:tiny-moe", dtype="float32")
    prompt = {"prompt_token_ids": [3, 4, 5]}
    with_text = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=5))[0].outputs[0]
    without = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=5, detokenize=False))[0].outputs[0]
    assert (without.text, without.token_ids) == ("", with_text.token_ids)
    with pytest.raises(InvalidRequestError, match="detokenize"):
        SamplingParams(stop=("x",), detokenize=False)


def test_a_word_that_is_no_id_is_read_as_0():
    assert load_tokenizer("shape:seed-3.4b").encode("5 102399 102400 hello 3-4") == [5, 102399, 0, 0, 0]


def test_a_shape_has_a_name_and_no_files(tmp_path: Path):
    assert model_display_name("shape:tiny-moe") == "shape:tiny-moe"
    with pytest.raises(ModelLoadError, match="no files"):
        resolve_model("shape:tiny-moe")
    with pytest.raises(ModelLoadError, match="no shape 'seed', choose one of seed-"):
        LLM("shape:seed")


def test_the_large_shapes_have_the_sizes_that_their_names_say():
    sizes: dict[str, float] = {}
    for name in SHAPES:
        with torch.device("meta"):
            model = Transformer(parse_model_config(shape_fields(name), name), 1, torch.bfloat16)
        sizes[name] = sum(p.numel() for p in model.parameters()) / 1e9
    assert sizes["seed-3.4b"] == pytest.approx(3.44, abs=0.01)
    assert sizes["v2-lite"] == pytest.approx(sizes["v3-lite"] - 26 * 64 / 1e9)  # a bias of each layer's experts
    assert sizes["v2-lite"] == pytest.approx(15.7, abs=0.05)


def test_the_layer_of_a_shape_guesses_right():
    llm = LLM("shape:tiny-v3", dtype="float32", speculation="mtp", adaptive_speculation=False)
    prompts = [{"prompt_token_ids": [start, 9]} for start in range(4)]
    guessed = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=24, ignore_eos=True))
    plain = LLM("shape:tiny-v3", dtype="float32").generate(
        prompts, SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    )
    assert [each.outputs for each in guessed] == [each.outputs for each in plain]
    stats = llm.engine.step().stats
    assert stats.num_accepted_tokens > 0.9 * stats.num_draft_tokens > 30
