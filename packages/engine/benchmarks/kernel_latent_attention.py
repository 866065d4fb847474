"""Times of the kernels of multi-head latent attention, at DeepSeek-V2-Lite's sizes, beside torch's own ways.

`--tune` times other tiles as well. Run on a GPU: `python packages/engine/benchmarks/kernel_latent_attention.py`.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import torch
import torch.nn.functional as F
from gpu_timing import bytes_line, flops_line, time_us
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

from deepseek_engine.kernels.latent_prefill_plan import LatentChunks, plan_latent_prefill
from deepseek_engine.kernels.triton.latent_decode import (
    LatentDecodeConfig,
    choose_config,
    decode_counters,
    latent_decode_attention,
)
from deepseek_engine.kernels.triton.latent_prefill import LatentPrefillConfig, latent_prefill_attention
from deepseek_engine.kernels.triton.latent_prepare import latent_prepare
from deepseek_engine.kernels.triton.latent_projections import absorb_query, expand_values
from deepseek_engine.kernels.triton.launch import num_multiprocessors
from deepseek_engine.layers.rotary import rotary_table
from deepseek_engine.model_config import LatentConfig, RopeConfig

CONFIG = LatentConfig(
    num_attention_heads=16, q_lora_rank=None, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64,
    v_head_dim=128, softmax_scale=0.1147,
)  # fmt: skip
BLOCK_SIZE = 16
L2_BYTES = 120 << 20
"""Rotating inputs take this much at least: more than twice the cache."""

DECODES = ((1, 256), (1, 8192), (32, 512), (256, 640))
PREFILLS = ((16, 4096), (32, 512))


def randn(*shape: int) -> Tensor:
    """Bfloat16 on the GPU."""
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def copies(num_bytes: int) -> int:
    """Of an input that a call reads, so that none is in L2 when its turn comes; 512 at most."""
    return max(2, min(512, L2_BYTES // num_bytes + 1))


def decode_calls(
    num_rows: int, context: int, room: int, config: LatentDecodeConfig | None = None, num_heads: int = 16
) -> list[Callable[[], object]]:
    """Decode attention of rows of one length, on caches of their own; block tables have `room` tokens."""
    blocks_a_row = -(-context // BLOCK_SIZE)
    counters = decode_counters(torch.device("cuda"))
    lengths = torch.full((num_rows,), context, dtype=torch.int32, device="cuda")
    q = randn(num_rows, num_heads, CONFIG.latent_dim)

    def call(cache: Tensor, tables: Tensor) -> Callable[[], object]:
        return lambda: latent_decode_attention(
            q, cache, tables, lengths, BLOCK_SIZE, CONFIG.softmax_scale, CONFIG.kv_lora_rank, counters, config
        )

    calls: list[Callable[[], object]] = []
    for _ in range(copies(num_rows * context * CONFIG.latent_dim * 2)):
        cache = randn(num_rows * blocks_a_row * BLOCK_SIZE, CONFIG.latent_dim)
        tables = torch.zeros(num_rows, room // BLOCK_SIZE, dtype=torch.int32, device="cuda")
        order = torch.randperm(num_rows * blocks_a_row, device="cuda", dtype=torch.int32)
        tables[:, :blocks_a_row] = order.view(num_rows, -1)
        calls.append(call(cache, tables))
    return calls


def decode_lines() -> Iterator[str]:
    """Decode attention, with block tables of 8192 tokens as a server captures them."""
    for num_rows, context in DECODES:
        num_bytes = num_rows * context * CONFIG.latent_dim * 2
        us = time_us(decode_calls(num_rows, context, 8192))
        yield bytes_line(f"latent decode, 16 heads, {num_rows} x {context}", us, num_bytes)
    us = time_us(decode_calls(64, 1024, 8192, num_heads=128))
    yield bytes_line("latent decode, 128 heads, 64 x 1024", us, 64 * 1024 * CONFIG.latent_dim * 2)


def tuned_decode_lines() -> Iterator[str]:
    """Decode attention cut otherwise: by the last program alone, fewer spans, other tiles."""
    processors = num_multiprocessors(torch.device("cuda"))
    for num_rows, context in DECODES:
        chosen = choose_config(num_rows, 16, CONFIG.kv_lora_rank, 8192, torch.bfloat16, processors)
        ways = product((True, False), (1, 2, 4)) if chosen.splits > 1 else [(False, 1)]
        tiles = ((64, 2), (64, 1), (32, 2), (32, 3))
        candidates = {
            replace(
                chosen, meet=meet, splits=chosen.splits // share, block_n=block_n, num_stages=stages, num_warps=warps
            )
            for (meet, share), (block_n, stages), warps in product(ways, tiles, (4, 8))
        }
        if chosen.splits == 1:
            candidates |= {replace(config, splits=2) for config in candidates}
        for config in sorted(candidates, key=repr):
            us = time_us(decode_calls(num_rows, context, 8192, config))
            combining = "together" if config.meet else "the last"
            tile = f"{config.block_n} tokens, {config.num_warps} warps, {config.num_stages} stages"
            yield f"latent decode {num_rows} x {context} {us:>9.1f} us: {config.splits} spans, {combining}, {tile}"


def around_lines() -> Iterator[str]:
    """What is around decode attention: norm, rotation and cache write; the projections."""
    heads, nope, rank = CONFIG.num_attention_heads, CONFIG.qk_nope_head_dim, CONFIG.kv_lora_rank
    table = rotary_table(RopeConfig(dim=CONFIG.qk_rope_head_dim, theta=1e4), 8192, torch.float32, torch.device("cuda"))
    norm = randn(rank)
    for num_tokens in (1, 32, 256, 8192):
        projected = randn(num_tokens, heads * CONFIG.qk_head_dim + CONFIG.latent_dim)
        q, latent = projected.split([heads * CONFIG.qk_head_dim, CONFIG.latent_dim], dim=1)
        q = q.view(num_tokens, heads, CONFIG.qk_head_dim)
        positions = torch.arange(num_tokens, device="cuda") % 8192
        slots = torch.randperm(num_tokens, device="cuda")
        cache = randn(num_tokens, CONFIG.latent_dim)
        query = randn(num_tokens, heads, CONFIG.latent_dim)
        inputs = (q, latent, norm, 1e-6, positions, slots, table, cache, query[..., rank:])
        us = time_us([lambda inputs=inputs: latent_prepare(*inputs)] * 8)
        num_bytes = num_tokens * 2 * 2 * (CONFIG.latent_dim + heads * CONFIG.qk_rope_head_dim)
        yield bytes_line(f"latent prepare, {num_tokens} tokens", us, num_bytes)

        attended = randn(num_tokens, heads, rank)
        weights = [randn(heads, nope + CONFIG.v_head_dim, rank) for _ in range(copies(heads * nope * rank * 2))]
        rows = q[..., :nope]
        weight_bytes = heads * nope * rank * 2
        moved = weight_bytes + num_tokens * heads * (nope + rank) * 2
        us = time_us([lambda w=w, r=rows, o=query: absorb_query(r, w[:, :nope], o[..., :rank]) for w in weights])
        yield bytes_line(f"absorb query, {num_tokens} tokens", us, moved)
        us = time_us([lambda w=w, a=attended: expand_values(a, w[:, nope:]) for w in weights])
        yield bytes_line(f"expand values, {num_tokens} tokens", us, moved)
        if num_tokens == 1:
            out = torch.empty(heads, 1, rank, device="cuda", dtype=torch.bfloat16)
            us = time_us([lambda w=w, r=rows, o=out: torch.bmm(r.transpose(0, 1), w[:, :nope], out=o) for w in weights])
            yield bytes_line("absorb query with torch.bmm, 1 token", us, moved)


def prefill_calls(
    num_sequences: int, length: int, tiles: LatentPrefillConfig | None = None
) -> list[Callable[[], object]]:
    """Fresh prompts, expansion included, two inputs."""
    num_tokens, heads = num_sequences * length, CONFIG.num_attention_heads
    blocks = torch.randperm(num_tokens // BLOCK_SIZE, device="cuda", dtype=torch.int32).view(num_sequences, -1)
    first_rows = list(range(0, num_tokens + 1, length))
    chunks = LatentChunks(first_rows, [length] * num_sequences, [], blocks, BLOCK_SIZE)
    plan = plan_latent_prefill(chunks, CONFIG, torch.bfloat16, workspace_bytes=1 << 30)
    kv_b = randn(heads * (CONFIG.qk_nope_head_dim + CONFIG.v_head_dim), CONFIG.kv_lora_rank)
    counters = decode_counters(torch.device("cuda"))
    inputs = [(randn(num_tokens, heads, CONFIG.qk_head_dim), randn(num_tokens, CONFIG.latent_dim)) for _ in range(2)]
    return [
        lambda q=q, cache=cache: latent_prefill_attention(q, cache, kv_b, plan, CONFIG, counters, tiles)
        for q, cache in inputs
    ]


def attention_flops(num_sequences: int, length: int) -> float:
    """Operations of causal attention with expanded keys."""
    pairs = num_sequences * length * (length + 1) / 2
    return 2 * pairs * CONFIG.num_attention_heads * (CONFIG.qk_head_dim + CONFIG.v_head_dim)


def expansion_flops(num_tokens: int) -> float:
    """Operations of expanding keys and values."""
    width = CONFIG.qk_nope_head_dim + CONFIG.v_head_dim
    return 2.0 * num_tokens * CONFIG.num_attention_heads * width * CONFIG.kv_lora_rank


def prefill_lines() -> Iterator[str]:
    """Prefill attention of fresh prompts, and torch's attention on keys that are expanded already."""
    heads, qk_dim, v_dim = CONFIG.num_attention_heads, CONFIG.qk_head_dim, CONFIG.v_head_dim
    for num_sequences, length in PREFILLS:
        shape, operations = f"{num_sequences} x {length}", attention_flops(num_sequences, length)
        num_tokens = num_sequences * length
        us = time_us(prefill_calls(num_sequences, length))
        yield flops_line(f"latent prefill, {shape}, with expansion", us, operations + expansion_flops(num_tokens))

        latents, kv_b = randn(num_tokens, CONFIG.latent_dim), randn(heads * 2 * v_dim, CONFIG.kv_lora_rank)
        us = time_us([lambda x=latents, w=kv_b: F.linear(x[:, : CONFIG.kv_lora_rank], w)] * 2)
        yield flops_line(f"  of this the expansion, {shape}", us, expansion_flops(num_tokens))

        q, k = (randn(num_sequences, length, heads, qk_dim).transpose(1, 2) for _ in range(2))
        v = randn(num_sequences, length, heads, v_dim).transpose(1, 2)
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            us = time_us(
                [lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.1147)] * 2
            )
        yield flops_line(f"SDPA cuDNN, expanded already, {shape}", us, operations)

        starts = torch.arange(0, num_tokens + 1, length, dtype=torch.int32, device="cuda")
        flat_q, flat_k, padded_v = (randn(num_tokens, heads, qk_dim) for _ in range(3))
        us = time_us(
            [
                lambda q=flat_q, k=flat_k, v=padded_v, s=starts, n=length: varlen_attn(
                    q, k, v, s, s, n, n, scale=0.1147, window_size=(-1, 0)
                )
            ]
            * 2
        )
        yield flops_line(f"varlen_attn, values padded to 192, expanded already, {shape}", us, operations)


def tuned_prefill_lines() -> Iterator[str]:
    """Prefill attention in other tiles."""
    tiles = (
        (64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 4, 2), (128, 64, 8, 2), (128, 64, 8, 3), (128, 128, 8, 2),
        (128, 32, 8, 3), (64, 32, 4, 3),
    )  # fmt: skip
    for num_sequences, length in PREFILLS:
        for block_m, block_n, num_warps, num_stages in tiles:
            config = LatentPrefillConfig(block_m, block_n, num_warps, num_stages)
            us = time_us(prefill_calls(num_sequences, length, config))
            operations = attention_flops(num_sequences, length) + expansion_flops(num_sequences * length)
            tile = f"{block_m} x {block_n}, {num_warps} warps, {num_stages} stages"
            yield flops_line(f"latent prefill {num_sequences} x {length}: {tile}", us, operations)


def lines() -> list[str]:
    """All measurements."""
    return [*decode_lines(), *around_lines(), *prefill_lines()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tune", action="store_true", help="time other tiles as well")
    arguments = parser.parse_args()
    for group in (decode_lines, around_lines, prefill_lines):
        for line in group():
            print(line, flush=True)
    if arguments.tune:
        for group in (tuned_decode_lines, tuned_prefill_lines):
            for line in group():
                print(line, flush=True)
