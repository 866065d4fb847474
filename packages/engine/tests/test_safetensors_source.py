"""Folders of safetensors: shards and their index, and everything that can be wrong with them."""

import json
import random
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import ModelLoadError
from deepseek_engine.model_runner import build_runner
from deepseek_engine.step_model import TorchModel
from deepseek_engine.testing.checkpoints import TINY_MOE, TinyModel, write_tiny_checkpoint
from deepseek_engine.tokenizer import load_tokenizer

INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"


def build(folder: Path) -> Any:
    return build_runner(EngineConfig(model=str(folder), dtype="float32", num_kv_blocks=8, max_model_len=64))


def shard(folder: Path) -> Path:
    """Split the folder's weights over a.safetensors and b.safetensors, with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in files.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return folder


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return shard(write_tiny_checkpoint(tmp_path / "model"))


def change_map(folder: Path, **files: Any) -> None:
    path = folder / INDEX
    index = json.loads(path.read_text())
    index["weight_map"] |= files
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("has_index", [True, False])
def test_sharded_checkpoints_load_like_whole_ones(tmp_path: Path, has_index: bool) -> None:
    whole = write_tiny_checkpoint(tmp_path / "whole", TINY_MOE)
    sharded = shard(write_tiny_checkpoint(tmp_path / "sharded", TINY_MOE))
    if not has_index:
        (sharded / INDEX).unlink()
    models = [build(folder).model for folder in (whole, sharded)]
    expected, actual = (model.transformer.state_dict() for model in models if isinstance(model, TorchModel))
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_files_that_the_index_does_not_name_are_not_read(sharded: Path) -> None:
    (sharded / "consolidated.safetensors").write_bytes(b"another form of the same model")
    build(sharded)


def test_a_shard_that_is_missing_is_named(sharded: Path) -> None:
    (sharded / "b.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"b\.safetensors is missing, which .*index\.json names: .*get the folder"):
        build(sharded)


def test_a_tensor_that_its_shard_lacks_is_named_with_the_shard(sharded: Path) -> None:
    change_map(sharded, **{"model.layers.7.x": "a.safetensors"})
    with pytest.raises(ModelLoadError, match=r"a\.safetensors lacks model\.layers\.7\.x, which .*index\.json says"):
        build(sharded)


def test_a_tensor_in_two_shards_is_named_with_both(sharded: Path) -> None:
    tensors = {file: load_file(sharded / file) for file in ("a.safetensors", "b.safetensors")}
    name = sorted(tensors["b.safetensors"])[0]
    save_file(tensors["a.safetensors"] | {name: torch.zeros(64)}, sharded / "a.safetensors")
    message = rf"has {re.escape(name)} more than once, in a\.safetensors, b\.safetensors: remove"
    with pytest.raises(ModelLoadError, match=message):
        build(sharded)


@pytest.mark.parametrize("file", ["../a.safetensors", "/etc/a.safetensors", "x/a.safetensors", "a.bin", 7, None])
def test_an_index_names_safetensors_of_its_own_folder_only(sharded: Path, file: Any) -> None:
    change_map(sharded, **{NORM: file})
    with pytest.raises(ModelLoadError, match=r"index\.json: model\.norm\.weight is said to be in .*no \.safetensors"):
        build(sharded)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 10**5, "\xff"])
def test_an_index_that_is_none_is_named(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text, encoding="latin-1")
    with pytest.raises(ModelLoadError, match=r"index\.json (cannot be read as JSON|has no weight_map)"):
        build(sharded)


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    path = sharded / "b.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelLoadError, match=r"b\.safetensors cannot be read as safetensors: .*get the folder again"):
        build(sharded)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shape", [2**40, 2**40]),
        ("shape", [65]),
        ("shape", [-1]),
        ("data_offsets", [0, 2**62]),
        ("data_offsets", [8, 4]),
        ("dtype", "F64"),
        ("dtype", "F4"),
        ("dtype", "Q4_0"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    path = write_tiny_checkpoint(tmp_path) / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header[NORM][field] = value
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    with pytest.raises(ModelLoadError, match=r"model\.safetensors cannot be read as safetensors"):
        build(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_pickles_are_refused_with_the_reason_and_the_way_out(tmp_path: Path, name: str) -> None:
    folder = write_tiny_checkpoint(tmp_path)
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ModelLoadError, match=rf"only {name}: .*can run code.*from_pretrained\(.*\)\.save_pretrained"):
        build(folder)


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model")
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    for name in ("modeling_x.py", "configuration_x.py", "tokenization_x.py", "__init__.py", "sitecustomize.py"):
        (folder / name).write_text(trap)
    auto_map = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}
    for name in ("config.json", "tokenizer_config.json"):
        fields = json.loads((folder / name).read_text())
        tokenizer = {"AutoTokenizer": ["tokenization_x.X", None]}
        (folder / name).write_text(json.dumps(fields | {"auto_map": auto_map | tokenizer, "trust_remote_code": True}))
    build(folder)
    load_tokenizer(str(folder))
    assert not (tmp_path / "ran").exists()


def test_damaged_files_are_a_load_error_or_a_model_and_nothing_else(tmp_path: Path) -> None:
    size = TinyModel(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                     num_key_value_heads=1, head_dim=8)  # fmt: skip
    pristine = shard(write_tiny_checkpoint(tmp_path / "pristine", size))
    kept = {name: (pristine / name).read_bytes() for name in ("a.safetensors", INDEX, "config.json")}
    folder = tmp_path / "damaged"
    shutil.copytree(pristine, folder)
    rng, num_refused = random.Random(0), 0
    for _ in range(400):
        name = rng.choice(sorted(kept))
        (folder / name).write_bytes(damage(kept[name], rng))
        try:
            build(folder)
        except ModelLoadError:
            num_refused += 1
        (folder / name).write_bytes(kept[name])
    assert 100 < num_refused < 400
    build(folder)


def damage(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, lost, doubled or put in, mostly at the beginning, where headers are."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not changed:
            break
        place = rng.randrange(min(len(changed), rng.choice((16, 1000, len(changed)))))
        match rng.randrange(6):
            case 0:
                changed[place] ^= 1 << rng.randrange(8)
            case 1:
                changed[place] = rng.randrange(256)
            case 2:
                del changed[place : place + rng.choice((1, 8, 100))]
            case 3:
                changed[place:place] = changed[place : place + rng.choice((1, 8, 100))]
            case 4:
                changed[place:place] = rng.choice((b"\xff", b"null", b"-1", b"[]", b'"', b"1e99", b"true"))
            case _:
                del changed[max(place, 1) :]
    return bytes(changed)
