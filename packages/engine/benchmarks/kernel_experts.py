"""The experts' products on a GPU: microseconds beside the bytes or operations needed, and torch's own grouped product.

python benchmarks/kernel_experts.py          # the table
python benchmarks/kernel_experts.py --tune   # every way to cut the launches, for the seed's shape

"seed" is E=16 top-2, "v2-lite" E=64 top-6 with two shared experts as experts 64 and 65; both have
hidden size 2048 and width 1408. Bytes are those of the weights that the batch needs.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final, cast

import torch
import torch.nn.functional as F
from gpu_timing import bytes_line, flops_line, time_us
from torch import Tensor
from triton import OutOfResources

from deepseek_engine.kernels.triton.expert_stream import StreamConfig, multiply_stream
from deepseek_engine.kernels.triton.expert_tiles import TilesConfig, multiply_tiles
from deepseek_engine.kernels.triton.expert_vectors import VectorsConfig, multiply_vectors
from deepseek_engine.kernels.triton.experts import (
    Plan,
    Routing,
    choose_plan,
    down,
    down_int8,
    gate_up,
    gate_up_int8,
    route,
)
from deepseek_engine.kernels.triton.quantize_groups import GROUP_SIZE, QuantizedRows, quantize_groups

HIDDEN: Final = 2048
WIDTH: Final = 1408
NUM_LAYERS: Final = 6
"""Sets of weights to go through in turn: two experts of six layers are more than L2 holds."""

NUM_TOKENS: Final = (1, 2, 8, 32, 64, 256, 2048, 16384)
COMPUTE_BOUND_TOKENS: Final = 2048
FLOAT32_TOKENS: Final = (1, 32, 256)

Launch = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """A model's experts; the last `num_shared` ones are chosen by every token."""

    name: str
    num_experts: int
    top_k: int
    num_shared: int = 0

    def choose(self, num_tokens: int) -> Tensor:
        """Random experts, int32 [T, K]."""
        routed = self.num_experts - self.num_shared
        ids = torch.rand(num_tokens, routed, device="cuda").argsort(1)[:, : self.top_k - self.num_shared]
        shared = torch.arange(routed, self.num_experts, device="cuda").expand(num_tokens, -1)
        return torch.cat((ids, shared), 1).int().contiguous()


SHAPES: Final = (Shape("seed", 16, 2), Shape("v2-lite", 66, 8, 2))


@dataclass(frozen=True)
class Layer:
    """Weights of one layer, and tokens routed to its experts."""

    gate_up: Tensor
    gate_up_scale: Tensor | None
    down: Tensor
    down_scale: Tensor | None
    ids: Tensor
    weights: Tensor


def layers(shape: Shape, dtype: torch.dtype, num_tokens: int, old: list[Layer] | None = None) -> list[Layer]:
    """Layers with random numbers; the weights of `old` ones."""

    def draw(*size: int) -> tuple[Tensor, Tensor | None]:
        if dtype is torch.int8:
            weight = torch.randint(-127, 128, size, dtype=dtype, device="cuda")
            return weight, torch.rand(size[:-1], device="cuda") / 4096
        return torch.randn(size, dtype=dtype, device="cuda").div_(32), None

    found: list[Layer] = []
    for index in range(NUM_LAYERS):
        if old is None:
            first, second = draw(shape.num_experts, 2 * WIDTH, HIDDEN), draw(shape.num_experts, HIDDEN, WIDTH)
        else:
            first, second = (old[index].gate_up, old[index].gate_up_scale), (old[index].down, old[index].down_scale)
        weights = torch.rand(num_tokens, shape.top_k, device="cuda")
        found.append(Layer(*first, *second, shape.choose(num_tokens), weights))
    return found


class Work:
    """A batch through each layer in turn: what to launch, and what it takes."""

    def __init__(self, shape: Shape, layers: list[Layer], x_dtype: torch.dtype, plan: Plan | None = None) -> None:
        self.layers, self.x_dtype = layers, x_dtype
        self.num_pairs = layers[0].ids.numel()
        num_tokens, top_k = layers[0].ids.shape
        dtype = layers[0].gate_up.dtype
        self.plan = plan or choose_plan(num_tokens, top_k, shape.num_experts, x_dtype, dtype)
        self.routings = [route(at.ids, shape.num_experts, x_dtype, at.gate_up.dtype, self.plan) for at in layers]
        self.shape = shape
        float_dtype = torch.float32 if x_dtype is torch.float32 else torch.bfloat16
        x = torch.randn(layers[0].ids.shape[0], HIDDEN, dtype=float_dtype, device="cuda")
        self.rows = torch.empty(self.num_pairs, HIDDEN, dtype=float_dtype, device="cuda")
        if x_dtype is torch.int8:
            self.x: Tensor | QuantizedRows = quantize_groups(x)
            self.act: Tensor | QuantizedRows = quantize_groups(x.new_ones(self.num_pairs, WIDTH))
        else:
            self.x, self.act = x, x.new_ones(self.num_pairs, WIDTH)

    def routes(self) -> list[Launch]:
        """Sorting."""
        return [lambda at=at: self._route(at) for at in self.layers]

    def gate_ups(self) -> list[Launch]:
        """Gate and up."""
        return [lambda at=at, to=to: self._gate_up(at, to) for at, to in zip(self.layers, self.routings, strict=True)]

    def downs(self) -> list[Launch]:
        """Down."""
        return [lambda at=at, to=to: self._down(at, to) for at, to in zip(self.layers, self.routings, strict=True)]

    def line(self, name: str, us: float, out: int, size: int) -> str:
        """A line of the table for a product with matrices [out, size]."""
        num_tokens, dtype = self.layers[0].ids.shape[0], self.layers[0].gate_up.dtype
        name = f"{self.shape.name} {str(dtype)[6:]} x {str(self.x_dtype)[6:]} T={num_tokens} {name} {self.plan.method}"
        name += f"-{self.plan.block_size}" if self.plan.block_size else ""
        if num_tokens >= COMPUTE_BOUND_TOKENS:
            return flops_line(name, us, 2.0 * self.num_pairs * out * size, is_int8=self.x_dtype is torch.int8)
        experts = sum(len(set(cast("list[int]", at.ids.flatten().tolist()))) for at in self.layers) / len(self.layers)
        return bytes_line(name, us, experts * out * size * dtype.itemsize)

    def _route(self, at: Layer) -> object:
        return route(at.ids, self.shape.num_experts, self.x_dtype, at.gate_up.dtype, self.plan)

    def _gate_up(self, at: Layer, routing: Routing) -> object:
        if isinstance(self.x, QuantizedRows):
            assert isinstance(self.act, QuantizedRows)
            assert at.gate_up_scale is not None
            return gate_up_int8(self.x, at.gate_up, at.gate_up_scale, routing, self.act)
        assert isinstance(self.act, Tensor)
        return gate_up(self.x, at.gate_up, at.gate_up_scale, routing, self.act)

    def _down(self, at: Layer, routing: Routing) -> object:
        if isinstance(self.act, QuantizedRows):
            assert at.down_scale is not None
            return down_int8(self.act, at.down, at.down_scale, at.weights, routing, self.rows)
        return down(self.act, at.down, at.down_scale, at.weights, routing, self.rows)


def lines() -> Iterator[str]:
    """The table, line by line as they come."""
    for shape in SHAPES:
        for dtype in (torch.bfloat16, torch.int8):
            weights = layers(shape, dtype, 1)
            for num_tokens in NUM_TOKENS:
                at = layers(shape, dtype, num_tokens, weights)
                if dtype is torch.bfloat16 or num_tokens < COMPUTE_BOUND_TOKENS:
                    yield from _lines_of(Work(shape, at, torch.bfloat16))
                if dtype is torch.int8 and num_tokens >= 8:
                    yield from _lines_of(Work(shape, at, torch.int8))
                if dtype is torch.bfloat16 and num_tokens >= 32:
                    yield from _torch_lines(Work(shape, at, torch.bfloat16))
            del weights
            torch.cuda.empty_cache()
    for num_tokens in FLOAT32_TOKENS:
        yield from _lines_of(Work(SHAPES[0], layers(SHAPES[0], torch.float32, num_tokens), torch.float32))
    for num_tokens in NUM_TOKENS:
        inputs = [torch.randn(num_tokens, HIDDEN, dtype=torch.bfloat16, device="cuda") for _ in range(4)]
        us = time_us([lambda x=x: quantize_groups(x) for x in inputs])
        yield bytes_line(f"quantize_groups T={num_tokens}", us, num_tokens * (3 * HIDDEN + HIDDEN // 32))


def _lines_of(work: Work) -> Iterator[str]:
    if work.plan.block_size:
        num_pairs = work.num_pairs
        yield f"{f'{work.shape.name} sort {num_pairs} pairs':<64} {time_us(work.routes()):>9.1f} us"
    yield work.line("gate_up", time_us(work.gate_ups()), 2 * WIDTH, HIDDEN)
    yield work.line("down", time_us(work.downs()), HIDDEN, WIDTH)


def _torch_lines(work: Work) -> Iterator[str]:
    """PyTorch's grouped product of rows that are gathered in the experts' order, and without the gathering."""
    assert isinstance(work.x, Tensor)
    assert isinstance(work.act, Tensor)
    x, act, top_k = work.x, work.act, work.shape.top_k
    gathered: list[Launch] = []
    first: list[Launch] = []
    second: list[Launch] = []
    for at in work.layers:
        experts = at.ids.flatten()
        order = experts.argsort(stable=True)
        ends = torch.bincount(experts, minlength=work.shape.num_experts).cumsum(0).int()
        gate_up_t, down_t = at.gate_up.transpose(1, 2), at.down.transpose(1, 2)
        sorted_x = x[order // top_k]

        def whole(order: Tensor = order, weight: Tensor = gate_up_t, ends: Tensor = ends) -> object:
            gate, up = F.grouped_mm(x[order // top_k], weight, offs=ends).chunk(2, 1)
            return F.silu(gate) * up

        gathered.append(whole)
        first.append(lambda x=sorted_x, weight=gate_up_t, ends=ends: F.grouped_mm(x, weight, offs=ends))
        second.append(lambda weight=down_t, ends=ends: F.grouped_mm(act, weight, offs=ends))
    yield work.line("torch gather, grouped_mm, silu, mul", time_us(gathered), 2 * WIDTH, HIDDEN)
    yield work.line("torch grouped_mm gate_up", time_us(first), 2 * WIDTH, HIDDEN)
    yield work.line("torch grouped_mm down", time_us(second), HIDDEN, WIDTH)


def tuned_lines() -> Iterator[str]:
    """Every way to cut the launches of the seed's shape."""
    shape = SHAPES[0]
    for dtype in (torch.bfloat16, torch.int8):
        weights = layers(shape, dtype, 1)
        for num_tokens in (1, 8):
            at = layers(shape, dtype, num_tokens, weights)
            tiles = ((2, 2048, 2), (4, 2048, 4), (8, 2048, 4), (8, 1024, 4), (16, 512, 4), (8, 2048, 8), (16, 1024, 8))
            configs = [VectorsConfig(*tile) for tile in tiles]
            yield from _tune(Work(shape, at, torch.bfloat16, Plan("vectors")), configs)
        for num_tokens, block_size in ((8, 0), (32, 0), (64, 0), (64, 16), (256, 32), (256, 64), (512, 128)):
            at = layers(shape, dtype, num_tokens, weights)
            depths = ((64, 3), (64, 5), (128, 2), (128, 3), (128, 4))
            configs = [StreamConfig(n, *depth, 4) for n, depth in product((32, 64, 128), depths)]
            configs += [StreamConfig(128, *depth, 8) for depth in depths]
            yield from _tune(Work(shape, at, torch.bfloat16, Plan("stream", block_size)), configs)
        for num_tokens, block_size in ((32, 0), (64, 0), (256, 32), (256, 64)) if dtype is torch.int8 else ():
            at = layers(shape, dtype, num_tokens, weights)
            cuts = ((64, 3, 4), (64, 4, 4), (128, 2, 4), (128, 3, 4), (128, 4, 4), (128, 3, 8), (128, 4, 8))
            configs = [StreamConfig(n, 128, stages, warps) for n, stages, warps in cuts]
            yield from _tune(Work(shape, at, torch.int8, Plan("stream", block_size)), configs)
        for num_tokens, block_size in ((256, 64), (2048, 64), (2048, 128), (16384, 128)):
            at = layers(shape, dtype, num_tokens, weights)
            if dtype is torch.int8:
                tiles = ((128, 128, 2, 8), (128, 128, 3, 8), (128, 128, 4, 8), (128, 128, 3, 4), (128, 128, 3, 16))
            else:
                tiles = (
                    (128, 64, 3, 8),
                    (128, 64, 4, 8),
                    (256, 64, 3, 8),
                    (256, 64, 4, 8),
                    (128, 64, 3, 4),
                    (64, 64, 4, 4),
                )
            configs = [TilesConfig(*tile, group) for tile, group in product(tiles, (8, 16))]
            x_dtype = torch.int8 if dtype is torch.int8 else torch.bfloat16
            yield from _tune(Work(shape, at, x_dtype, Plan("tiles", block_size)), configs)
        del weights
        torch.cuda.empty_cache()


def _tune(work: Work, configs: list[VectorsConfig] | list[StreamConfig] | list[TilesConfig]) -> Iterator[str]:
    for is_gated, config in product((True, False), configs):
        variants: list[Launch] = [
            lambda at=at, to=to, config=config, is_gated=is_gated: _multiply(work, at, to, config, is_gated=is_gated)
            for at, to in zip(work.layers, work.routings, strict=True)
        ]
        if is_gated and work.x_dtype is torch.int8 and config.block_n != GROUP_SIZE:
            continue  # a tile is one group of the quantised result
        if is_gated and isinstance(config, TilesConfig) and config.block_n > 128:
            continue  # two sums of this size do not fit into registers
        what = f"{'gate_up' if is_gated else 'down'} {tuple(vars_of(config))}"
        try:
            us = time_us(variants, 5)
        except OutOfResources:
            yield f"{what} does not fit"
            continue
        yield work.line(what, us, *((2 * WIDTH, HIDDEN) if is_gated else (HIDDEN, WIDTH)))


def vars_of(config: VectorsConfig | StreamConfig | TilesConfig) -> list[int]:
    """A configuration's numbers."""
    return [getattr(config, name) for name in config.__dataclass_fields__]


def _multiply(
    work: Work,
    at: Layer,
    routing: Routing,
    config: VectorsConfig | StreamConfig | TilesConfig,
    *,
    is_gated: bool,
) -> None:
    weight, scale = (at.gate_up, at.gate_up_scale) if is_gated else (at.down, at.down_scale)
    x, out = (work.x, work.act) if is_gated else (work.act, work.rows)
    factors = None if is_gated else at.weights
    if isinstance(config, TilesConfig):
        assert routing.pairs is not None
        multiply_tiles(x, weight, scale, work.shape.top_k, routing.pairs, factors, out, config)
    elif isinstance(config, StreamConfig):
        multiply_stream(x, weight, scale, at.ids, routing.pairs, factors, out, config)
    else:
        assert isinstance(x, Tensor)
        assert isinstance(out, Tensor)
        multiply_vectors(x, weight, scale, at.ids, factors, out, config)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="time every configuration")
    for line in tuned_lines() if parser.parse_args().tune else lines():
        print(line, flush=True)
