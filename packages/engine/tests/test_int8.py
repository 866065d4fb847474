"""INT8 products and models: exact integers, rows that do not depend on each other, scales beside every weight."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import InvalidRequestError
from deepseek_engine.layers.linear import Linear
from deepseek_engine.layers.moe import MixtureOfExperts
from deepseek_engine.llm import LLM
from deepseek_engine.model_runner import ModelRunner, build_runner
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.quantization import int8
from deepseek_engine.quantization.int8 import dequantize_rows, int8_linear, int8_matmul, quantize_rows, quantize_tokens
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.step_model import TorchModel
from deepseek_engine.testing.checkpoints import TINY_MOE, TinyModel, write_tiny_checkpoint


def transformer(runner: ModelRunner) -> Transformer:
    assert isinstance(runner.model, TorchModel)
    return runner.model.transformer


def build(folder: Path, quantization: str | None = "int8") -> ModelRunner:
    return build_runner(EngineConfig(model=str(folder), dtype="float32", num_kv_blocks=8, quantization=quantization))


@pytest.mark.parametrize("has_vnni", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 576, 64), (5, 1025, 33), (40, 4100, 7)])
def test_the_integer_product_is_exact_at_the_largest_values(
    shape: tuple[int, int, int], has_vnni: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "_has_exact_int8_dot_product", lambda: has_vnni)
    rows, columns, outputs = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (rows, columns), generator=generator, dtype=torch.int8)
    weight = torch.randint(-128, 128, (outputs, columns), generator=generator, dtype=torch.int8)
    x[0], weight[0] = 127, -128
    assert torch.equal(int8_matmul(x, weight).long(), x.long() @ weight.long().t())


def test_a_row_is_rounded_by_at_most_half_a_step_of_its_own_scale() -> None:
    values = torch.randn(64, 100, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 6, 64)[:, None]
    quantized, scale = quantize_rows(values)
    assert_close(scale, values.abs().amax(dim=1) / 127)
    assert (dequantize_rows(quantized, scale) - values).abs().le(scale[:, None] * 0.5001).all()
    assert quantized.abs().amax(dim=1).eq(127).all()


def test_a_token_is_written_in_two_digits_to_within_half_a_step_of_its_own_scale() -> None:
    values = torch.randn(64, 100, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 6, 64)[:, None]
    digits, scale = quantize_tokens(values)
    assert_close(scale, values.abs().amax(dim=1) / (127 * 128))
    restored = (digits[0].float() * 128 + digits[1]) * scale[:, None]
    assert (restored - values).abs().le(scale[:, None] * 0.501).all()


def test_a_row_of_zeros_stays_zero() -> None:
    weight, scale = quantize_rows(torch.zeros(2, 3))
    assert weight.eq(0).all()
    assert scale.eq(1).all()
    assert int8_linear(torch.zeros(1, 3), torch.ones(2, 3, dtype=torch.int8), torch.ones(2)).eq(0).all()


def test_what_is_not_finite_is_not_hidden_and_stays_in_its_row() -> None:
    product = int8_linear(torch.tensor([[1.0, math.nan], [math.inf, 1.0], [2.0, 1.0]]), *quantize_rows(torch.eye(2)))
    assert not product[:2].isfinite().any()
    assert_close(product[2], torch.tensor([2.0, 1.0]))


def test_a_product_errs_by_its_weights_alone_even_where_one_channel_dwarfs_the_others() -> None:
    generator = torch.Generator().manual_seed(3)
    x, weight = torch.randn(8, 256, generator=generator), torch.randn(32, 256, generator=generator)
    x[:, 7] *= 200
    quantized, scale = quantize_rows(weight)
    expected = x @ dequantize_rows(quantized, scale).t()
    assert_close(int8_linear(x, quantized, scale), expected, rtol=0, atol=1e-3 * expected.std().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rows_result_is_the_same_whatever_other_rows_there_are(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    layer = Linear(96, (64, 32), bias=True, dtype=dtype)
    layer.store_as_int8()
    assert layer.weight_scale is not None
    weight, scale = quantize_rows(torch.randn(96, 96, generator=generator))
    layer.weight.copy_(weight)
    layer.weight_scale.copy_(scale)
    x = torch.randn(33, 96, generator=generator).to(dtype)
    together = layer(x)
    assert together.dtype is dtype
    for row in range(33):
        assert torch.equal(layer(x[row : row + 1])[0], together[row])


@pytest.mark.parametrize("fused_experts", [False, True])
def test_a_quantised_model_holds_each_weight_as_rounded_rows_with_their_scales(
    tmp_path: Path, fused_experts: bool
) -> None:
    folder = write_tiny_checkpoint(tmp_path, TinyModel(num_local_experts=4, fused_experts=fused_experts))
    exact, model = transformer(build(folder, None)), transformer(build(folder))
    pairs = [(a, b) for a, b in zip(exact.modules(), model.modules(), strict=True)]
    weights = 0
    for original, quantized in pairs:
        names = [name for name, _ in original.named_parameters(recurse=False)]
        for name in names:
            before, after = getattr(original, name), getattr(quantized, name)
            if getattr(quantized, f"{name}_scale", None) is None:
                assert torch.equal(before, after)
                continue
            weights += 1
            expected, scale = quantize_rows(before)
            assert torch.equal(after, expected)
            assert torch.equal(getattr(quantized, f"{name}_scale"), scale)
    assert weights == 2 * 4 + 1  # a layer's qkv, output, and the experts' two; the head


def test_router_embedding_a_tied_head_and_norms_keep_the_compute_type(tmp_path: Path) -> None:
    model = transformer(build(write_tiny_checkpoint(tmp_path, replace(TINY_MOE, tie_word_embeddings=True))))
    feed_forward = model.layers[0].feed_forward
    assert isinstance(feed_forward, MixtureOfExperts)
    kept = (model.embedding, model.head.weight, model.norm.weight, feed_forward.router.weight)
    assert {parameter.dtype for parameter in kept} == {torch.float32}
    assert model.head.weight_scale is None


def test_greedy_tokens_alone_and_in_a_batch_are_equal(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, TINY_MOE)
    llm = LLM(str(folder), dtype="float32", quantization="int8", num_kv_blocks=64, enable_prefix_caching=False)
    prompts = ["one", "a second prompt, longer than the first", "three"]
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    alone = [llm.generate(prompt, params)[0].outputs[0].token_ids for prompt in prompts]
    assert [output.outputs[0].token_ids for output in llm.generate(prompts, params)] == alone


def test_an_unknown_quantization_is_refused_with_the_choices() -> None:
    with pytest.raises(InvalidRequestError, match="quantization='int3': choose one of None, int8") as caught:
        EngineConfig(model="smollm2", quantization="int3")
    assert caught.value.param == "quantization"
