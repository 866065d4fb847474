"""GGUF files that are split, of every type, unsupported, or broken in every way: a model, or an error that names it."""

import json
import math
import random
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import DeepseekV3Config

from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import ModelLoadError
from deepseek_engine.gguf.checkpoint import GGUFCheckpoint
from deepseek_engine.gguf.files import read_gguf_files
from deepseek_engine.gguf.stored import open_tensors
from deepseek_engine.gguf.tokenizer import build_gguf_tokenizer
from deepseek_engine.llm import LLM
from deepseek_engine.model_config import LinearScaling, RopeConfig, YarnScaling
from deepseek_engine.model_runner import build_runner
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.testing.checkpoints import TinyModel, write_tiny_checkpoint
from deepseek_engine.testing.families import TINY, build_oracle, write_family_checkpoint
from deepseek_engine.testing.gguf_export import GGUFExport

SMALL: Final = TinyModel(hidden_size=32, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1)
YARN: Final[dict[str, Any]] = {
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 8.0,
    "llama.rope.scaling.original_context_length": 64,
}
SUPPORTED: Final = [
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS",
    "TQ1_0", "TQ2_0", "MXFP4", "NVFP4",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("llama"), SMALL)


@pytest.fixture(scope="module")
def latent_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = TINY | {"hidden_size": 32, "num_key_value_heads": 4, "num_hidden_layers": 3}
    config = DeepseekV3Config(
        **sizes, kv_lora_rank=16, q_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
        moe_intermediate_size=16, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2,
        first_k_dense_replace=1, n_group=2, topk_group=1,
    )  # fmt: skip
    return write_family_checkpoint(tmp_path_factory.mktemp("deepseek"), build_oracle(config))


def with_a_merge(folder: Path) -> dict[str, Any]:
    """Keys of a usable tokenizer: the tiny one has no merges, and a GGUF file without them is refused."""
    vocabulary: dict[str, int] = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = [*sorted(vocabulary, key=lambda token: vocabulary[token]), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens[vocabulary["~"]] = "ab"
    return {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": ["a b"]}


def read_all(path: Path) -> dict[str, torch.Tensor]:
    return dict(GGUFCheckpoint(path).tensors())


def test_a_gguf_file_alone_is_all_that_a_model_needs(latent_folder: Path, tmp_path: Path) -> None:
    exported = GGUFExport(latent_folder, lambda _: Kind.Q8_0, changes=with_a_merge(latent_folder))
    llm = LLM(str(exported.write(tmp_path / "model.gguf")), dtype="float32", num_kv_blocks=16)
    (output,) = llm.generate(["ab ba"], SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True))
    assert len(output.prompt_token_ids) == 4
    assert len(output.outputs[0].token_ids) == 4


@pytest.mark.parametrize("name", SUPPORTED)
def test_values_are_those_of_the_gguf_package_bit_by_bit(name: str, tmp_path: Path) -> None:
    kind, path = Kind[name], tmp_path / "one.gguf"
    random_bytes = np.random.default_rng(1).integers(
        0, 256, gguf.quant_shape_to_byte_shape((3, 100, 512), kind), dtype=np.uint8
    )
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("t", random_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ((_, header),) = read_gguf_files(path).parts
    stored = open_tensors(path, header.tensors)["t"]
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(random_bytes, kind)
    with ThreadPoolExecutor(2) as pool:
        whole, second = stored.values(pool), stored[1].values(pool)
    assert np.array_equal(whole.numpy().view(np.uint32), expected.view(np.uint32))
    assert np.array_equal(second.numpy().view(np.uint32), expected[1].view(np.uint32))


def test_a_model_is_dequantised_on_all_threads(
    latent_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def make_pool(num_threads: int, prefix: str = "") -> ThreadPoolExecutor:
        counts.append(num_threads)
        return ThreadPoolExecutor(num_threads, prefix)

    path = GGUFExport(latent_folder, lambda _: Kind.Q8_0, changes=with_a_merge(latent_folder)).write(
        tmp_path / "m.gguf"
    )
    monkeypatch.setattr("deepseek_engine.gguf.checkpoint.ThreadPoolExecutor", make_pool)
    before = torch.get_num_threads()
    try:
        build_runner(EngineConfig(model=str(path), dtype="float32", num_threads=3, num_kv_blocks=8))
    finally:
        torch.set_num_threads(before)
    assert max(counts) == 3, "torch has one thread while weights are loaded, and dequantising is not torch's"


def test_a_split_file_is_read_from_its_first_part(folder: Path, tmp_path: Path) -> None:
    whole = read_all(GGUFExport(folder).write(tmp_path / "whole.gguf"))
    first = GGUFExport(folder).write(tmp_path / "model.gguf", split_max_tensors=7)
    parts = sorted(tmp_path.glob("model-*.gguf"))
    assert len(parts) > 2
    joined = read_all(first)
    assert joined.keys() == whole.keys()
    assert all(torch.equal(joined[name], whole[name]) for name in whole)
    with pytest.raises(ModelLoadError, match=f"give the first one, {parts[0].name}"):
        GGUFCheckpoint(parts[1])
    parts[1].rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(ModelLoadError, match=f"{parts[1].name} is missing beside it"):
        GGUFCheckpoint(first)
    parts[2].rename(parts[1])
    with pytest.raises(ModelLoadError, match="is not file 2 of the"):
        GGUFCheckpoint(first)
    first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelLoadError, match=r"one of \d files \(split.count\)"):
        GGUFCheckpoint(tmp_path / "renamed.gguf")


@pytest.mark.parametrize(
    ("changes", "scaling"),
    [
        ({}, None),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, None),
        ({"llama.rope.scale_linear": 4.0}, LinearScaling(4.0)),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.0}, None),
        (
            YARN | {"llama.rope.scaling.yarn_beta_fast": 16.0},
            YarnScaling(8.0, 64, attention_factor=0.1 * math.log(8) + 1, beta_fast=16.0),
        ),
        (YARN | {"llama.rope.scaling.yarn_log_multiplier": 1.0}, YarnScaling(8.0, 64, attention_factor=1.0)),
        (YARN | {"llama.rope.scaling.yarn_attn_factor": 1.25}, YarnScaling(8.0, 64, attention_factor=1.25)),
    ],
)
def test_rotary_scaling_is_read_from_its_keys(
    folder: Path, tmp_path: Path, changes: dict[str, Any], scaling: LinearScaling | YarnScaling | None
) -> None:
    config = GGUFCheckpoint(GGUFExport(folder, changes=changes).write(tmp_path / "model.gguf")).config
    assert config.rope == RopeConfig(16, 10000.0, scaling)
    assert config.norm_eps == 1e-5, "what the folder's config.json says, not the float32 nearest to it"


LLAMA_LIES: Final[list[tuple[dict[str, Any], str]]] = [
    ({"general.architecture": "mamba"}, "general.architecture='mamba' is not supported.*llama, qwen2"),
    ({"general.architecture": None}, "general.architecture=None"),
    ({"llama.block_count": None}, "lacks the field 'llama.block_count'"),
    ({"llama.block_count": 3}, "llama.block_count=3: the file lacks blk.2.attn_norm"),
    ({"llama.block_count": 2**31 - 1}, "llama.block_count=2147483647"),
    ({"llama.block_count": 0}, "llama.block_count=0: it is to be at least 1"),
    ({"llama.block_count": "two"}, "llama.block_count='two' is not of type int"),
    ({"llama.embedding_length": 64}, r"norm.weight has shape \[32\]: the metadata ask for \[64\]"),
    ({"llama.embedding_length": 2**30}, "has shape"),
    ({"llama.attention.head_count": 2**30}, "q_proj.weight has shape|cannot be"),
    ({"llama.embedding_length": 2**31 - 1}, "llama.embedding_length=2147483647 is beyond 1073741824"),
    ({"llama.attention.head_count": 0}, "head_count=0"),
    ({"llama.attention.head_count_kv": 7}, "num_attention_heads=2 is not a multiple of num_key_value_heads=7"),
    ({"llama.attention.head_count": [1, 2]}, r"head_count='\(a list of 2 values\)' is not of type int"),
    ({"llama.feed_forward_length": 2**30}, "gate_proj.weight has shape"),
    ({"llama.context_length": None}, "lacks the field 'llama.context_length'"),
    ({"llama.attention.layer_norm_rms_epsilon": None}, "lacks the field 'llama.attention.layer_norm_rms_epsilon'"),
    ({"llama.attention.layer_norm_rms_epsilon": -1.0}, "it is to be a positive number"),
    ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "it is to be a positive number"),
    ({"llama.rope.freq_base": 0.5}, "llama.rope.freq_base=0.5: it is to be above 1"),
    ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count=8: not supported"),
    ({"llama.rope.scaling.type": "longrope"}, "llama.rope.scaling.type='longrope'"),
    ({"llama.rope.scaling.type": "yarn"}, "lacks the field 'llama.rope.scaling.factor'"),
    ({"llama.logit_scale": 8.0}, "llama.logit_scale=8.0: not supported"),
    ({"llama.expert_count": 4}, "llama.expert_count=4: the file lacks blk.1.ffn_gate_inp.weight"),
    ({"tokenizer.ggml.tokens": ["a"] * 300}, "tokenizer.ggml.tokens has 300 words, and token_embd.weight 259 rows"),
    ({"general.alignment": "x"}, "general.alignment is not a whole number"),
    ({"split.count": 3}, "one of 3 files"),
]


@pytest.mark.parametrize(("changes", "message"), LLAMA_LIES)
def test_metadata_that_lie_are_refused_by_name(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = GGUFExport(folder, changes=changes).write(tmp_path / "model.gguf")
    with pytest.raises(ModelLoadError, match=message):
        GGUFCheckpoint(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deepseek2.expert_gating_func": 7}, "expert_gating_func=7"),
        (
            {"deepseek2.expert_count": 2**30},
            r"expert_count=1073741824: blk.2.ffn_gate_inp.weight has shape \[4, 32\]",
        ),
        ({"deepseek2.expert_used_count": 9}, "num_experts_per_tok=9 is outside 1..4"),
        ({"deepseek2.expert_group_count": 3}, "do not split into n_group=3"),
        ({"deepseek2.attention.kv_lora_rank": 2**30}, "has shape|cannot be"),
        ({"deepseek2.attention.key_length_mla": 8}, "rope.dimension_count=8: it is to be below a key's length, 8"),
        ({"deepseek2.expert_feed_forward_length": None}, "lacks the field 'deepseek2.expert_feed_forward_length'"),
        ({"deepseek2.leading_dense_block_count": 2**30}, "lacks|not use"),
        ({"deepseek2.nextn_predict_layers": 3}, "block_count=3: the file lacks"),
    ],
)
def test_metadata_of_deepseek_that_lie_are_refused_by_name(
    latent_folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = GGUFExport(latent_folder, changes=changes).write(tmp_path / "model.gguf")
    with pytest.raises(ModelLoadError, match=message):
        build_runner(EngineConfig(model=str(path), dtype="float32", num_kv_blocks=8))


def test_a_layer_for_multi_token_prediction_is_left_unread(latent_folder: Path, tmp_path: Path) -> None:
    path = GGUFExport(latent_folder, changes={"deepseek2.nextn_predict_layers": 1}).write(tmp_path / "model.gguf")
    checkpoint = GGUFCheckpoint(path)
    assert len(checkpoint.config.layers) == 2
    assert not any(name.startswith("model.layers.2.") for name in checkpoint.names())


class Table:
    """A file whose tensor table is written by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, tensors: list[tuple[str, list[int], int, int]], num_data_bytes: int) -> Path:
        def text(value: str) -> bytes:
            return struct.pack("<Q", len(value)) + value.encode()

        head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1)
        head += text("general.architecture") + struct.pack("<I", 8) + text("llama")
        for name, shape, kind, offset in tensors:
            head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        padding = bytes(-len(head) % 32)
        self.path.write_bytes(head + padding + bytes(num_data_bytes))
        return self.path


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("a", [8], 0, 0), ("b", [8], 0, 16)], "tensors a and b overlap"),
        ([("a", [8], 0, 128)], "tensor a would lie at bytes .* it is cut off or broken"),
        ([("a", [8], 0, 2**63)], "tensor a would lie at bytes"),
        ([("a", [2**40, 2**40], 0, 0)], "tensor a would lie at bytes"),
        ([("a", [0, 8], 0, 0)], r"tensor a is empty: its shape is \[8, 0\]"),
        ([("a", [], 0, 0)], r"tensor a is empty: its shape is \[\]"),
        ([("a", [33], 8, 0)], r"tensor a of shape \[33\]: .*not a multiple of Q8_0"),
        ([("a", [8], 24, 0)], "tensor a is of type I8, which is not supported: F32, F16"),
        ([("a", [8], 999, 0)], "tensor a is of type 999, which is not supported"),
        ([("a", [1] * 9, 0, 0)], "tensor 'a' claims 9 dimensions"),
        ([("a", [8], 0, 0), ("a", [8], 0, 32)], "it has the tensor 'a' twice"),
        ([("a", [8], 0, 0)], "lacks the tensor token_embd.weight"),
    ],
)
def test_a_tensor_table_that_lies_is_refused_by_the_tensors_name(
    tmp_path: Path, tensors: list[tuple[str, list[int], int, int]], message: str
) -> None:
    path = Table(tmp_path / "table.gguf").write(tensors, 64)
    with pytest.raises(ModelLoadError, match=message):
        GGUFCheckpoint(path)


def test_tensors_of_another_architecture_are_refused_by_name(folder: Path, latent_folder: Path, tmp_path: Path) -> None:
    path = GGUFExport(folder).write(tmp_path / "model.gguf")
    data = path.read_bytes()
    for name in ("blk.1.surprise", "elsewhere_gate"):
        path.write_bytes(data.replace(b"blk.1.ffn_gate.", f"{name}.".encode(), 1))
        with pytest.raises(ModelLoadError, match=f"does not use: {name}.weight"):
            GGUFCheckpoint(path)
    split = GGUFExport(latent_folder).write(tmp_path / "split.gguf")
    split.write_bytes(split.read_bytes().replace(b"blk.0.attn_v_b", b"blk.0.attn_q_x", 1))
    with pytest.raises(ModelLoadError, match=r"attn_k_b.weight has no attn_v_b beside it|attn_q_x"):
        GGUFCheckpoint(split)


def test_a_file_cut_anywhere_or_with_any_bytes_changed_is_a_model_or_a_load_error(
    folder: Path, latent_folder: Path, tmp_path: Path
) -> None:
    rng = random.Random(0)
    outcomes = {"model": 0, "error": 0}
    path = tmp_path / "broken.gguf"
    for source in (folder, latent_folder):
        whole_path = GGUFExport(source, changes=with_a_merge(source)).write(tmp_path / "whole.gguf")
        whole = whole_path.read_bytes()
        ((_, header),) = read_gguf_files(whole_path).parts
        header_bytes = min(tensor.offset for tensor in header.tensors)
        for _ in range(150):
            broken = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.2 else whole)
            for _ in range(rng.choice((1, 1, 2, 8)) if broken else 0):
                broken[rng.randrange(min(len(broken), header_bytes + 1000))] = rng.randrange(256)
            path.write_bytes(broken)
            try:
                build_gguf_tokenizer(read_gguf_files(path).metadata)
                build_runner(EngineConfig(model=str(path), dtype="float32", num_kv_blocks=8, max_model_len=16))
                outcomes["model"] += 1
            except ModelLoadError:
                outcomes["error"] += 1
    assert min(outcomes.values()) > 0, outcomes
