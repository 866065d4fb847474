import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "transformers", "huggingface_hub"}


@pytest.mark.parametrize(
    "module",
    [
        "deepseek_engine.scheduler",
        "deepseek_engine.kv_cache.block_allocator",
        "deepseek_engine.engine",
        "deepseek_engine.core_process",
        "deepseek_engine.async_engine",
        "deepseek_engine.server.command",
        "deepseek_engine.testing.fake_runner",
    ],
)
def test_scheduling_and_the_api_process_load_no_torch_and_no_hub(module: str):
    program = f"import sys, {module}; print(sorted({HEAVY} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
