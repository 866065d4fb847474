"""Attention over pages on a GPU: microseconds beside the bytes or operations needed, and torch's own kernels.

python benchmarks/kernel_attention.py                  # the table
python benchmarks/kernel_attention.py --only flash     # blocks of 256: ours beside flash-attn, where it is installed
python benchmarks/kernel_attention.py --tune           # other ways to cut decoding; --tune prefill

The seed's heads: 16 of queries, 8 of keys, 128 features.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, chain, product
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from fresh_prefill import equal_prefill_attention, varlen_prefill_attention
from gpu_timing import bytes_line, flops_line, time_us
from kernel_single_token import NUM_LAYERS, SEED, Layer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.kernels.flash_attention import flash_decode, flash_prefill, plan_flash_chunks
from deepseek_engine.kernels.flash_library import FlashLibrary, load_flash_attention
from deepseek_engine.kernels.paged_kv import PagedKV
from deepseek_engine.kernels.triton.decode_attention import (
    DecodeConfig,
    choose_config,
    decode_attention,
    decode_scratch,
)
from deepseek_engine.kernels.triton.decode_call import DecodeScratch
from deepseek_engine.kernels.triton.prefill_attention import PrefillConfig, prefill_attention
from deepseek_engine.kernels.triton.rope_and_cache import rope_and_cache

Q_HEADS: Final = 16
KV_HEADS: Final = 8
DIM: Final = 128
SCALE: Final = DIM**-0.5
MAX_CONTEXT: Final = 8192
L2_BYTES: Final = 50_000_000
FLASH_BLOCK_SIZE: Final = 256
DECODES: Final = ((1, 256), (1, 8192), (32, 256), (32, 384), (256, 640))
PREFILLS: Final = {
    "16 x 4096": [4096] * 16,
    "32 x 512": [512] * 32,
    "mixed": [37, 4096, 512, 129, 2048, 3000, 64, 1000, 700, 4000],
}

CONFIGS_OF_FEW: Final = (
    DecodeConfig(16, 256, 64, 8),
    DecodeConfig(32, 128, 64, 8),
    DecodeConfig(16, 128, 128, 8),
    DecodeConfig(16, 256, 128, 8),
    DecodeConfig(16, 64, 32, 4, 168),
    DecodeConfig(32, 128, 32, 4, 168),
)
CONFIGS_OF_MANY: Final = (
    DecodeConfig(1, 1024, 32, 4, 168),
    DecodeConfig(2, 128, 32, 4, 168),
    DecodeConfig(2, 1024, 32, 4),
    DecodeConfig(2, 1024, 64, 8),
    DecodeConfig(2, 1024, 64, 4),
    DecodeConfig(2, 1024, 16, 4, 128),
    DecodeConfig(4, 64, 32, 4, 168),
)
PREFILL_TILES: Final = (
    PrefillConfig(128, 64, 8, 4),
    PrefillConfig(128, 64, 8, 6),
    PrefillConfig(128, 128, 8, 4),
    PrefillConfig(64, 64, 4, 4),
    PrefillConfig(64, 64, 4, 6),
    PrefillConfig(64, 32, 4, 4),
)

Launch = Callable[[], object]


class Pages(NamedTuple):
    """A layer's cache with sequences in it."""

    kv: PagedKV
    tables: Tensor
    contexts: Tensor
    angles: Tensor


def pages(contexts: Sequence[int], dtype: torch.dtype, *, is_int8: bool = False, block_size: int = 16) -> Pages:
    """A cache of random numbers whose sequences lie in shuffled blocks; room for MAX_CONTEXT or more in the tables."""
    counts = [-(-context // block_size) for context in contexts]
    num_blocks = sum(counts)
    blocks = torch.randperm(num_blocks, device="cuda", dtype=torch.int32)
    tables = torch.zeros(len(contexts), max(MAX_CONTEXT // block_size, *counts), dtype=torch.int32, device="cuda")
    for row, (end, count) in enumerate(zip(accumulate(counts), counts, strict=True)):
        tables[row, :count] = blocks[end - count : end]
    shape = (num_blocks * block_size, KV_HEADS, DIM)
    if is_int8:
        keys, values = (torch.randint(-127, 128, shape, dtype=torch.int8, device="cuda") for _ in range(2))
        scales = (torch.rand(shape[:2], device="cuda") / 64 for _ in range(2))
        kv = PagedKV(keys, values, block_size, *scales)
    else:
        kv = PagedKV(*(torch.randn(shape, dtype=dtype, device="cuda") for _ in range(2)), block_size)
    angles = torch.rand(MAX_CONTEXT + 1, 2, DIM, device="cuda")
    return Pages(kv, tables, torch.tensor(contexts, dtype=torch.int32, device="cuda"), angles)


def qkv_of(num_tokens: int, dtype: torch.dtype) -> Tensor:
    """The fused projection's output."""
    return torch.randn(num_tokens, (Q_HEADS + 2 * KV_HEADS) * DIM, dtype=dtype, device="cuda")


def decode_bytes(batch: int, context: int, dtype: torch.dtype, *, is_int8: bool) -> int:
    """Keys and values, and what goes in and out."""
    head_bytes = DIM + 4 if is_int8 else DIM * dtype.itemsize
    return batch * (2 * context * KV_HEADS * head_bytes + 2 * (Q_HEADS + KV_HEADS) * DIM * dtype.itemsize)


def caches(batch: int, context: int, dtype: torch.dtype, *, is_int8: bool = False, block_size: int = 16) -> list[Pages]:
    """As many that L2 holds none until its turn comes again."""
    count = max(1, min(128, 2 * L2_BYTES // decode_bytes(batch, context, dtype, is_int8=is_int8) + 1))
    return [pages([context] * batch, dtype, is_int8=is_int8, block_size=block_size) for _ in range(count)]


def decodes(all_pages: Sequence[Pages], dtype: torch.dtype, config: DecodeConfig | None = None) -> list[Launch]:
    """The launch on each of the caches."""
    batch, kv = len(all_pages[0].contexts), all_pages[0].kv
    qkv = qkv_of(batch, dtype)
    scratch = decode_scratch(batch, Q_HEADS, kv, MAX_CONTEXT, dtype.itemsize)
    if config is not None:
        rows = batch * config.num_splits * Q_HEADS
        partials, totals = (torch.empty(rows * size, dtype=torch.float32, device="cuda") for size in (DIM, 2))
        scratch = replace(scratch, partials=partials, totals=totals)

    def launch(of: Pages) -> Launch:
        return lambda: decode_attention(
            qkv, of.kv, of.tables, of.contexts, scratch, scale=SCALE, cos_sin=of.angles, config=config
        )

    return [launch(of) for of in all_pages]


def torch_decodes(batch: int, context: int, dtype: torch.dtype, backend: SDPBackend) -> list[Launch]:
    """SDPA over keys and values that lie side by side, each sequence of the same length; no rotation, no write."""
    num_caches = max(1, min(128, 2 * L2_BYTES // decode_bytes(batch, context, dtype, is_int8=False) + 1))
    q = torch.randn(batch, Q_HEADS, 1, DIM, dtype=dtype, device="cuda")

    def launch(k: Tensor, v: Tensor) -> Launch:
        def call() -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, scale=SCALE, enable_gqa=True)

        return call

    shape = (batch, KV_HEADS, context, DIM)
    return [launch(*(torch.randn(shape, dtype=dtype, device="cuda") for _ in range(2))) for _ in range(num_caches)]


def decode_lines() -> Iterator[str]:
    """Decoding: the bytes bound it."""
    for batch, context in DECODES:
        shape = f"{batch} x {context}"
        for name, dtype, is_int8, block_size in (
            ("bfloat16", torch.bfloat16, False, 16),
            ("bfloat16, blocks of 256", torch.bfloat16, False, 256),
            ("bfloat16, INT8 cache", torch.bfloat16, True, 16),
            ("float32", torch.float32, False, 16),
        ):
            us = time_us(decodes(caches(batch, context, dtype, is_int8=is_int8, block_size=block_size), dtype))
            yield bytes_line(f"decode {shape} {name}", us, decode_bytes(batch, context, dtype, is_int8=is_int8))
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            us = time_us(torch_decodes(batch, context, torch.bfloat16, backend))
            num_bytes = decode_bytes(batch, context, torch.bfloat16, is_int8=False)
            yield bytes_line(f"decode {shape} bfloat16, SDPA {backend.name}, attention alone", us, num_bytes)


def chain_lines() -> Iterator[str]:
    """One token through layers in one graph: what attention adds there, since launches overlap only in a chain."""
    dtype = torch.bfloat16
    for context in (256, 8192):
        all_pages = [pages([context], dtype) for _ in range(NUM_LAYERS)]
        scratch = decode_scratch(1, Q_HEADS, all_pages[0].kv, MAX_CONTEXT, dtype.itemsize)

        def attend(layer: Layer, of: Pages, scratch: DecodeScratch = scratch) -> None:
            layer.project()
            qkv = layer.projected[None]
            attended = decode_attention(qkv, of.kv, of.tables, of.contexts, scratch, scale=SCALE, cos_sin=of.angles)
            layer.finish_attention(attended[0])

        def attend_and_feed(layer: Layer, of: Pages, attend: Callable[[Layer, Pages], None] = attend) -> None:
            attend(layer, of)
            layer.expand()
            layer.contract()

        for form in ("bfloat16", "int8"):
            layers = [Layer(SEED, form) for _ in range(NUM_LAYERS)]
            num_bytes = (SEED.qkv + SEED.attended) * SEED.hidden * (1 if form == "int8" else 2)
            num_bytes += decode_bytes(1, context, dtype, is_int8=False)
            us = time_us([partial(attend, layer, of) for layer, of in zip(layers, all_pages, strict=True)])
            yield bytes_line(f"chain 1 x {context}, {form}: projection, attention, projection", us, num_bytes)
            us = time_us([partial(Layer.project, layer) for layer in layers])
            others = time_us([partial(Layer.finish_attention, layer) for layer in layers])
            yield f"    of which both projections alone {us + others:.1f} us"
            without = time_us([partial(Layer.run, layer) for layer in layers])
            us = time_us([partial(attend_and_feed, layer, of) for layer, of in zip(layers, all_pages, strict=True)])
            yield f"    a layer {us:.1f} us, without attention {without:.1f} us: attention costs {us - without:.1f} us"


def cache_lines() -> Iterator[str]:
    """Rotation and the cache write of prompt chunks."""
    for num_tokens, is_int8 in product((32, 8192, 16384), (False, True)):
        dtype = torch.bfloat16
        of = pages([num_tokens], dtype, is_int8=is_int8)
        positions = torch.arange(num_tokens, dtype=torch.int32, device="cuda") % MAX_CONTEXT
        slots = torch.randperm(num_tokens, device="cuda")
        inputs = [qkv_of(num_tokens, dtype) for _ in range(4)]
        us = time_us([partial(rope_and_cache, qkv, of.kv, positions, slots, of.angles) for qkv in inputs])
        written = Q_HEADS * DIM * 2 + 2 * KV_HEADS * (DIM + 4 if is_int8 else DIM * 2)
        yield bytes_line(
            f"rope and cache, {num_tokens} tokens{', INT8 cache' if is_int8 else ''}", us,
            num_tokens * (written + (Q_HEADS + 2 * KV_HEADS) * DIM * 2),
        )  # fmt: skip


def prefill_operations(lengths: Sequence[int]) -> int:
    """Of the two products, the masked half left out."""
    return sum(2 * length * (length + 1) * DIM * Q_HEADS for length in lengths)


def prefill_lines() -> Iterator[str]:
    """Whole prompts by the three ways: over pages, and side by side by flash attention and by cuDNN."""
    dtype = torch.bfloat16
    for name, lengths in PREFILLS.items():
        num_tokens, longest = sum(lengths), max(lengths)
        begins = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device="cuda")
        q, k, v = (
            x.view(num_tokens, -1, DIM)
            for x in qkv_of(num_tokens, dtype).split((Q_HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM), dim=1)
        )
        queries, operations = q.contiguous(), prefill_operations(lengths)
        for is_int8, block_size in ((False, 16), (False, 256), (True, 16)):
            us = time_us(
                [paged_prefill(queries, pages(lengths, dtype, is_int8=is_int8, block_size=block_size), begins)]
            )
            yield flops_line(
                f"prefill {name}, blocks of {block_size}{', INT8 cache' if is_int8 else ''}", us, operations
            )
        us = time_us([
            lambda q=queries, k=k, v=v, begins=begins, longest=longest: varlen_prefill_attention(
                q, k, v, begins, max_seqlen=longest, scale=SCALE
            )
        ])  # fmt: skip
        yield flops_line(f"prefill {name}, varlen_attn", us, operations)
        if len(set(lengths)) == 1:
            count = len(lengths)
            us = time_us([
                lambda q=queries, k=k, v=v, count=count: equal_prefill_attention(
                    q, k, v, num_sequences=count, scale=SCALE
                )
            ])  # fmt: skip
            yield flops_line(f"prefill {name}, cuDNN", us, operations)


def paged_prefill(queries: Tensor, of: Pages, begins: Tensor, config: PrefillConfig | None = None) -> Launch:
    """The launch, each sequence new from its first token on."""
    longest = int(of.contexts.max())
    return lambda: prefill_attention(
        queries, of.kv, of.tables, begins, of.contexts, None, max_seqlen_q=longest, scale=SCALE, config=config
    )


def flash_lines() -> Iterator[str]:
    """Blocks of 256: our kernels beside flash-attn behind our rotation and cache write, which our decoding includes."""
    try:
        library = load_flash_attention()
    except ModelLoadError as error:
        yield f"flash-attn: {error}"
        return
    dtype, block_size = torch.bfloat16, FLASH_BLOCK_SIZE
    for batch, context in DECODES:
        all_pages = caches(batch, context, dtype, block_size=block_size)
        num_bytes, shape = decode_bytes(batch, context, dtype, is_int8=False), f"decode {batch} x {context}"
        yield bytes_line(f"{shape}, ours with rotation and cache write", time_us(decodes(all_pages, dtype)), num_bytes)
        q, qkv = torch.randn(batch, Q_HEADS, DIM, dtype=dtype, device="cuda"), qkv_of(batch, dtype)
        alone = [partial(flash_of, library, q, of) for of in all_pages]
        yield bytes_line(f"{shape}, flash-attn {library.version}, attention alone", time_us(alone), num_bytes)
        slots = torch.arange(batch, dtype=torch.int32, device="cuda")
        whole = [partial(rotate_and_flash, library, qkv, slots, of) for of in all_pages]
        yield bytes_line(f"{shape}, flash-attn with rotation and cache write", time_us(whole), num_bytes)
        del all_pages, alone, whole
    for name, lengths in PREFILLS.items():
        begins = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device="cuda")
        queries = torch.randn(sum(lengths), Q_HEADS, DIM, dtype=dtype, device="cuda")
        of, operations = pages(lengths, dtype, block_size=block_size), prefill_operations(lengths)
        us = time_us([paged_prefill(queries, of, begins)])
        yield flops_line(f"prefill {name}, ours, attention alone", us, operations)
        chunks = plan_flash_chunks(begins, of.contexts, of.tables, max(lengths), is_padded=False)
        us = time_us([partial(flash_prefill, library, queries, of.kv, chunks, scale=SCALE)])
        yield flops_line(f"prefill {name}, flash-attn {library.version}, attention alone", us, operations)


def flash_of(library: FlashLibrary, q: Tensor, of: Pages) -> Tensor:
    """Attention over keys that are cached."""
    return flash_decode(library, q, of.kv, of.tables, of.contexts, scale=SCALE)


def rotate_and_flash(library: FlashLibrary, qkv: Tensor, slots: Tensor, of: Pages) -> Tensor:
    """What a layer launches between its projections."""
    return flash_of(library, rope_and_cache(qkv, of.kv, of.contexts, slots, of.angles), of)


def lines() -> Iterator[str]:
    """The whole table."""
    return chain(decode_lines(), chain_lines(), cache_lines(), prefill_lines(), flash_lines())


def decode_tuning_lines() -> Iterator[str]:
    """Other ways to cut the launches of decoding; the chosen one first."""
    dtype = torch.bfloat16
    for (batch, context), is_int8 in (*product(DECODES, (False,)), ((256, 640), True)):
        all_pages = caches(batch, context, dtype, is_int8=is_int8)
        chosen = choose_config(batch, all_pages[0].kv, MAX_CONTEXT, dtype.itemsize)
        for config in (chosen, *(CONFIGS_OF_FEW if batch == 1 else CONFIGS_OF_MANY)):
            us = time_us(decodes(all_pages, dtype, config))
            name = f"decode {batch} x {context}{' int8' if is_int8 else ''}"
            shares = f"{config.num_splits} of {config.min_split} or more"
            tiles = f"n{config.block_n} w{config.num_warps} r{config.max_registers}"
            yield bytes_line(f"{name}, {shares}, {tiles}", us, decode_bytes(batch, context, dtype, is_int8=is_int8))


def prefill_tuning_lines() -> Iterator[str]:
    """Prompts by their tiles."""
    dtype = torch.bfloat16
    for (name, lengths), is_int8 in product(PREFILLS.items(), (False, True)):
        begins = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device="cuda")
        queries = torch.randn(sum(lengths), Q_HEADS, DIM, dtype=dtype, device="cuda")
        of = pages(lengths, dtype, is_int8=is_int8)
        for config in PREFILL_TILES:
            us = time_us([paged_prefill(queries, of, begins, config)])
            tiles = f"m{config.block_m} n{config.block_n} w{config.num_warps} s{config.num_stages}"
            yield flops_line(f"prefill {name}{' int8' if is_int8 else ''}, {tiles}", us, prefill_operations(lengths))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tuned = ("decode", "prefill")
    parser.add_argument("--tune", nargs="?", const="decode", choices=tuned, help="time other ways to cut launches")
    parser.add_argument("--only", choices=("flash",), help="these lines alone")
    options = parser.parse_args()
    tables = {None: lines, "decode": decode_tuning_lines, "prefill": prefill_tuning_lines, "flash": flash_lines}
    for line in tables[options.only or options.tune]():
        print(line, flush=True)
