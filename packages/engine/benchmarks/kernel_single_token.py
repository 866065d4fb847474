"""One token through the layers of seed-3.4b and v2-lite without attention: each launch, and the chain in one graph.

`python packages/engine/benchmarks/kernel_single_token.py`, on a CUDA device.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from gpu_timing import bytes_line, time_us
from torch import Tensor

from deepseek_engine.kernels.triton import launch
from deepseek_engine.kernels.triton import single_token as fused
from deepseek_engine.model_config import RouterConfig
from deepseek_engine.quantization.int8 import quantize_rows

NUM_LAYERS = 20
FORMATS = ("float32", "bfloat16", "int8")


@dataclass(frozen=True, slots=True)
class Shape:
    """What one layer multiplies with."""

    hidden: int
    qkv: int
    attended: int
    width: int
    vocab: int
    routing: RouterConfig
    num_shared: int


SEED = Shape(2048, 4096, 2048, 1408, 102400, RouterConfig(
    kind="softmax", num_experts=16, num_experts_per_tok=2, norm_topk_prob=True), 0)  # fmt: skip
LITE = Shape(2048, 3648, 2048, 1408, 102400, RouterConfig(
    kind="softmax", num_experts=64, num_experts_per_tok=6), 2)  # fmt: skip


class Layer:
    """Random weights of one layer, and its launches."""

    def __init__(self, shape: Shape, form: str) -> None:
        self.shape = shape
        dtype = torch.float32 if form == "float32" else torch.bfloat16
        experts = shape.routing.num_experts + shape.num_shared
        places = shape.routing.num_experts_per_tok + shape.num_shared
        self.x, self.middle, self.out = (torch.randn(shape.hidden, device="cuda", dtype=dtype) for _ in range(3))
        self.gain = torch.ones(shape.hidden, device="cuda", dtype=dtype)
        self.projected = torch.randn(shape.qkv, device="cuda", dtype=dtype)
        self.qkv = _weight(form, shape.qkv, shape.hidden)
        self.output = _weight(form, shape.hidden, shape.attended)
        self.gate_up = _weight(form, experts, 2 * shape.width, shape.hidden)
        self.down = _weight(form, experts, shape.hidden, shape.width)
        self.router = torch.randn(shape.routing.num_experts, shape.hidden, device="cuda", dtype=dtype) * 0.02
        self.routing = fused.RouterWeights(shape.routing, self.gain, 1e-5, self.router, None)
        self.choice = fused.make_choice(shape.routing, shape.num_shared, self.x.device)
        self.act = torch.empty(places, shape.width, device="cuda")
        self.run()

    def project(self) -> None:
        """Norm and projection in."""
        fused.norm_linear(self.x, *self.qkv, None, self.gain, 1e-5, self.projected)

    def finish_attention(self, attended: Tensor | None = None) -> None:
        """Output projection, residual, choice of experts."""
        attended = self.projected[: self.shape.attended] if attended is None else attended
        fused.linear_residual(attended, *self.output, None, self.x, self.middle, self.routing, self.choice)

    def expand(self) -> None:
        """Gate and up."""
        fused.gate_up(
            self.middle, self.gain, 1e-5, *self.gate_up, None, self.act, self.choice, self.down[0]
        )  # fmt: skip

    def contract(self) -> None:
        """Down and residual."""
        fused.down(self.act, *self.down, None, self.middle, self.out, self.choice)

    def run(self) -> None:
        """The whole layer without attention."""
        self.project()
        self.finish_attention()
        self.expand()
        self.contract()


def _weight(form: str, *shape: int) -> tuple[Tensor, Tensor | None]:
    values = torch.randn(*shape, device="cuda") * 0.02
    if form == "int8":
        return quantize_rows(values)
    return values.to(getattr(torch, form)), None


def lines(shape: Shape, form: str) -> Iterator[str]:
    """Microseconds and bandwidth of each launch and of the chain."""
    itemsize = {"float32": 4, "bfloat16": 2, "int8": 1}[form]
    layers = [Layer(shape, form) for _ in range(NUM_LAYERS)]
    places = shape.routing.num_experts_per_tok + shape.num_shared
    sizes: dict[str, int] = {
        "project": shape.qkv * shape.hidden,
        "finish_attention": shape.hidden * shape.attended,
        "expand": places * 2 * shape.width * shape.hidden,
        "contract": places * shape.width * shape.hidden,
    }
    for name, size in sizes.items():
        calls: list[Callable[[], object]] = [getattr(layer, name) for layer in layers]
        yield bytes_line(f"{form} {name}", time_us(calls), size * itemsize)
    chain = time_us([layer.run for layer in layers])
    yield bytes_line(f"{form} layer without attention", chain, sum(sizes.values()) * itemsize)
    del layers
    head_form = "float32" if form == "float32" else "bfloat16"
    heads = [_weight(head_form, shape.vocab, shape.hidden) for _ in range(2)]
    x = torch.randn(shape.hidden, device="cuda", dtype=heads[0][0].dtype)
    out = torch.empty(shape.vocab, device="cuda", dtype=x.dtype)
    us = time_us([lambda head=head: fused.norm_linear(x, *head, None, x, 1e-5, out) for head in heads])
    yield bytes_line(f"{form} head", us, heads[0][0].nbytes)


def tuning_lines(shape: Shape, form: str) -> Iterator[str]:
    """Microseconds of each launch by rows of a tile and warps."""
    layers = [Layer(shape, form) for _ in range(NUM_LAYERS)]
    choose = fused.choose_tile
    for name in ("project", "finish_attention", "expand", "contract"):
        for num_warps in (2, 4, 8):
            times: list[str] = []
            for rows in (1, 2, 4, 8, 16):
                fused.choose_tile = lambda weight, *, wanted=(rows, num_warps), **_: replace(
                    choose(weight), rows=wanted[0], num_warps=wanted[1]
                )
                times.append(f"{rows}: {time_us([getattr(layer, name) for layer in layers]):6.1f}")
            yield f"{form} {name} {num_warps} warps, us by rows  " + "  ".join(times)
    fused.choose_tile = choose


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tune", action="store_true", help="try sizes of tiles")
    parser.add_argument("--without-overlap", action="store_true", help="launch each kernel after the one before it")
    options = parser.parse_args()
    if options.without_overlap:
        fused.has_dependent_launch = lambda _: False  # pyright: ignore[reportAttributeAccessIssue]
        assert launch.has_dependent_launch is not fused.has_dependent_launch
    for name, shape in (("seed-3.4b", SEED), ("v2-lite", LITE)):
        for form in FORMATS if shape is SEED else FORMATS[1:]:
            for line in (tuning_lines if options.tune else lines)(shape, form):
                print(name, line, flush=True)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
