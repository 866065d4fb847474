"""Which numbers of ranks a model can be cut for, and what is said of the others."""

from pathlib import Path

import pytest

from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import InvalidRequestError, ModelLoadError
from deepseek_engine.model_config import parse_model_config
from deepseek_engine.model_runner import build_runner
from deepseek_engine.parallel.partition import part_of_rank, threads_of_rank
from deepseek_engine.testing.checkpoints import TINY_MOE, TinyModel, write_tiny_checkpoint

V2_LITE = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "vocab_size": 102400,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 4096,
}


def settings(size: int, **others: object) -> EngineConfig:
    return EngineConfig(model="x", tensor_parallel_size=size, **others)  # pyright: ignore[reportArgumentType]


def test_every_rank_of_v2_lite_holds_heads_slices_of_all_experts_and_the_whole_latent() -> None:
    part = part_of_rank(parse_model_config(V2_LITE, "config.json"), settings(8))
    attention, dense, moe = part.layers[1].attention, part.layers[0].feed_forward, part.layers[1].feed_forward
    assert attention.num_attention_heads == 2
    assert attention.cache_spec.entries == ((512 + 64,),)
    assert dense.intermediate_size == 10944 // 8
    assert (moe.router.num_experts, moe.intermediate_size, moe.shared_intermediate_size) == (64, 1408 // 8, 2816 // 8)


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (TinyModel(), 3, "num_attention_heads=4 is not a multiple of it; sizes that fit are 1, 2, 4"),
        (
            TinyModel(num_attention_heads=12, num_key_value_heads=6),
            4,
            "num_key_value_heads=6 is neither a",
        ),
        (TinyModel(num_local_experts=4, intermediate_size=98), 4, "intermediate_size=98 .* sizes that fit are 1, 2"),
        (TINY_MOE, 1000, "tensor_parallel_size=1000 does not fit the model: num_attention_heads=4"),
    ],
    ids=str,
)
def test_a_size_that_does_not_divide_the_model_is_refused_with_those_that_do(
    tmp_path: Path, model: TinyModel, size: int, message: str
) -> None:
    folder = write_tiny_checkpoint(tmp_path, model)
    with pytest.raises(ModelLoadError, match=message):
        build_runner(EngineConfig(model=str(folder), tensor_parallel_size=size))


def test_experts_are_cut_by_their_own_width() -> None:
    odd = parse_model_config(V2_LITE | {"moe_intermediate_size": 11, "n_shared_experts": 3}, "x")
    with pytest.raises(ModelLoadError, match=r"intermediate_size=11 is not a multiple of it; sizes that fit are 1$"):
        part_of_rank(odd, settings(2))


def test_adapters_do_not_go_with_ranks(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path)
    with pytest.raises(ModelLoadError, match="enable_lora is not supported with tensor_parallel_size=2"):
        build_runner(EngineConfig(model=str(folder), tensor_parallel_size=2, enable_lora=True))


def test_no_ranks_are_none() -> None:
    with pytest.raises(InvalidRequestError, match="tensor_parallel_size=0: it must be at least 1"):
        settings(0)


def test_ranks_share_the_threads_that_they_are_given() -> None:
    assert threads_of_rank(settings(4, num_threads=16)) == 4
    assert threads_of_rank(settings(4, num_threads=2)) == 1
    assert threads_of_rank(settings(1, num_threads=3)) == 3
    assert threads_of_rank(settings(1)) is None
