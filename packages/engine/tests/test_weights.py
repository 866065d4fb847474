"""Broken and unsupported checkpoints fail at load, by the name of what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import InvalidRequestError, ModelLoadError
from deepseek_engine.model_runner import build_runner
from deepseek_engine.step_model import TorchModel
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


def test_a_corrupt_file_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelLoadError, match=r"model\.safetensors cannot be read as safetensors"):
        build(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="pickled checkpoints"):
        build(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"sliding_window": 128}, "sliding_window=128"),
        ({"rope_scaling": {"rope_type": "ntk"}}, "rope_type='ntk'"),
        ({"num_key_value_heads": 3}, "num_attention_heads=4 is not a multiple of num_key_value_heads=3"),
    ],
)
def test_an_unsupported_config_is_refused_by_its_field(folder: Path, fields: dict[str, Any], message: str) -> None:
    change_config(folder, **fields)
    with pytest.raises(ModelLoadError, match=message):
        build(folder)


def test_a_folder_without_config_says_what_a_checkpoint_has(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        build(tmp_path)


def test_sharded_checkpoints_load_like_whole_ones(tmp_path: Path) -> None:
    whole = write_tiny_checkpoint(tmp_path / "whole", TINY_MOE)
    sharded = write_tiny_checkpoint(tmp_path / "sharded", TINY_MOE)
    tensors = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, sharded / file)
    weight_map = {name: file for file, part in files.items() for name in part}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    models = [build(folder).model for folder in (whole, sharded)]
    expected, actual = (model.transformer.state_dict() for model in models if isinstance(model, TorchModel))
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


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
