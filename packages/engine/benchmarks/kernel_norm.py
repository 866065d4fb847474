"""Times of the kernels between the products: residual, norm, routing, gate. Run it on a GPU: `python kernel_norm.py`.

Few tokens find their rows in L2, as in a step; many are read from memory, and their line gives the share of a copy's
rate. `--tune` prints what other numbers of warps and other tiles take.
"""

import sys
from collections.abc import Callable
from unittest.mock import patch

import torch
import torch.nn.functional as F
from gpu_timing import bytes_line, time_us
from torch import Tensor

from deepseek_engine.kernels.triton import norm, router
from deepseek_engine.kernels.triton.norm import add_rms_norm
from deepseek_engine.kernels.triton.router import TileConfig, add_rms_norm_route, route
from deepseek_engine.kernels.triton.silu_mul import silu_mul
from deepseek_engine.layers.routers import softmax_top_k
from deepseek_engine.model_config import RouterConfig

DEVICE = "cuda"
HIDDEN = 2048
EPS = 1e-5
SEED = RouterConfig(kind="softmax", num_experts=16, num_experts_per_tok=2, norm_topk_prob=True)
LITE = RouterConfig(kind="softmax", num_experts=64, num_experts_per_tok=6)
FEW, MANY = (1, 32, 64, 256), (16384,)


def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Random numbers, larger than no weight is."""
    return torch.randn(*shape, device=DEVICE, dtype=torch.float32).to(dtype)


def variants(make: Callable[[], Callable[[], object]], num_bytes: float) -> list[Callable[[], object]]:
    """The same work on as many inputs as exceed L2 together, 4 to 32."""
    return [make() for _ in range(min(max(int(200e6 / num_bytes), 4), 32))]


def norm_line(num_tokens: int, rows_per_token: int, *, wants_int8: bool, is_torch: bool = False) -> str:
    """Of `add_rms_norm`, or of PyTorch's operators."""
    weight = drawn(HIDDEN)

    def make() -> Callable[[], object]:
        x, rows = drawn(num_tokens, HIDDEN), drawn(num_tokens * rows_per_token, HIDDEN)
        if is_torch:
            return lambda: F.rms_norm(x.add_(rows.view(num_tokens, -1, HIDDEN).sum(1)), (HIDDEN,), weight, EPS)
        return lambda: add_rms_norm(x, weight, EPS, rows=rows, residual=x, wants_int8=wants_int8)

    num_bytes = num_tokens * HIDDEN * (2 * (3 + rows_per_token) + wants_int8)
    name = f"{'torch add + rms_norm' if is_torch else 'add_rms_norm'} T={num_tokens} R={rows_per_token}"
    return bytes_line(name + " +int8" * wants_int8, time_us(variants(make, num_bytes)), num_bytes)


def route_line(num_tokens: int, rule: RouterConfig, dtype: torch.dtype, *, is_torch: bool = False) -> str:
    """Of `route` alone, or of PyTorch's operators."""
    weight = drawn(rule.num_experts, HIDDEN, dtype=dtype) / 8

    def make() -> Callable[[], object]:
        x = drawn(num_tokens, HIDDEN)
        if is_torch:
            return lambda: softmax_top_k(F.linear(x.to(dtype), weight).float(), rule)
        return lambda: route(x, weight, rule)

    num_bytes = num_tokens * HIDDEN * 2 + weight.numel() * weight.element_size()
    name = f"{'torch routing' if is_torch else 'route'} T={num_tokens} E={rule.num_experts} {str(dtype)[6:]}"
    return bytes_line(name, time_us(variants(make, num_bytes)), num_bytes)


def fused_line(num_tokens: int, rule: RouterConfig, dtype: torch.dtype, *, is_fused: bool) -> str:
    """Of `add_rms_norm_route`, or of its two parts."""
    norm_weight, weight = drawn(HIDDEN), drawn(rule.num_experts, HIDDEN, dtype=dtype) / 8
    rows_per_token = rule.num_experts_per_tok

    def make() -> Callable[[], object]:
        x, rows = drawn(num_tokens, HIDDEN), drawn(num_tokens * rows_per_token, HIDDEN)
        if is_fused:
            return lambda: add_rms_norm_route(x, norm_weight, EPS, weight, rule, rows=rows, residual=x)

        def in_two() -> object:
            values = add_rms_norm(x, norm_weight, EPS, rows=rows, residual=x).values
            assert values is not None
            return route(values, weight, rule)

        return in_two

    num_bytes = num_tokens * HIDDEN * 2 * (3 + rows_per_token) + weight.numel() * weight.element_size()
    name = f"{'add_rms_norm_route' if is_fused else 'add_rms_norm, route'} T={num_tokens} E={rule.num_experts}"
    return bytes_line(f"{name} {str(dtype)[6:]}", time_us(variants(make, num_bytes)), num_bytes)


def silu_line(num_tokens: int, size: int, *, wants_int8: bool, is_torch: bool = False) -> str:
    """Of `silu_mul`, or of PyTorch's operators."""

    def make() -> Callable[[], object]:
        gate_up = drawn(num_tokens, 2 * size)
        if is_torch:
            return lambda: F.silu(gate_up[:, :size]) * gate_up[:, size:]
        return lambda: silu_mul(gate_up, wants_values=not wants_int8, wants_int8=wants_int8)

    num_bytes = num_tokens * size * (4 + (1 if wants_int8 else 2))
    name = f"{'torch silu, mul' if is_torch else 'silu_mul'} T={num_tokens} I={size}" + " int8" * wants_int8
    return bytes_line(name, time_us(variants(make, num_bytes)), num_bytes)


def lines() -> list[str]:
    """The table."""
    found: list[str] = []
    for num_tokens in FEW + MANY:
        found += [norm_line(num_tokens, rows_per_token, wants_int8=False) for rows_per_token in (1, 2, 8)]
        found.append(norm_line(num_tokens, 2, wants_int8=True))
        found.append(norm_line(num_tokens, 2, wants_int8=False, is_torch=True))
    for rule, dtype in ((SEED, torch.bfloat16), (LITE, torch.bfloat16), (LITE, torch.float32)):
        for num_tokens in FEW + MANY:
            found.append(route_line(num_tokens, rule, dtype))
            found.append(route_line(num_tokens, rule, dtype, is_torch=True))
            if num_tokens <= router.MAX_FUSED_TOKENS:
                found += [fused_line(num_tokens, rule, dtype, is_fused=is_fused) for is_fused in (True, False)]
    for num_tokens in (256, *MANY):
        for size in (1408, 10944):
            found += [silu_line(num_tokens, size, wants_int8=wants_int8) for wants_int8 in (False, True)]
            found.append(silu_line(num_tokens, size, wants_int8=False, is_torch=True))
    return found


def tuned_lines() -> list[str]:
    """What other settings take."""
    found: list[str] = []
    for num_warps in (2, 4, 8, 16):
        with patch.object(norm, "choose_num_warps", lambda *_, number=num_warps: number):
            found += [f"warps {num_warps:<2} " + norm_line(t, 2, wants_int8=False) for t in (1, 32, MANY[0])]
    for config in (
        TileConfig(64, 64, 4, 4), TileConfig(64, 128, 4, 4), TileConfig(128, 64, 4, 4), TileConfig(128, 64, 8, 4),
        TileConfig(16, 256, 4, 3), TileConfig(32, 128, 4, 4),
    ):  # fmt: skip
        with patch.object(router, "choose_config", lambda *_, config=config: config):
            found += [f"{config} " + route_line(t, LITE, torch.bfloat16) for t in (256, MANY[0])]
    for split in ((16, 1), (16, 2), (16, 4), (8, 8)):
        with patch.object(router, "choose_split", lambda *_, split=split: split):
            found += [f"tile, programs {split} " + fused_line(t, LITE, torch.bfloat16, is_fused=True) for t in (1, 32)]
    return found


if __name__ == "__main__":
    print("\n".join(tuned_lines() if "--tune" in sys.argv else lines()))
