"""One token through a layer in four launches around attention: what batch 1 needs is few launches and full bandwidth.

A layer is: norm and projection in; attention; projection out, residual and the router's products; the choice of experts
and their gate and up products; their down products, weighted, and the residual. Every launch reads its weights once in
loads of 16 bytes that are all under way at the same time, and begins to while the launch before it ends.

The router costs no launch of its own: each program of the output projection holds a few features of the new residual,
multiplies them with the router's columns, and adds its share to the logits, in fixed point, so that every order of
addition gives the same. The program that arrives last chooses. (Measured on an H100: choosing in every program of the
next launch instead takes 4 us a layer more for two of 16 experts, 14 us for six of 64.)

H hidden_size, N rows of a weight, K features in, I width of an expert, E routed experts, J experts a token with the
shared ones, P programs of the output projection.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false
# Triton compiles these functions from their source: their values have no Python types.

from dataclasses import dataclass
from typing import Final

import torch
import triton
from torch import Tensor

from deepseek_engine.kernels.triton.launch import has_dependent_launch
from deepseek_engine.kernels.triton.single_token_kernels import (
    down_kernel,
    gate_up_kernel,
    linear_residual_kernel,
    norm_linear_kernel,
)
from deepseek_engine.model_config import RouterConfig

MAX_TILE_WIDTH: Final = 2048
"""Features that a program reads of each row at a time."""

MAX_PLACES_AHEAD: Final = 2
"""Experts whose down weights are read while the gates are computed; they wait in registers."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A token's experts, and what their choice is made from; the same tensors serve every layer.

    Attributes:
        sums: int64 [BLOCK_E + 1], logits before the norm's division, and the residual's sum of squares, in fixed point:
            programs add to them in any order and the sums are the same. 0 between layers.
        arrivals: int32 [1], programs that have added theirs; 0 between layers.
        ids: int32 [J], the chosen experts, then the shared ones.
        weights: float32 [J], what their outputs are multiplied by.
        inverse: float32 [1], what the norm multiplies the residual by.
    """

    sums: Tensor
    arrivals: Tensor
    ids: Tensor
    weights: Tensor
    inverse: Tensor


@dataclass(frozen=True, slots=True)
class Tile:
    """How a program cuts its weight: rows and features at a time, how often, and by how many warps."""

    rows: int
    width: int
    num_chunks: int
    num_warps: int
    pack: int


def choose_tile(weight: Tensor, *, rows: int = 8, num_warps: int = 4) -> Tile:
    """By the size of a row and of a number.

    A thread holds its share of a tile in registers, so that all loads are under way at once: 32 kB for four warps are
    64 registers each.

    Args:
        weight: [..., features].
        rows: of a 16-bit or INT8 weight.
        num_warps: of a program.
    """
    num_features, itemsize = weight.shape[-1], weight.element_size()
    width = min(triton.next_power_of_2(num_features), MAX_TILE_WIDTH)
    return Tile(
        rows=max(rows // 2, 1) if itemsize == 4 else rows,
        width=width,
        num_chunks=-(-num_features // width),
        num_warps=num_warps,
        pack=4 if weight.dtype is torch.int8 else 1,
    )


def can_compute(weight: Tensor) -> bool:
    """Whether the kernels take a weight: INT8 is read in words of four features."""
    return weight.dtype is not torch.int8 or weight.shape[-1] % 4 == 0


def can_choose(config: RouterConfig) -> bool:
    """Whether `linear_residual` knows this way of choosing experts."""
    sizes = (config.num_experts, config.n_group)
    are_powers = all(size & (size - 1) == 0 for size in sizes)
    return config.kind in ("softmax", "sigmoid") and (config.n_group == 1 or are_powers)


def norm_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    gain: Tensor | None,
    eps: float,
    out: Tensor,
) -> None:
    """`out = norm(x) W^T + b` for one token, in one launch.

    Args:
        x: [K].
        weight: [N, K], float, or int8 with its scale.
        scale: float32 [N] of an int8 weight.
        bias: [N].
        gain: [K], of the RMS norm; None for no norm.
        eps: of the norm.
        out: [N].
    """
    num_rows, num_features = weight.shape
    tile = choose_tile(weight)
    norm_linear_kernel[(triton.cdiv(num_rows, tile.rows),)](
        x, gain, _words(weight), scale, bias, out, num_rows, num_features, eps,
        HAS_NORM=gain is not None, HAS_BIAS=bias is not None, **_options(tile, x.device),
    )  # fmt: skip


def make_choice(config: RouterConfig, num_shared: int, device: torch.device) -> Choice:
    """Room for the choices of layers that are routed alike."""
    num_places = config.num_experts_per_tok + num_shared
    return Choice(
        sums=torch.zeros(triton.next_power_of_2(config.num_experts) + 1, dtype=torch.int64, device=device),
        arrivals=torch.zeros(1, dtype=torch.int32, device=device),
        ids=torch.zeros(num_places, dtype=torch.int32, device=device),
        weights=torch.zeros(num_places, device=device),
        inverse=torch.zeros(1, device=device),
    )


@dataclass(frozen=True, slots=True)
class RouterWeights:
    """A layer's router behind its norm.

    Attributes:
        config: how experts are chosen; see `can_choose`.
        gain: [H], of the norm.
        eps: of the norm.
        weight: [E, H].
        choice_bias: float32 [E], of the sigmoid kind.
    """

    config: RouterConfig
    gain: Tensor
    eps: float
    weight: Tensor
    choice_bias: Tensor | None


def linear_residual(
    attended: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    x: Tensor,
    x_out: Tensor,
    router: RouterWeights | None = None,
    choice: Choice | None = None,
) -> None:
    """`x_out = x + attended W^T + b` for one token, and the choice of its experts, in one launch.

    Args:
        attended: [K].
        weight: [H, K], float, or int8 with its scale.
        scale: float32 [H] of an int8 weight.
        bias: [H].
        x: [H], the residual stream.
        x_out: [H]; not x.
        router: of the experts behind; None where the layer has none.
        choice: made for this weight's shape and router; written.
    """
    hidden_size, num_features = weight.shape
    tile = choose_tile(weight)
    grid = (triton.cdiv(hidden_size, tile.rows),)
    common = {"HAS_BIAS": bias is not None, **_options(tile, x.device)}
    if router is None or choice is None:
        linear_residual_kernel[grid](
            attended, _words(weight), scale, bias, x, x_out, None, None, None, None, None, None, None, None,
            hidden_size, num_features, 0.0, 1.0,
            KIND="softmax", NUM_EXPERTS=0, TOP_K=0, NUM_PLACES=0, NUM_GROUPS=1, KEPT_GROUPS=1, NORMALISES=False,
            BLOCK_E=1, BLOCK_J=1, **common,
        )  # fmt: skip
        return
    config = router.config
    linear_residual_kernel[grid](
        attended, _words(weight), scale, bias, x, x_out, router.gain, router.weight, router.choice_bias, choice.sums,
        choice.arrivals, choice.ids, choice.weights, choice.inverse, hidden_size, num_features, router.eps,
        config.routed_scaling_factor,
        KIND=config.kind, NUM_EXPERTS=config.num_experts, TOP_K=config.num_experts_per_tok,
        NUM_PLACES=choice.ids.shape[0], NUM_GROUPS=config.n_group, KEPT_GROUPS=config.topk_group,
        NORMALISES=config.norm_topk_prob, BLOCK_E=choice.sums.shape[0] - 1,
        BLOCK_J=triton.next_power_of_2(choice.ids.shape[0]), **common,
    )  # fmt: skip


def gate_up(
    x: Tensor,
    gain: Tensor,
    eps: float,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    act: Tensor,
    choice: Choice | None = None,
    ahead: Tensor | None = None,
) -> None:
    """`act = silu(gate) * up` of a token's experts, or of the one network there is, norm included, in one launch.

    Args:
        x: [H], the residual stream.
        gain: [H], of the norm.
        eps: of the norm.
        weight: [experts, 2 I, H], or [2 I, H] without a choice; float, or int8 with its scale.
        scale: float32 [experts, 2 I] or [2 I] of an int8 weight.
        bias: [2 I], without a choice only.
        act: float32 [J, I], or [1, I].
        choice: the token's experts, from `linear_residual`.
        ahead: [experts, ...], what the next launch reads of the chosen experts: it is brought nearer meanwhile.
    """
    num_places, width = act.shape
    tile = choose_tile(weight, rows=4 if weight.dtype is torch.int8 else 8)
    is_routed = choice is not None
    gate_up_kernel[(triton.cdiv(width, tile.rows), num_places)](
        x, gain, choice.inverse if is_routed else None, choice.ids if is_routed else None, _words(weight), scale, bias,
        ahead if is_routed else None, act, weight.shape[-1], width, eps, 0 if ahead is None else ahead[0].nbytes,
        IS_ROUTED=is_routed, HAS_BIAS=bias is not None, NUM_AHEAD=_places_ahead(width, num_places),
        **_options(tile, x.device),
    )  # fmt: skip


def down(
    act: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    x: Tensor,
    x_out: Tensor,
    choice: Choice | None = None,
) -> None:
    """`x_out = x +` the weighted sum of the experts' down products, or the only network's, in one launch.

    Args:
        act: float32 [J, I], or [1, I].
        weight: [experts, H, I], or [H, I] without a choice; float, or int8 with its scale.
        scale: float32 [experts, H] or [H] of an int8 weight.
        bias: [H], without a choice only.
        x: [H], the residual stream.
        x_out: [H]; not x.
        choice: the token's experts, from `linear_residual`.
    """
    hidden_size, width = weight.shape[-2:]
    tile = choose_tile(weight, num_warps=4 if weight.dtype is torch.float32 else 8)
    is_routed = choice is not None
    down_kernel[(triton.cdiv(hidden_size, tile.rows),)](
        act, choice.ids if is_routed else None, choice.weights if is_routed else None, _words(weight), scale, bias,
        x, x_out, hidden_size, width,
        IS_ROUTED=is_routed, NUM_PLACES=act.shape[0], HAS_BIAS=bias is not None,
        NUM_AHEAD=_places_ahead(width, act.shape[0]), **_options(tile, x.device),
    )  # fmt: skip


def _places_ahead(width: int, num_places: int) -> int:
    """How many experts' down weights `down` reads before it waits: of those whose rows are one tile wide."""
    return min(num_places, MAX_PLACES_AHEAD) if width <= MAX_TILE_WIDTH else 0


def _words(weight: Tensor) -> Tensor:
    """INT8 numbers four to a word."""
    return weight.view(torch.int32) if weight.dtype is torch.int8 else weight


def _options(tile: Tile, device: torch.device) -> dict[str, int]:
    is_dependent = has_dependent_launch(device)
    return {
        "NUM_CHUNKS": tile.num_chunks, "BLOCK_N": tile.rows, "BLOCK_K": tile.width, "PACK": tile.pack,
        "IS_DEPENDENT": is_dependent, "num_warps": tile.num_warps, "launch_pdl": is_dependent,
    }  # fmt: skip
