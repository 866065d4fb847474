"""Broken and unsupported checkpoints fail at load, by the name of what is wrong."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepseek_engine import model_runner
from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import InvalidRequestError, ModelLoadError
from deepseek_engine.llm import LLM
from deepseek_engine.model_runner import build_runner
from deepseek_engine.testing.checkpoints import TINY_MOE, TinyModel, write_tiny_checkpoint


def build(folder: Path) -> Any:
    return build_runner(EngineConfig(model=str(folder), dtype="float32", num_kv_blocks=8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "model")


def change_tensors(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_missing_tensor_is_named(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelLoadError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        build(folder)


def test_an_extra_tensor_is_named(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update({"model.layers.0.surprise": torch.zeros(1)}))
    with pytest.raises(ModelLoadError, match=r"does not use: model\.layers\.0\.surprise"):
        build(folder)


def test_a_misshapen_tensor_is_named_with_both_shapes(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(65)}))
    with pytest.raises(ModelLoadError, match=r"model\.norm\.weight has shape \[65\]: config\.json asks for \[64\]"):
        build(folder)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.int64, torch.bool])
def test_a_type_whose_values_stand_for_something_else_is_refused(folder: Path, dtype: torch.dtype) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(ModelLoadError, match=rf"up_proj\.weight is of type {str(dtype).removeprefix('torch.')}"):
        build(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"sliding_window": 128}, "sliding_window=128"),
        ({"rope_scaling": {"rope_type": "ntk"}}, "rope_type='ntk'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 is beyond 4096"),
        ({"vocab_size": 2**30, "hidden_size": 2**30}, "no room for a model of the sizes in"),
        ({"intermediate_size": 10**22}, "intermediate_size=10000000000000000000000 is beyond 1073741824"),
        ({"hidden_size": 32}, r"has shape .*: config\.json asks for"),
        ({"num_key_value_heads": 3}, "num_attention_heads=4 is not a multiple of num_key_value_heads=3"),
    ],
)
def test_an_unsupported_config_is_refused_by_its_field(folder: Path, fields: dict[str, Any], message: str) -> None:
    change_config(folder, **fields)
    with pytest.raises(ModelLoadError, match=message):
        build(folder)


def test_a_model_larger_than_free_memory_is_refused_before_it_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_runner, "available_memory_bytes", lambda: 10**5)
    with pytest.raises(ModelLoadError, match=r"take 0\.00038 GB and 0\.0001 GB of memory are free: .*int8"):
        build(folder)


@pytest.mark.parametrize("settings", [{"num_kv_blocks": 10**17}, {"kv_cache_memory_bytes": 10**15}])
def test_a_cache_larger_than_free_memory_is_refused(folder: Path, settings: dict[str, int]) -> None:
    with pytest.raises(
        ModelLoadError, match=r"a KV cache of \d+ blocks takes .* GB of memory are free: .*num_kv_blocks"
    ):
        build_runner(EngineConfig(model=str(folder), **settings))


def test_a_folder_without_config_says_what_a_checkpoint_has(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        build(tmp_path)


def test_a_context_beyond_the_trained_one_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, TinyModel(max_position_embeddings=256))
    with pytest.raises(ModelLoadError, match="max_model_len=512 is beyond the 256 positions"):
        build_runner(EngineConfig(model=str(folder), max_model_len=512))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"dtype": "int3"}, "dtype"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"max_num_seqs": 64, "max_num_batched_tokens": 32}, "max_num_batched_tokens"),
    ],
)
def test_a_setting_out_of_range_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        EngineConfig(model="smollm2", **fields)
    assert caught.value.param == param


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_the_report_says_how_many_bytes_have_which_type_and_are_for_what(
    tmp_path: Path, quantization: str | None
) -> None:
    folder = write_tiny_checkpoint(tmp_path, TINY_MOE)
    with LLM(str(folder), dtype="bfloat16", quantization=quantization, num_kv_blocks=8) as llm:
        report = llm.load_report
        assert llm.engine.info.weight_bytes_by_dtype == report.bytes_by_dtype
    experts, attention = 2 * 16 * 3 * 96 * 64, 2 * (64 + 32 + 32 + 64) * 64
    head, others = 259 * 64, 259 * 64 + 5 * 64 + 2 * 16 * 64  # others: embedding, norms, routers
    expert_rows, attention_rows = 2 * 16 * (2 * 96 + 64), 2 * (64 + 32 + 32 + 64)
    if quantization == "int8":
        scales = 4 * (expert_rows + attention_rows + 259)
        int8 = experts + attention + head
        assert report.bytes_by_dtype == {"int8": int8, "bfloat16": 2 * others, "float32": scales}
        assert report.bytes_by_kind["head"] == head + 4 * 259
        assert report.bytes_by_kind["experts"] == experts + 4 * expert_rows
    else:
        assert report.bytes_by_dtype == {"bfloat16": 2 * (experts + attention + head + others)}
        assert report.bytes_by_kind["head"] == 2 * head
        assert report.bytes_by_kind["experts"] == 2 * experts
    assert report.bytes_by_kind["norms"] == 2 * 5 * 64
    assert report.bytes_by_kind["routers"] == 2 * 2 * 16 * 64
    assert report.bytes_by_kind["embeddings"] == 2 * 259 * 64
    assert sum(report.bytes_by_kind.values()) == report.num_bytes


@pytest.mark.parametrize("is_terminal", [True, False])
def test_loading_shows_its_bytes_on_terminals_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", stderr)
    build(folder)
    assert ("loading:" in stderr.getvalue()) == is_terminal


def test_the_threads_of_torch_are_as_before(folder: Path) -> None:
    before = torch.get_num_threads()
    build(folder)
    change_tensors(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(65)}))
    with pytest.raises(ModelLoadError):
        build(folder)
    assert torch.get_num_threads() == before
