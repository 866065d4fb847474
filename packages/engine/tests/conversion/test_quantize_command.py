"""`deepseek-server quantize`: what it writes loads as `--quantization int8` would, and is all there or not at all."""

import json
import signal
from itertools import count
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CompressedTensorsConfig,
    DeepseekV3Config,
    JetMoeConfig,
    LlamaConfig,
    MixtralConfig,
    PhimoeConfig,
    PreTrainedConfig,
)

from deepseek_engine.config import EngineConfig
from deepseek_engine.conversion import int8_checkpoint
from deepseek_engine.conversion.command import run_quantize
from deepseek_engine.conversion.int8_checkpoint import shape_of
from deepseek_engine.conversion.plan import planned_bytes
from deepseek_engine.model_config import parse_model_config
from deepseek_engine.model_runner import build_runner
from deepseek_engine.quantization.int8 import dequantize_rows, quantize_rows
from deepseek_engine.server.cli import main
from deepseek_engine.testing.checkpoints import (
    CHAT_TEMPLATE,
    SPECIAL_TOKENS,
    TINY_MOE,
    TinyModel,
    write_tiny_checkpoint,
)
from deepseek_engine.testing.families import TINY, TINY_LATENT, build_oracle, write_family_checkpoint
from deepseek_engine.testing.quantized import FP8, fp8_tensors, is_projection, rewrite
from deepseek_engine.testing.whole_prompts import logits_at_every_position
from deepseek_engine.tokenizer import load_tokenizer

V3 = {**TINY_LATENT, "n_group": 4, "topk_group": 2}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**TINY, tie_word_embeddings=True, attention_bias=True),
    "mixtral": MixtralConfig(**TINY, num_local_experts=8),
    "deepseek v3": DeepseekV3Config(**V3),
    "phimoe": PhimoeConfig(**TINY),
    "jetmoe": JetMoeConfig(**TINY, kv_channels=16),
}
SEED_3_4B = {
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 2048,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_local_experts": 16,
    "num_experts_per_tok": 2,
    "intermediate_size": 1408,
    "vocab_size": 102400,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}


def some_tokens() -> list[int]:
    return torch.randint(0, 256, (100,), generator=torch.Generator().manual_seed(7)).tolist()


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_new_folder_gives_exactly_the_logits_of_quantization_int8(tmp_path: Path, family: str, fused: bool) -> None:
    source = write_family_checkpoint(tmp_path / "in", build_oracle(FAMILIES[family]), fused_experts=fused)
    assert run_quantize([str(source), str(tmp_path / "out"), "--max-shard-size", "100k"]) == 0
    expected = logits_at_every_position(source, some_tokens(), "int8")
    # The head is stored as it was: it too becomes INT8 when that is asked for.
    assert torch.equal(logits_at_every_position(tmp_path / "out", some_tokens(), "int8"), expected)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A tiny V3 in bfloat16, what it became in several shards, and the report."""
    folder = tmp_path_factory.mktemp("v3")
    source = write_family_checkpoint(folder / "in", build_oracle(DeepseekV3Config(**V3)))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1, "a_field": {"of": "its"}}))
    tensors = {name: tensor.bfloat16() for name, tensor in tensors_of(source).items()}
    tensors["model.layers.2.eh_proj.weight"] = torch.zeros(64, 128)
    rewrite(source, lambda _: tensors, None)
    arguments = ["--max-shard-size", "64KiB", "--report", str(folder / "report.json"), "--calibrate"]
    assert run_quantize([str(source), str(folder / "out"), *arguments]) == 0
    return source, folder / "out", json.loads((folder / "report.json").read_text())


def test_projections_are_int8_and_all_else_keeps_its_type(pair: tuple[Path, Path, dict[str, Any]]) -> None:
    source, out, _ = pair
    before, after = tensors_of(source), tensors_of(out)
    before.pop("model.layers.2.eh_proj.weight")  # of the layer that predicts a second token
    scales = {name for name in after if name.endswith("_scale")}
    assert after.keys() - scales == before.keys()
    for name, tensor in before.items():
        if is_projection(name, tensor) and "kv_b_proj" not in name:
            values, scale = quantize_rows(tensor)
            assert torch.equal(after[name], values)
            assert torch.equal(after[f"{name}_scale"], scale.unsqueeze(-1))
        else:
            assert torch.equal(after[name], tensor)
            assert after[name].dtype is tensor.dtype


def test_shards_are_bounded_and_the_index_names_every_tensor(pair: tuple[Path, Path, dict[str, Any]]) -> None:
    _, out, report = pair
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(file.name for file in out.glob("*.safetensors"))
    assert len(files) == report["num_shards"] > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert index["weight_map"] == {name: file for file in files for name in load_file(out / file)}
    assert index["metadata"]["total_size"] == report["bytes_after"]
    assert max(sum(t.nbytes for t in load_file(out / file).values()) for file in files) <= 64 * 1024


def test_the_folder_says_what_it_holds_and_keeps_what_lay_beside_the_weights(
    pair: tuple[Path, Path, dict[str, Any]],
) -> None:
    source, out, _ = pair
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, out))
    quantization = after.pop("quantization_config")
    assert after == before | {"num_nextn_predict_layers": 0}
    assert {"lm_head", "model.layers.1.mlp.gate", "model.layers.0.self_attn.kv_b_proj"} <= set(quantization["ignore"])
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert {file.stat().st_mode & 0o777 for file in out.iterdir()} == {(source / "config.json").stat().st_mode & 0o777}


def test_the_report_has_sizes_and_every_error(pair: tuple[Path, Path, dict[str, Any]]) -> None:
    source, out, report = pair
    after = tensors_of(out)
    assert report["bytes_after"] == sum(tensor.nbytes for tensor in after.values())
    assert report["num_left_behind"] == 1
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    weight = tensors_of(source)[name].float()
    restored = dequantize_rows(after[name], after[f"{name}_scale"].squeeze(-1))
    assert report["weight_errors"][name] == pytest.approx(((restored - weight).norm() / weight.norm()).item(), rel=1e-3)
    outputs = report["output_errors"]
    assert (outputs["text"], outputs["num_tokens"], len(outputs["layers"])) == ("built-in", 512, 2)
    assert all(0 < error < 0.1 for error in (*outputs["layers"], outputs["logits"]))


def test_output_errors_are_those_of_the_two_models_on_the_given_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, text, out = write_tiny_checkpoint(tmp_path / "in"), tmp_path / "text.txt", tmp_path / "out"
    text.write_text("a text of one's own")
    report = tmp_path / "report.json"
    assert run_quantize([str(source), str(out), "--calibrate-text", str(text), "--report", str(report)]) == 0
    token_ids = load_tokenizer(str(source)).encode("a text of one's own")
    expected, actual = (logits_at_every_position(folder, token_ids) for folder in (source, out))
    measured = json.loads(report.read_text())["output_errors"]
    assert measured["logits"] == pytest.approx(((actual - expected).norm() / expected.norm()).item(), rel=1e-4)
    assert "relative error of layer outputs on 19 tokens of text (text.txt)" in capsys.readouterr().out


@pytest.mark.parametrize("fused", [False, True])
def test_an_fp8_checkpoint_becomes_int8_from_its_float32_values(
    tmp_path: Path, fused: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    model = TinyModel(num_local_experts=4, intermediate_size=32, fused_experts=fused)
    source, block = write_tiny_checkpoint(tmp_path / "in", model), (16, 24)
    rewrite(source, lambda tensors: fp8_tensors(tensors, block), {**FP8, "weight_block_size": list(block)})
    assert run_quantize([str(source), str(tmp_path / "out")]) == 0
    expected = logits_at_every_position(source, some_tokens(), "int8")
    # The head is stored as it was: it too becomes INT8 when that is asked for.
    assert torch.equal(logits_at_every_position(tmp_path / "out", some_tokens(), "int8"), expected)
    assert run_quantize([str(tmp_path / "out"), str(tmp_path / "again")]) == 0  # what is INT8 stays as it is
    assert "relative error of weights: none\n" in capsys.readouterr().out
    first, second = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "again")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def write_tiny_gguf(path: Path, *, pre: str = "smollm") -> Path:
    """A Llama of random weights whose words are the bytes; rows of queries and keys may be in any order then."""
    random = np.random.default_rng(0)
    layers = {
        "attn_norm": (64,), "attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64),
        "ffn_norm": (64,), "ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96),
    }  # fmt: skip
    shapes = {"token_embd": (261, 64), "output_norm": (64,), "output": (261, 64)}
    shapes |= {f"blk.{index}.{name}": shape for index in range(2) for name, shape in layers.items()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_context_length(512)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt", "he", *SPECIAL_TOKENS])
    writer.add_token_types([gguf.TokenType.NORMAL] * 258 + [gguf.TokenType.CONTROL] * 3)
    writer.add_token_merges(["Ġ t", "h e"])
    writer.add_bos_token_id(258)
    writer.add_eos_token_id(260)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", (random.standard_normal(shape) / 8).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_becomes_a_folder_that_answers_as_the_file_in_int8(tmp_path: Path) -> None:
    file = write_tiny_gguf(tmp_path / "tiny.gguf")
    assert run_quantize([str(file), str(tmp_path / "out"), "--dtype", "float32"]) == 0
    expected = logits_at_every_position(file, some_tokens(), "int8")
    assert torch.equal(logits_at_every_position(tmp_path / "out", some_tokens(), "int8"), expected)
    before, after = load_tokenizer(str(file)), load_tokenizer(str(tmp_path / "out"))
    text = "the 12 thieves<|im_end|> leave"
    assert after.encode(text) == before.encode(text)
    turns = [{"role": "user", "content": "Hello!"}]
    assert after.encode_chat(turns) == before.encode_chat(turns)
    assert (after.eos_token_ids, after.bos_token_id) == (before.eos_token_ids, before.bos_token_id) == ((260,), 258)


def test_what_a_gguf_file_holds_is_kept_in_bfloat16_unless_asked_otherwise(tmp_path: Path) -> None:
    file = write_tiny_gguf(tmp_path / "tiny.gguf")
    assert run_quantize([str(file), str(tmp_path / "out")]) == 0
    assert tensors_of(tmp_path / "out")["lm_head.weight"].dtype is torch.bfloat16
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_gguf_tokenizer_of_unknown_rules_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_tiny_gguf(tmp_path / "tiny.gguf", pre="unheard-of")
    assert run_quantize([str(file), str(tmp_path / "out")]) == 0
    assert "note: no tokenizer.json was written" in capsys.readouterr().out
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_compressed_tensors_reads_the_config_and_restores_every_weight(pair: tuple[Path, Path, dict[str, Any]]) -> None:
    _, out, report = pair
    fields = json.loads((out / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig.model_validate(fields).config_groups["group_0"]
    compressor = BaseCompressor.get_value_from_registry(fields["format"])
    after = tensors_of(out)
    for name in report["weight_errors"]:
        state = {"weight": after[name], "weight_scale": after[f"{name}_scale"]}
        restored = compressor.decompress(state, scheme)["weight"].float()
        assert torch.equal(restored, dequantize_rows(after[name], after[f"{name}_scale"].squeeze(-1)))


@pytest.mark.filterwarnings("ignore")  # of the libraries that read it
def test_transformers_reads_a_dense_model_and_computes_the_same(tmp_path: Path) -> None:
    source = write_family_checkpoint(tmp_path / "in", build_oracle(FAMILIES["llama"]))
    assert run_quantize([str(source), str(tmp_path / "out"), "--max-shard-size", "64KiB"]) == 0
    oracle = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    with torch.inference_mode():
        expected = oracle(torch.tensor([some_tokens()]), use_cache=False).logits[0]
    actual = logits_at_every_position(tmp_path / "out", some_tokens())
    assert (actual - expected).norm() / expected.norm() < 1e-3  # activations in two INT8 digits against float32


def test_quantised_weights_of_the_seed_shape_are_3_68_times_smaller_than_float32() -> None:
    model = shape_of(parse_model_config(SEED_3_4B, "seed-3.4b"))
    sizes = planned_bytes(model, kept_bytes_per_value=2)
    assert sizes["all"].as_float32 == pytest.approx(13.8e9, rel=0.01)
    assert sizes["quantized"].ratio >= 3.98
    # The embedding, a sixteenth of the values, stays bfloat16.
    assert sizes["all"].ratio >= 3.68
    assert sizes["all"].ratio == pytest.approx(3.76, abs=0.01)


def test_planned_sizes_are_those_of_the_loaded_model(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, TINY_MOE)
    config = EngineConfig(model=str(folder), dtype="float32", quantization="int8", num_kv_blocks=8)
    runner = build_runner(config)
    fields = json.loads((folder / "config.json").read_text())
    sizes = planned_bytes(shape_of(parse_model_config(fields, "tiny")), kept_bytes_per_value=4)
    assert sizes["all"].stored == runner.info.weight_bytes


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_tiny_checkpoint(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    assert run_quantize([str(source), str(out)]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert run_quantize(["no/such-hub-id", str(out), "--calibrate"]) == 1
    assert "is not empty" in capsys.readouterr().err  # and nothing was asked of the Hub
    assert [file.name for file in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    assert run_quantize([str(source), str(out)]) == 0


def folder_is_unchanged(tmp_path: Path) -> bool:
    return sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_broken_checkpoint_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_tiny_checkpoint(tmp_path / "in")
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(source, lambda tensors: tensors | {name: torch.full((96, 64), torch.nan)}, None)
    assert run_quantize([str(source), str(tmp_path / "out")]) == 1
    assert f"{name} has values that are not finite" in capsys.readouterr().err
    assert folder_is_unchanged(tmp_path)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_conversion_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, calls = write_tiny_checkpoint(tmp_path / "in"), count(1)
    add = int8_checkpoint._add_quantized

    def interrupted(*arguments: Any) -> None:
        add(*arguments)
        if next(calls) == 5:
            assert list(tmp_path.glob(".out.*.partial/*.safetensors"))
            signal.raise_signal(number)

    monkeypatch.setattr(int8_checkpoint, "_add_quantized", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        ended = run_quantize([str(source), str(tmp_path / "out"), "--max-shard-size", "2k"])
    except SystemExit as exit_:
        ended = exit_.code
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == status
    assert folder_is_unchanged(tmp_path)


def test_quantize_is_a_command_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_tiny_checkpoint(tmp_path / "in")
    monkeypatch.setattr("sys.argv", ["deepseek-server", "quantize", str(source), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-shard-size", "lots"], "'lots' is not a number of bytes"),
        (["--max-shard-size", "10"], "10 is less than 1024 bytes"),
        (["--calibrate-text", "missing.txt"], "missing.txt"),
        (["--report", "missing/report.json"], "there is no folder missing"),
    ],
)
def test_a_bad_option_is_named(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_tiny_checkpoint(tmp_path / "in")
    try:
        status = run_quantize([str(source), str(tmp_path / "out"), *arguments])
    except SystemExit as exit_:
        status = exit_.code
    assert status in (1, 2)
    assert message in capsys.readouterr().err
    assert folder_is_unchanged(tmp_path)
