"""No step needs a kernel that the start has not compiled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepseek_engine.gpu_warm_up import token_counts

COMPILE_TWICE = """
import torch, triton
from deepseek_engine.kernels.triton.compile_ahead import compile_ahead
from deepseek_engine.kernels.triton.embedding import embed
from deepseek_engine.testing.kernel_variants import PretendedH100

triton.runtime.driver.set_active(PretendedH100())
tokens, sampled = torch.zeros(3, dtype=torch.int32), torch.zeros(3, dtype=torch.int64)
for _ in range(2):
    with compile_ahead(torch.device("cpu")) as compilation:
        for size in (64, 128, 128):
            out = embed(tokens, None, sampled, torch.ones(5, size))
    print(compilation.num_kernels)
"""


CASES = [("tiny-moe", "none"), ("tiny-moe", "int8"), ("tiny-v2", "none"), ("tiny-v3", "none")]


@pytest.mark.parametrize(("shape", "quantization"), CASES)
def test_steps_of_any_size_and_mix_find_their_kernels_compiled(shape: str, quantization: str) -> None:
    script = Path(__file__).with_name("uncompiled_variants.py")
    first, *others = run_compiling(str(script), shape, quantization)
    assert int(first.split()[0]) > 40
    assert others == []


def test_a_kernel_is_compiled_once_and_then_known(tmp_path: Path) -> None:
    assert run_compiling("-c", COMPILE_TWICE, TRITON_CACHE_DIR=str(tmp_path)) == ["2", "0"]


def run_compiling(*arguments: str, **variables: str) -> list[str]:
    """Lines that Python prints where kernels are compiled rather than interpreted, and there is no GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, *arguments],
        env=environment | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | variables,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_counts_reach_the_largest_step_and_both_sides_of_every_power_of_two() -> None:
    counts = token_counts(300)
    assert counts[0] == 1
    assert counts[-1] == 300
    assert {63, 64, 65, 127, 128, 129, 255, 256, 257} <= set(counts)
