"""`deepseek-bench offline --shape`: the command on a tiny shape, its floors against counts made by hand, its tables."""

import json
import sys
import threading
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deepseek_engine.bench import device_watch
from deepseek_engine.bench.ceilings import Ceilings
from deepseek_engine.bench.cli import main
from deepseek_engine.bench.device_watch import DeviceWatch
from deepseek_engine.bench.roofline import Roofline, active_bytes, attention_ops_per_key, matrix_ops
from deepseek_engine.bench.step_profile import Kernel, describe_kernels
from deepseek_engine.bench.workloads import WORKLOADS
from deepseek_engine.layers.moe import Experts
from deepseek_engine.model_config import parse_model_config
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.shapes import shape_fields
from deepseek_engine.testing.checkpoints import TinyModel, write_tiny_checkpoint
from deepseek_engine.weights import store_as_int8


def empty_model(shape: str, dtype: torch.dtype) -> Transformer:
    with torch.device("meta"):
        return Transformer(parse_model_config(shape_fields(shape), shape), 1, dtype)


def run(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert main(["offline", *flags, "--scale", "0.02", "--repeats", "1", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    result: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
    return result


def test_all_workloads_of_a_shape_give_positive_numbers(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    output, profile = tmp_path / "lines.jsonl", tmp_path / "kernels.txt"
    flags = ["--shape", "tiny-moe", "--dtype", "float32", "--quantization", "int8"]
    result = run(capsys, *flags, "--output", str(output), "--profile", str(profile))

    assert json.loads(output.read_text()) == result
    assert result["spec"] == "tiny-moe:float32+int8"
    assert set(result["weight_bytes_by_dtype"]) == {"float32", "int8"}
    assert result["settings"]["enable_prefix_caching"] is False
    for name, keys in {
        "W1": ("ttft_ms", "tpot_ms", "out_tok_s"),
        "W2": ("ttft_ms", "tpot_ms", "out_tok_s"),
        "W3": ("s", "out_tok_s", "total_tok_s"),
        "W4": ("prompt_tok_s", "mean_req_ms"),
    }.items():
        assert all(result[name][key] > 0 for key in (*keys, "floor")), name
    assert (len(result["W1"]["total_s"]), len(result["W3"]["all_s"]), len(result["W4"]["s"])) == (3, 1, 1)
    for key in ("import_s", "ready_s", "warmup_s", "kv_cache_bytes", "peak_rss_mib", "wall_s"):
        assert result[key] > 0, key
    assert "util_mean" not in result["W3"], "a CPU has no NVML"
    assert profile.read_text().count("kernels a step") == 2


def test_a_checkpoint_is_timed_in_the_same_way(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    folder = write_tiny_checkpoint(tmp_path / "model", TinyModel())
    result = run(capsys, "--model-path", str(folder), "--workloads", "W2", "--dtype", "float32")
    assert result["W2"]["tpot_ms"] > 0
    assert "W1" not in result


@pytest.mark.parametrize("flags", [["--scale", "2"], ["--repeats", "0"], ["--max-num-seqs", "0"]])
def test_impossible_flags_are_refused_by_name(capsys: pytest.CaptureFixture[str], flags: list[str]):
    with pytest.raises(SystemExit):
        main(["offline", "--shape", "tiny-moe", *flags])
    assert flags[0] in capsys.readouterr().err


def test_the_linear_backend_reaches_the_engine(capsys: pytest.CaptureFixture[str]):
    assert main(["offline", "--shape", "tiny-moe", "--device", "cpu", "--linear-backend", "triton"]) == 1
    assert "linear_backend='triton' needs a GPU" in capsys.readouterr().err


def test_bytes_of_a_token_are_those_that_were_counted_by_hand():
    """The counts of bench_vllm.py, which the floors of the published comparison come from."""
    seed = {"attention": 503316480, "routers": 1310720, "experts": 692060160, "head": 419430400}
    assert active_bytes(empty_model("shape:seed-3.4b", torch.bfloat16)) == seed
    full = active_bytes(empty_model("shape:seed-3.4b", torch.float32))
    assert full == {part: 2 * size for part, size in seed.items()}
    assert sum(full.values()) == pytest.approx(3.232e9, abs=1e6)

    v2_lite = active_bytes(empty_model("shape:v2-lite", torch.bfloat16))
    in_float32 = v2_lite["routers"] // 2  # theirs are counted as bfloat16
    assert sum(v2_lite.values()) - in_float32 == 4902617088


def test_int8_weights_are_read_with_their_scales():
    experts_int8, all_int8 = (empty_model("shape:seed-3.4b", torch.bfloat16) for _ in range(2))
    for module in experts_int8.modules():
        if isinstance(module, Experts):
            module.store_as_int8()
    store_as_int8(all_int8)
    scales = {"experts": 20 * 2 * (2816 + 2048) * 4, "attention": 20 * (4096 + 2048) * 4, "head": 102400 * 4}
    assert sum(active_bytes(experts_int8).values()) - scales["experts"] == 1270087680
    # Less than the 1.018e9 of the published comparison by half of the head, which is bfloat16 there.
    assert sum(active_bytes(all_int8).values()) - sum(scales.values()) == 808714240


def test_a_batch_reads_the_experts_that_it_is_expected_to_touch():
    model = empty_model("shape:seed-3.4b", torch.bfloat16)
    all_experts = active_bytes(model)["experts"] * 8
    assert active_bytes(model, 32)["experts"] / all_experts == pytest.approx(1 - (7 / 8) ** 32)
    assert active_bytes(model, 32)["head"] == active_bytes(model)["head"]


def test_a_prompt_costs_the_operations_of_its_active_weights_and_of_half_its_keys():
    model = empty_model("shape:seed-3.4b", torch.bfloat16)
    ops = matrix_ops(model, with_head=False)["bfloat16"] + 2048 * attention_ops_per_key(model)
    assert ops == pytest.approx(1.53e9, rel=0.002), "1.53 GFLOP a token at 4096"
    store_as_int8(model)
    assert set(matrix_ops(model, with_head=False)) == {"bfloat16", "int8"}, "the router stays"


def test_the_floor_is_the_longer_of_reading_and_computing():
    model = empty_model("shape:seed-3.4b", torch.bfloat16)
    slow_memory = Roofline(model, Ceilings(1000.0, {"bfloat16": 1e6}), kv_bytes_per_token=1000)
    assert slow_memory.step_floor_ms(1, 0) == pytest.approx(1.616, abs=0.001)
    assert slow_memory.step_floor_ms(1, 10**6) == pytest.approx(2.616, abs=0.001)
    slow_products = Roofline(model, Ceilings(1e9, {"bfloat16": 1.0}), kv_bytes_per_token=0)
    assert slow_products.step_floor_ms(1, 0) == pytest.approx(2 * 1.616 / 2, abs=0.001)  # 2 operations for 2 bytes
    assert slow_products.prefill_floor_s(2, 4096) == pytest.approx(2 * 4096 * 1.53e-3, rel=0.002)


def test_the_workloads_are_those_of_the_published_numbers():
    sizes = {name: (each.num_requests, each.prompt_tokens, each.output_tokens) for name, each in WORKLOADS.items()}
    assert sizes == {"W1": (1, 128, 256), "W2": (32, 128, 256), "W3": (512, 512, 256), "W4": (16, 4096, 1)}


def test_gaps_are_what_no_kernel_covers():
    kernels = [Kernel("a", 0, 10), Kernel("b", 5, 20), Kernel("a", 30, 35), Kernel("c", 36, 40)]
    table = describe_kernels(kernels, num_steps=2, num_layers=2)
    assert "kernels a step 2.0, a step and layer 1.00; busy 14.5 us, idle between kernels 5.5 us in 1.0 gaps" in table
    longest = table.splitlines()[2].split()  # "a" and "b" both took 15; the one with more runs comes first by name
    assert longest == ["a", "1.0", "7.50", "7.5", "44.1%"]


def test_nvml_is_sampled_while_the_block_lasts(monkeypatch: pytest.MonkeyPatch):
    three_samples, busy = threading.Event(), cycle((90, 100))
    seen: list[int] = []

    def memory(handle: str) -> SimpleNamespace:
        seen.append(0)
        if len(seen) == 3:
            three_samples.set()
        return SimpleNamespace(used=len(seen) * 2**30)

    fake = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=next(busy)),
        nvmlDeviceGetPowerUsage=lambda handle: 512_000,
        nvmlDeviceGetMemoryInfo=memory,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(device_watch, "PERIOD_S", 0.001)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1"))
    with DeviceWatch(torch.device("cuda")) as watch:
        assert three_samples.wait(30)
    assert watch.summary["samples"] == len(seen) >= 3
    assert (watch.summary["power_w_median"], watch.summary["mem_gib"]) == (512, len(seen))
    assert 90 < watch.summary["util_mean"] < 100 == 10 + watch.summary["util_min"]
    with DeviceWatch(torch.device("cpu")) as watch:
        pass
    assert watch.summary == {}
