"""Many adapters in one batch: each answers as it does alone, whatever the engine does with the batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepseek_engine import LLM, LoRARequest, SamplingParams
from deepseek_engine.testing.adapters import write_tiny_adapter
from deepseek_engine.testing.checkpoints import write_tiny_checkpoint

NUM_ADAPTERS = 32
GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
PROMPTS = [{"prompt_token_ids": [(i * 13 + j * j) % 256 for j in range(3 + i % 9 * 5)]} for i in range(NUM_ADAPTERS)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[LoRARequest]:
    """Of different ranks, and changing different layers."""
    folder = tmp_path_factory.mktemp("adapters")
    targets = (["q_proj", "v_proj"], ["gate_proj", "down_proj"], ["o_proj"], ["q_proj", "k_proj", "up_proj"])
    return [
        LoRARequest(f"a{i}", str(write_tiny_adapter(folder / f"a{i}", rank=1 + i % 8, targets=targets[i % 4], seed=i)))
        for i in range(NUM_ADAPTERS)
    ]


def build(checkpoint: Path, **settings: Any) -> LLM:
    return LLM(str(checkpoint), **{"dtype": "float32", "enable_lora": True, "max_loras": NUM_ADAPTERS, **settings})


def tokens(llm: LLM, prompts: Any, adapters: Any, params: SamplingParams = GREEDY) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params, adapters)]


@pytest.fixture(scope="module")
def alone(checkpoint: Path, adapters: list[LoRARequest]) -> list[list[int]]:
    llm = build(checkpoint, max_num_seqs=1, num_kv_blocks=32)
    return [tokens(llm, prompt, adapter)[0] for prompt, adapter in zip(PROMPTS, adapters, strict=True)]


def merged_checkpoint(checkpoint: Path, adapter: LoRARequest, folder: Path) -> Path:
    """The base model with the adapter's change added to its weights."""
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(checkpoint / "model.safetensors")
    factors = load_file(Path(adapter.lora_path) / "adapter_model.safetensors")
    for name, a_RI in factors.items():
        if ".lora_A." in name:
            weight = name.removeprefix("base_model.model.").replace(".lora_A.", ".")
            weights[weight] = weights[weight] + 2 * factors[name.replace(".lora_A.", ".lora_B.")] @ a_RI  # alpha = 2 r
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_32_adapters_in_one_batch_equal_their_merged_models(
    checkpoint: Path, adapters: list[LoRARequest], alone: list[list[int]], tmp_path: Path
) -> None:
    assert tokens(build(checkpoint, max_num_seqs=NUM_ADAPTERS), PROMPTS, adapters) == alone
    for index, adapter in enumerate(adapters):
        merged = LLM(str(merged_checkpoint(checkpoint, adapter, tmp_path / adapter.lora_name)), dtype="float32",
                     num_kv_blocks=32)  # fmt: skip
        assert tokens(merged, PROMPTS[index], None)[0] == alone[index]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_batched_tokens": 33},
        {"num_kv_blocks": 40, "enable_prefix_caching": False},
        {"speculation": "ngram"},
        {"max_loras": 3},
    ],
    ids=["chunked", "preempted", "speculative", "few-places"],
)
def test_an_adapters_tokens_do_not_depend_on_how_the_batch_is_run(
    checkpoint: Path, adapters: list[LoRARequest], alone: list[list[int]], settings: dict[str, Any]
) -> None:
    llm = build(checkpoint, max_num_seqs=16, **settings)
    base = build(checkpoint, enable_lora=False, max_num_seqs=1)
    mixed = [None if i % 5 == 0 else adapter for i, adapter in enumerate(adapters)]
    expected = [tokens(base, PROMPTS[i], None)[0] if each is None else alone[i] for i, each in enumerate(mixed)]
    assert tokens(llm, PROMPTS, mixed) == expected


def test_an_adapter_on_int8_weights_is_the_same_alone_and_in_a_batch(
    checkpoint: Path, adapters: list[LoRARequest]
) -> None:
    one_by_one = build(checkpoint, quantization="int8", max_num_seqs=1)
    expected = [tokens(one_by_one, PROMPTS[i], adapters[i])[0] for i in range(8)]
    assert tokens(build(checkpoint, quantization="int8"), PROMPTS[:8], adapters[:8]) == expected
    assert tokens(one_by_one, PROMPTS[:8], None) != expected


def test_every_answer_and_every_fork_has_the_adapter(checkpoint: Path, adapters: list[LoRARequest]) -> None:
    llm = build(checkpoint, max_loras=2)
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, n=3)
    output = llm.generate(PROMPTS[4], params, adapters[4])[0]
    first = tokens(llm, PROMPTS[4], adapters[4])[0]
    assert [answer.token_ids for answer in output.outputs] == [first] * 3


def test_a_name_stands_for_one_folder(checkpoint: Path, adapters: list[LoRARequest]) -> None:
    llm = build(checkpoint, max_loras=2)
    tokens(llm, PROMPTS[0], adapters[0])
    with pytest.raises(ValueError, match=r"give the one of .* another name"):
        tokens(llm, PROMPTS[0], LoRARequest(adapters[0].lora_name, adapters[1].lora_path))
    with pytest.raises(ValueError, match="2 entries of lora_request for 1 prompts"):
        tokens(llm, PROMPTS[0], adapters[:2])


def test_a_batch_of_the_base_model_alone_does_no_adapter_work(
    checkpoint: Path, adapters: list[LoRARequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = build(checkpoint, max_loras=2)
    tokens(llm, PROMPTS[0], adapters[0])
    calls: list[torch.Tensor] = []
    monkeypatch.setattr("deepseek_engine.lora.appliers.add_low_rank", lambda output, *_: calls.append(output))
    tokens(llm, PROMPTS[1], None)
    assert not calls
    tokens(llm, PROMPTS[1], adapters[0])
    assert calls
