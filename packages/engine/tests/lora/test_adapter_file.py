"""What an adapter's folder may hold, and how each fault is named."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepseek_engine import LLM, LoRARequest
from deepseek_engine.errors import AdapterError, InvalidRequestError
from deepseek_engine.lora.name_patterns import NamePattern
from deepseek_engine.testing.adapters import write_tiny_adapter
from deepseek_engine.testing.checkpoints import TINY_MOE, TinyModel, write_tiny_checkpoint

Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
Q_B = Q_A.replace("lora_A", "lora_B")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    path = write_tiny_checkpoint(tmp_path_factory.mktemp("file") / "tiny", TinyModel(num_hidden_layers=1))
    return LLM(str(path), dtype="float32", enable_lora=True, max_lora_rank=8, num_kv_blocks=16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_adapter(tmp_path / "adapter", TinyModel(num_hidden_layers=1), targets=["q_proj"])


def refusal(llm: LLM, folder: Path) -> str:
    with pytest.raises(AdapterError) as refused:
        llm.generate({"prompt_token_ids": [1]}, lora_request=LoRARequest("refused", str(folder)))
    return str(refused.value)


def configure(folder: Path, **fields: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def change(folder: Path, **tensors: torch.Tensor | None) -> Path:
    path = folder / "adapter_model.safetensors"
    kept = {name: tensor for name, tensor in {**load_file(path), **tensors}.items() if tensor is not None}
    save_file(kept, path)
    return folder


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"peft_type": "LOHA"}, "peft_type='LOHA'"),
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head']"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"r": 0}, "r=0"),
        ({"r": "four"}, "`$.r`"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern['q_proj']=-1"),
        ({"lora_alpha": None}, "`$.lora_alpha`"),
        ({"target_modules": None}, "target_modules is missing"),
        ({"target_modules": ["q_proj", 3]}, "`$.target_modules[1]`"),
        ({"target_modules": ["no_such"]}, "does not target"),
        ({"target_modules": "(q_proj"}, "is not a regular expression"),
        ({"target_modules": "(.*)*x"}, "repeats a group"),
        ({"alpha_pattern": {r"(a)\1": 3}}, "looks around"),
        ({"r": 16, "lora_alpha": 16}, "max_lora_rank"),
        ({"rank_pattern": {str(i): 4 for i in range(5000)}}, "rank_pattern has 5000 entries"),
    ],
)
def test_what_is_not_served_is_refused_by_its_field(llm: LLM, folder: Path, fields: dict[str, Any], named: str) -> None:
    assert named in refusal(llm, configure(folder, **fields))


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({Q_A: None}, f"lacks {Q_A}"),
        ({Q_A: torch.zeros(4, 63)}, f"{Q_A} has shape [4, 63]"),
        ({Q_B: torch.zeros(64, 5)}, f"{Q_B} has shape [64, 5]"),
        ({Q_B: torch.zeros(64, 4, dtype=torch.int8)}, f"{Q_B} is of torch.int8"),
        ({Q_B: torch.full((64, 4), torch.nan)}, f"{Q_B} has values that are not finite"),
        ({Q_A.replace("q_proj", "k_proj"): torch.zeros(4, 64)}, "does not target"),
        ({Q_A.replace("layers.0", "layers.1"): torch.zeros(4, 64)}, "cannot apply: base_model.model.model.layers.1."),
        ({"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 64)}, "adapters of the output layer"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(4, 64)}, "embedding"),
        ({"stray": torch.zeros(1)}, "cannot apply: stray"),
    ],
)
def test_a_wrong_tensor_is_named(llm: LLM, folder: Path, tensors: dict[str, torch.Tensor | None], named: str) -> None:
    assert named in refusal(llm, change(folder, **tensors))


def test_a_file_that_is_too_large_or_no_safetensors_is_refused(llm: LLM, folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(b"\xff" * 1000)
    assert "cannot be read as safetensors" in refusal(llm, folder)
    with file.open("wb") as large:
        large.truncate(2**30)
    assert "is larger than" in refusal(llm, folder)


def test_pickles_are_never_loaded(llm: LLM, folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "never loaded" in refusal(llm, folder)


def test_what_is_no_adapter_folder_is_refused(llm: LLM, tmp_path: Path) -> None:
    assert "adapter_config.json cannot be read" in refusal(llm, tmp_path)
    (tmp_path / "adapter_config.json").write_text("[1, 2")
    assert "is not an adapter configuration" in refusal(llm, tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "peft_type" in refusal(llm, tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(b" " * (2**20 + 1))
    assert "is larger than" in refusal(llm, tmp_path)


def test_adapters_of_experts_are_refused(tmp_path: Path) -> None:
    moe = LLM(str(write_tiny_checkpoint(tmp_path / "moe", TINY_MOE)), dtype="float32", enable_lora=True)
    folder = write_tiny_adapter(tmp_path / "adapter", TINY_MOE, targets=["q_proj"])
    name = "base_model.model.model.layers.0.block_sparse_moe.experts.3.w1.lora_A.weight"
    assert name in refusal(moe, change(folder, **{name: torch.zeros(4, 64)}))


def test_an_engine_without_lora_says_so(tmp_path: Path) -> None:
    llm = LLM(str(write_tiny_checkpoint(tmp_path)), dtype="float32", num_kv_blocks=16)
    with pytest.raises(AdapterError, match="enable_lora"):
        llm.generate({"prompt_token_ids": [1]}, lora_request=LoRARequest("any", str(tmp_path)))
    with pytest.raises(InvalidRequestError, match="enable_lora"):
        LLM(str(tmp_path), lora_modules=(("any", str(tmp_path)),))


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(m|m)" * 40, ".*.*.*.*.*x", "a?" * 60 + "x", "(?=a)b", "(?P<n>a)", "x" * 2000, "(a)*", "["]
)
def test_a_pattern_that_could_run_for_long_is_refused_at_once(pattern: str) -> None:
    began = time.perf_counter()
    with pytest.raises(AdapterError):
        NamePattern.whole(pattern)
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q_proj|v_proj)",
        r"model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj",
        r".*\.layers\.(0|1|2|3|4|5|6|7)\.(?:self_attn|mlp)\.(q_proj|down_proj)",
        r".*layers\.[0-9]+\..*proj",
    ],
)
def test_patterns_that_people_write_are_taken(pattern: str) -> None:
    assert NamePattern.whole(pattern).matches("model.layers.3.self_attn.q_proj")
