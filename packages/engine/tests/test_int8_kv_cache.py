"""The INT8 KV cache: what it holds and weighs, and where it is refused."""

from pathlib import Path

import pytest
import torch
from transformers import DeepseekV2Config

from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import ModelLoadError
from deepseek_engine.kernels.paged_kv import PagedKV
from deepseek_engine.kv_cache.pool import KVCache
from deepseek_engine.kv_cache.specs import CacheSpec
from deepseek_engine.model_runner import build_runner
from deepseek_engine.testing.checkpoints import write_tiny_checkpoint
from deepseek_engine.testing.families import TINY_LATENT, build_oracle, write_family_checkpoint


def test_a_scale_lies_beside_each_head_of_each_token() -> None:
    spec = CacheSpec(((8, 128), (8, 128)))
    cache = KVCache([spec] * 2, 3, 16, torch.bfloat16, torch.device("cpu"), is_int8=True)
    kv = PagedKV.of(cache.layer(1), cache.block_size)
    assert kv.keys.dtype == kv.values.dtype == torch.int8
    assert kv.keys.shape == (48, 8, 128)
    assert kv.key_scales is not None
    assert kv.key_scales.shape == (48, 8)
    assert cache.num_bytes == 2 * 48 * spec.num_bytes(2, is_int8=True) == 2 * 48 * 2 * 8 * (128 + 4)
    assert spec.num_bytes(2, is_int8=False) == 2 * 8 * 128 * 2


def test_a_cpu_refuses_it(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path)
    with pytest.raises(ModelLoadError, match=r"kv_cache_dtype='int8' needs a GPU, and the device is 'cpu'"):
        build_runner(EngineConfig(model=str(folder), kv_cache_dtype="int8", num_kv_blocks=8))


def test_latent_attention_refuses_it(tmp_path: Path) -> None:
    oracle = build_oracle(DeepseekV2Config(**TINY_LATENT))
    folder = write_family_checkpoint(tmp_path, oracle)
    with pytest.raises(ModelLoadError, match="is for grouped-query attention, and DeepseekV2ForCausalLM has another"):
        build_runner(EngineConfig(model=str(folder), kv_cache_dtype="int8", num_kv_blocks=8))
