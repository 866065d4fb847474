from typing import Any

import pytest
import torch

from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import ModelLoadError
from deepseek_engine.gpu_limits import check_settings, check_types, gpu_dtype
from deepseek_engine.model_runner import open_model, store_quantized
from deepseek_engine.models.transformer import Transformer


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"tensor_parallel_size": 2}, "tensor_parallel_size=2 is for device='cpu'"),
        ({"speculation": "mtp"}, "use speculation='ngram'"),
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
