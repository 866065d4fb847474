import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import InvalidRequestError, ModelLoadError
from deepseek_engine.gpu_limits import check_attention, check_bitsandbytes, check_settings, check_types, gpu_dtype
from deepseek_engine.model_runner import build_runner, open_model, store_quantized
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.server.command import parse_settings
from deepseek_engine.testing.checkpoints import write_tiny_checkpoint
from deepseek_engine.testing.fake_bitsandbytes import install_fake_bitsandbytes
from deepseek_engine.testing.flash_attn_stand_in import stand_in


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"tensor_parallel_size": 2}, "tensor_parallel_size=2 is for device='cpu'"),
        ({"enable_lora": True}, "enable_lora is for device='cpu'"),
    ],
)
def test_settings_for_cpus_are_refused_with_the_way_out(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        check_settings(EngineConfig(model="shape:tiny-moe", **settings))
    check_settings(EngineConfig(model="shape:tiny-moe", speculation="ngram", quantization="int8"))


def test_types_without_kernels_are_refused() -> None:
    assert gpu_dtype(EngineConfig(model="m")) is torch.bfloat16
    assert gpu_dtype(EngineConfig(model="m", dtype="float32")) is torch.float32
    with pytest.raises(ModelLoadError, match="dtype='float16' does not run on a GPU yet"):
        gpu_dtype(EngineConfig(model="m", dtype="float16"))


def test_int8_weights_take_bfloat16() -> None:
    config, source = open_model("shape:tiny-moe", torch.device("cpu"))
    with torch.device("meta"):
        plain, int8 = (Transformer(config, 64, torch.float32) for _ in range(2))
    check_types(plain, torch.float32)
    store_quantized(int8, "int8", source)
    check_types(int8, torch.bfloat16)
    with pytest.raises(ModelLoadError, match="on a GPU use dtype='bfloat16'"):
        check_types(int8, torch.float32)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"block_size": 16}, r"block_size=16 with .*: it reads blocks of 256 tokens or a multiple; use block_size=256"),
        ({"block_size": 384}, "block_size=384"),
        ({"dtype": "float32"}, r"dtype='float32' with attention_backend='flash': .* use dtype='bfloat16'"),
        ({"kv_cache_dtype": "int8"}, r"kv_cache_dtype='int8' with .*; use kv_cache_dtype='auto' or"),
        ({"prompt_attention": "bidirectional"}, r"prompt_attention='bidirectional' with .* attention_backend='triton'"),
    ],
)
def test_flash_attention_is_refused_beside_what_it_does_not_compute(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason) as refused:
        EngineConfig(model="m", **{"attention_backend": "flash", "block_size": 256} | settings)
    assert refused.value.param == next(iter(settings))
    EngineConfig(model="m", attention_backend="flash", block_size=512, dtype="bfloat16")
    with pytest.raises(InvalidRequestError, match="attention_backend='xformers': choose one of auto, triton, flash"):
        EngineConfig(model="m", attention_backend="xformers")


def test_flash_attention_is_refused_where_nothing_computes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = torch.device("cpu")
    grouped, latent = (open_model(f"shape:{name}", device)[0] for name in ("tiny-moe", "tiny-v2"))
    config = EngineConfig(model="m", attention_backend="flash", block_size=256)
    with stand_in():
        check_attention(config, grouped)
        with pytest.raises(ModelLoadError, match=r"is for grouped-query attention, and Deepseek.* has another kind"):
            check_attention(config, latent)
    with stand_in("4.0.0"), pytest.raises(ModelLoadError, match=r"needs flash_attn 2, and 4\.0\.0 is installed"):
        check_attention(config, grouped)
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # as if it were not installed
    with pytest.raises(ModelLoadError, match=r"needs the package flash_attn, .*: see docs/engine/gpu.md"):
        check_attention(config, grouped)
    check_attention(EngineConfig(model="m"), latent)
    for backend in ("triton", "flash"):
        config = EngineConfig(
            model=str(write_tiny_checkpoint(tmp_path)), device="cpu", attention_backend=backend, block_size=256
        )  # fmt: skip
        with pytest.raises(ModelLoadError, match=f"attention_backend='{backend}' is for GPUs, and the device is 'cpu'"):
            build_runner(config)


def test_the_servers_flags_choose_what_attends(capsys: pytest.CaptureFixture[str]) -> None:
    config = parse_settings(["--attention-backend", "flash", "--block-size", "256"]).engine_config
    assert (config.attention_backend, config.block_size) == ("flash", 256)
    with pytest.raises(SystemExit):
        parse_settings(["--attention-backend", "flash"])
    assert "block_size=16 with attention_backend='flash'" in capsys.readouterr().err


def tiny(quantization: str | None, **changes: int) -> Transformer:
    config, source = open_model("shape:tiny-moe", torch.device("cpu"))
    with torch.device("meta"):
        model = Transformer(replace(config, **changes), 64, torch.bfloat16)
        store_quantized(model, quantization, source)
    return model


def test_bitsandbytes_is_for_int8_weights_of_its_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    fake = install_fake_bitsandbytes(monkeypatch)
    check_bitsandbytes(tiny("int8"), device)
    assert len(fake.products) == 1  # it was tried
    with pytest.raises(ModelLoadError, match="no dense layer of the model has them: use quantization='int8', or"):
        check_bitsandbytes(tiny(None), device)
    with pytest.raises(ModelLoadError, match="multiples of 4, and head is 514 x 64: use linear_backend='triton'"):
        check_bitsandbytes(tiny("int8", vocab_size=514), device)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(ModelLoadError, match=r"cannot be imported .*: pip install 'deepseek-engine\[bitsandbytes\]'"):
        check_bitsandbytes(tiny("int8"), device)


@pytest.mark.parametrize("backend", ["triton", "bitsandbytes"])
def test_a_linear_backend_on_a_cpu_is_refused(backend: str) -> None:
    assert parse_settings(["--linear-backend", backend]).engine_config.linear_backend == backend
    with pytest.raises(ModelLoadError, match=f"linear_backend='{backend}' needs a GPU, .* use linear_backend='auto'"):
        build_runner(EngineConfig(model="shape:tiny-moe", device="cpu", quantization="int8", linear_backend=backend))
    with pytest.raises(InvalidRequestError, match="linear_backend='cublas': choose one of auto, triton, bitsandbytes"):
        EngineConfig(model="shape:tiny-moe", linear_backend="cublas")
