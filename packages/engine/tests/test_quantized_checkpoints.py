"""Checkpoints with quantised weights: FP8 blocks become floats, INT8 stays as it is, all else is refused by name."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, DeepseekV3Config

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.model_config import read_model_config
from deepseek_engine.quantization.int8 import dequantize_rows, quantize_rows
from deepseek_engine.testing.checkpoints import TinyModel, write_tiny_checkpoint
from deepseek_engine.testing.families import TINY_LATENT, build_oracle, write_family_checkpoint
from deepseek_engine.testing.quantized import (
    FP8,
    INT8,
    fp8_tensors,
    from_fp8_blocks,
    is_projection,
    rewrite,
    to_fp8_blocks,
)
from deepseek_engine.testing.whole_prompts import load_transformer, logits_at_every_position

TOLERANCE = 1e-4
"""Two float32 implementations that add in different orders."""
Tensors = dict[str, Tensor]
V3 = {**TINY_LATENT, "n_group": 4, "topk_group": 2}


def some_tokens() -> list[int]:
    return torch.randint(0, 256, (100,), generator=torch.Generator().manual_seed(7)).tolist()


def dequantized_tensors(tensors: Tensors, block: tuple[int, int], *, ue8m0: bool) -> Tensors:
    def round_trip(tensor: Tensor) -> Tensor:
        pairs = (to_fp8_blocks(matrix, block, ue8m0=ue8m0) for matrix in tensor.view(-1, *tensor.shape[-2:]))
        return torch.stack([from_fp8_blocks(values, scale, block) for values, scale in pairs]).view(tensor.shape)

    return {name: round_trip(tensor) if is_projection(name, tensor) else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("changes", "block", "scales", "fused"),
    [
        ({}, (128, 128), "float32", False),
        ({"hidden_size": 200, "intermediate_size": 261, "moe_intermediate_size": 132}, (128, 128), "float32", False),
        ({}, (16, 24), "bfloat16", False),
        ({}, (16, 24), "e8m0", False),
        ({}, (16, 24), "e8m0 bytes", False),
        ({"moe_intermediate_size": 32}, (16, 24), "float32", True),
    ],
    ids=str,
)
def test_fp8_blocks_give_the_logits_of_their_dequantised_weights(
    tmp_path: Path, changes: dict[str, int], block: tuple[int, int], scales: str, fused: bool
) -> None:
    plain, folder = tmp_path / "plain", tmp_path / "fp8"
    write_family_checkpoint(plain, build_oracle(DeepseekV3Config(**V3 | changes)), fused_experts=fused)
    shutil.copytree(plain, folder)
    stores: dict[str, Callable[[Tensor], Tensor]] = {
        "float32": lambda scale: scale,
        "bfloat16": lambda scale: scale.bfloat16(),
        "e8m0": lambda scale: scale.to(torch.float8_e8m0fnu),
        "e8m0 bytes": lambda scale: scale.to(torch.float8_e8m0fnu).view(torch.uint8),
    }
    ue8m0 = scales != "float32"  # powers of two, which bfloat16 holds exactly too
    quantization = {**FP8, "weight_block_size": list(block)} | ({"scale_fmt": "ue8m0"} if ue8m0 else {})
    rewrite(folder, lambda tensors: fp8_tensors(tensors, block, stores[scales], ue8m0=ue8m0), quantization)
    rewrite(plain, lambda tensors: dequantized_tensors(tensors, block, ue8m0=ue8m0), None)
    oracle = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        expected = oracle(torch.tensor([some_tokens()]), use_cache=False).logits[0]
    assert (logits_at_every_position(folder, some_tokens()) - expected).abs().max() < TOLERANCE


def test_fp8_weights_are_requantised_from_float32_by_quantization_int8(tmp_path: Path) -> None:
    plain, folder = write_tiny_checkpoint(tmp_path / "plain"), write_tiny_checkpoint(tmp_path / "fp8")
    block = (16, 24)
    quantization = {**FP8, "weight_block_size": list(block)}
    rewrite(folder, lambda tensors: fp8_tensors(tensors, block), quantization)
    rewrite(plain, lambda tensors: dequantized_tensors(tensors, block, ue8m0=False), None)
    expected, actual = load_transformer(plain, "int8").state_dict(), load_transformer(folder, "int8").state_dict()
    assert any(tensor.dtype is torch.int8 for tensor in actual.values())
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def changed(change: Callable[[Tensors], Any]) -> Callable[[Tensors], Tensors]:
    def apply(tensors: Tensors) -> Tensors:
        change(tensors)
        return tensors

    return apply


QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def fp8_folder(tmp_path: Path) -> Path:
    folder = write_tiny_checkpoint(tmp_path / "fp8")
    quantization = {**FP8, "weight_block_size": [16, 24]}
    rewrite(folder, lambda tensors: fp8_tensors(tensors, (16, 24)), quantization)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{QUERY}_scale_inv"), rf"{QUERY} is float8_e4m3fn, but there is no {QUERY}_scale_inv"),
        (lambda t: t.pop(QUERY), f"has {QUERY}_scale_inv without {QUERY}"),
        (lambda t: t.update({f"{QUERY}_scale_inv": torch.ones(4, 4)}), r"shape \[4, 4\]: .* asks for \[4, 3\]"),
        (lambda t: t.update({QUERY: torch.ones(64, 64)}), "is float32 .*: beside .* a matrix of float8_e4m3fn"),
        (lambda t: t.update({f"{QUERY}_scale_inv": torch.ones(4, 3).int()}), "is of type int32, which is none for"),
        (lambda t: t.update({f"{QUERY}_scale_inv": torch.full((4, 3), torch.nan)}), "values that are not finite"),
    ],
)  # fmt: skip
def test_weights_and_scales_that_do_not_go_together_are_named(
    fp8_folder: Path, change: Callable[[Tensors], Any], message: str
) -> None:
    quantization = {**FP8, "weight_block_size": [16, 24]}
    rewrite(fp8_folder, changed(change), quantization)
    with pytest.raises(ModelLoadError, match=message):
        load_transformer(fp8_folder)


@pytest.mark.parametrize("skipped", ["model.layers.0.self_attn.q_proj", "self_attn.q_proj", "model.layers.0"])
def test_an_fp8_weight_of_a_module_that_is_not_to_be_converted_is_named(fp8_folder: Path, skipped: str) -> None:
    quantization = {**FP8, "weight_block_size": [16, 24], "modules_to_not_convert": ["lm_head", skipped]}
    rewrite(fp8_folder, lambda tensors: tensors, quantization)
    with pytest.raises(ModelLoadError, match=r"layers\.0.* is FP8, but modules_to_not_convert"):
        load_transformer(fp8_folder)


def test_modules_that_are_not_to_be_converted_are_read_as_they_are(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path)
    weight = load_file(folder / "model.safetensors")[QUERY]

    def all_but_one(tensors: Tensors) -> Tensors:
        kept = tensors.pop(QUERY)
        return fp8_tensors(tensors, (16, 24)) | {QUERY: kept}

    skipped = QUERY.removesuffix(".weight")
    rewrite(folder, all_but_one, {**FP8, "weight_block_size": [16, 24], "modules_to_not_convert": [skipped]})
    attention: Any = load_transformer(folder).layers[0]
    assert torch.equal(attention.attention.qkv.weight[: weight.shape[0]], weight)


def test_fused_gate_and_up_projections_whose_blocks_straddle_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, TinyModel(num_local_experts=4, fused_experts=True, intermediate_size=24))
    quantization = {**FP8, "weight_block_size": [16, 24]}
    rewrite(folder, lambda tensors: fp8_tensors(tensors, (16, 24)), quantization)
    with pytest.raises(ModelLoadError, match=r"gate_up_proj has 48 rows: blocks of 16 rows .* a tensor an expert"):
        load_transformer(folder)


def int8_tensors(tensors: Tensors, scale_dtype: torch.dtype = torch.float32, skip: str = " ") -> Tensors:
    found: Tensors = {}
    for name, tensor in tensors.items():
        if is_projection(name, tensor) and skip not in name:
            values, scale = quantize_rows(tensor)
            found |= {name: values, f"{name}_scale": scale.unsqueeze(-1).to(scale_dtype)}
        else:
            found[name] = tensor
    return found


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_int8_weights_of_compressed_tensors_are_stored_unchanged(
    tmp_path: Path, quantization: str | None, scale_dtype: torch.dtype
) -> None:
    folder = write_tiny_checkpoint(tmp_path, TinyModel(num_local_experts=4))
    rewrite(folder, lambda tensors: int8_tensors(tensors, scale_dtype), INT8)
    stored = load_file(folder / "model.safetensors")
    layer: Any = load_transformer(folder, quantization).layers[1]
    prefix = "model.layers.1.self_attn."
    values = torch.cat([stored[f"{prefix}{part}_proj.weight"] for part in "qkv"])
    scale = torch.cat([stored[f"{prefix}{part}_proj.weight_scale"] for part in "qkv"])
    assert torch.equal(layer.attention.qkv.weight, values)
    assert torch.equal(layer.attention.qkv.weight_scale, scale.squeeze(-1).float())
    expert = "model.layers.1.block_sparse_moe.experts.3."
    assert torch.equal(layer.feed_forward.experts.down[3], stored[f"{expert}w2.weight"])
    assert torch.equal(layer.feed_forward.experts.gate_up[3, 96:], stored[f"{expert}w3.weight"])
    scale = stored[f"{expert}w3.weight_scale"].squeeze(-1).float()
    assert torch.equal(layer.feed_forward.experts.gate_up_scale[3, 96:], scale)


def test_an_int8_checkpoint_gives_exactly_the_logits_of_quantization_int8(tmp_path: Path) -> None:
    plain, folder = write_tiny_checkpoint(tmp_path / "plain"), write_tiny_checkpoint(tmp_path / "int8")
    rewrite(folder, int8_tensors, INT8)
    expected = logits_at_every_position(plain, some_tokens(), "int8")
    # Such files keep their head: it too becomes INT8 when that is asked for.
    assert torch.equal(logits_at_every_position(folder, some_tokens(), "int8"), expected)


def test_a_fused_projection_with_an_ignored_part_stays_in_full_precision(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path)
    rewrite(folder, lambda tensors: int8_tensors(tensors, skip=".k_proj."), INT8)
    stored = load_file(folder / "model.safetensors")
    layer: Any = load_transformer(folder).layers[0]
    prefix = "model.layers.0.self_attn."
    query = dequantize_rows(stored[f"{prefix}q_proj.weight"], stored[f"{prefix}q_proj.weight_scale"].squeeze(-1))
    assert layer.attention.qkv.weight_scale is None
    assert_close(layer.attention.qkv.weight[:64], query, rtol=0, atol=0)
    assert torch.equal(layer.attention.qkv.weight[64:96], stored[f"{prefix}k_proj.weight"])
    assert layer.attention.output.weight.dtype is torch.int8


def test_latent_attention_keeps_its_folded_projection_in_full_precision(tmp_path: Path) -> None:
    folder = write_family_checkpoint(tmp_path, build_oracle(DeepseekV3Config(**V3)))
    rewrite(folder, int8_tensors, INT8)
    stored = load_file(folder / "model.safetensors")
    layer: Any = load_transformer(folder).layers[0]
    name = "model.layers.0.self_attn.kv_b_proj.weight"
    assert torch.equal(layer.attention.kv_b, dequantize_rows(stored[name], stored[f"{name}_scale"].squeeze(-1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{QUERY}_scale"), f"{QUERY} is int8, but there is no {QUERY}_scale"),
        (lambda t: t.pop(QUERY), f"has {QUERY}_scale without {QUERY}"),
        (lambda t: t.update({f"{QUERY}_scale": torch.ones(1)}), rf"{QUERY}_scale has shape \[1\]: .* asks for \[64\]"),
        (lambda t: t.update({f"{QUERY}_scale": torch.ones(64, 2)}), r"has shape \[64, 2\]: .* asks for \[64, 1\]"),
    ],
)
def test_int8_weights_and_scales_that_do_not_go_together_are_named(
    tmp_path: Path, change: Callable[[Tensors], Any], message: str
) -> None:
    def broken(tensors: Tensors) -> Tensors:
        found = int8_tensors(tensors)
        change(found)
        return found

    folder = write_tiny_checkpoint(tmp_path)
    rewrite(folder, broken, INT8)
    with pytest.raises(ModelLoadError, match=message):
        load_transformer(folder)


def compressed(path: str, value: Any) -> dict[str, Any]:
    """INT8's config with one field changed; `path` is dotted, and begins in the first group after a slash."""
    config: Any = copy.deepcopy(INT8)
    table = config["config_groups"]["group_0"] if path.startswith("/") else config
    *outer, name = path.strip("/").split(".")
    for part in outer:
        table = table[part]
    table[name] = value
    return config


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "awq", "bits": 4}, "quant_method='awq' is not supported: supported are quant_method 'fp8'"),
        ({"quant_method": "gptq", "bits": 4}, "quant_method='gptq'"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quant_method='bitsandbytes'"),
        ({"quant_method": "mxfp4"}, "quant_method='mxfp4'"),
        ({"bits": 8}, r"quant_method='\(none\)'"),
        ({**FP8, "activation_scheme": "static", "weight_block_size": [128, 128]}, "activation_scheme='static'"),
        ({**FP8, "fmt": "e5m2", "weight_block_size": [128, 128]}, "fmt='e5m2'"),
        ({**FP8, "weight_block_size": [128]}, r"weight_block_size=\[128.0\] is not two whole numbers"),
        ({**FP8, "weight_block_size": [0, 128]}, "weight_block_size"),
        (FP8, "without weight_block_size"),
        (compressed("format", "pack-quantized"), "format='pack-quantized' is not supported"),
        (compressed("/format", "pack-quantized"), "group_0: format='pack-quantized' is not supported"),
        (compressed("/weights.num_bits", 4), "weights: num_bits=4 is not supported"),
        (compressed("/weights.type", "float"), "weights: type='float' is not supported"),
        (compressed("/weights.strategy", "group"), "weights: strategy='group' is not supported"),
        (compressed("/weights.symmetric", False), "weights: symmetric=False is not supported"),
        (compressed("/input_activations.dynamic", False), "input_activations: static activations are not supported"),
        (compressed("/input_activations.strategy", "tensor"), "input_activations: strategy='tensor'"),
        (compressed("kv_cache_scheme", {"num_bits": 8}), "kv_cache_scheme is not supported"),
        (compressed("sparsity_config", {"format": "sparse-24-bitmask"}), "sparsity_config is not supported"),
        (compressed("config_groups", {}), "has no config_groups"),
    ],
)
def test_other_quantizations_are_refused_by_what_they_ask_for(
    tmp_path: Path, quantization: dict[str, Any], message: str
) -> None:
    folder = write_tiny_checkpoint(tmp_path)
    rewrite(folder, lambda tensors: tensors, quantization)
    with pytest.raises(ModelLoadError, match=message):
        read_model_config(folder)
