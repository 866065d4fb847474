"""The decoder on a GPU: the layers as launches of our kernels, over rows of single tokens and prefill chunks.

One token takes the fused launches of `kernels/triton/single_token.py`, few rows products that read each weight once,
many rows products that fill the matrix units; the kernels' own functions choose by shapes, so that a step of a given
size is always the same launches and fits a CUDA graph.

T tokens, H hidden_size, R rows wanted, V vocab_size.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek_engine.gpu_step import GpuStep
from deepseek_engine.kernels.flash_library import FlashLibrary
from deepseek_engine.kernels.linear_bitsandbytes import bitsandbytes_name
from deepseek_engine.kernels.paged_kv import PagedKV
from deepseek_engine.kernels.triton import single_token
from deepseek_engine.kernels.triton.decode_attention import decode_scratch
from deepseek_engine.kernels.triton.decode_call import DecodeScratch
from deepseek_engine.kernels.triton.latent_decode import decode_counters
from deepseek_engine.kernels.triton.norm import add_rms_norm
from deepseek_engine.kv_cache.pool import KVCache
from deepseek_engine.layers.latent_attention import LOW_RANK_NORM_EPS
from deepseek_engine.layers.rotary import rotary_table
from deepseek_engine.model_config import LatentConfig, ModelConfig
from deepseek_engine.models.gpu_attention import GpuAttention, GroupedQuery, Latent, StepRows, step_rows
from deepseek_engine.models.gpu_feed_forward import feed_forward, normed_rows
from deepseek_engine.models.gpu_flash_attention import FlashGroupedQuery
from deepseek_engine.models.gpu_kernel_names import kernel_names
from deepseek_engine.models.gpu_linear import Rows, multiply, wants_int8
from deepseek_engine.models.gpu_one_token import Choices, Layer, has_fused_launches, projection_in, residual_of_one
from deepseek_engine.models.gpu_weights import (
    GpuLayer,
    GroupedQueryWeights,
    LatentWeights,
    Matrix,
    gain_of,
    gather_layers,
)
from deepseek_engine.models.gpu_whole_prompts import GRAIN, WholePrompts
from deepseek_engine.models.transformer import Transformer


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderPlan:
    """What a decoder is to compute.

    Attributes:
        max_rows: single-token rows of a step at most.
        max_model_len: positions of a sequence.
        max_tokens: of a step's chunks; decides whether whole prompts attend beside the pages.
        num_drafts: of one sequence and step at most, where a layer guesses them.
        flash: what attends instead of our kernels; for grouped queries.
        uses_bitsandbytes: for the dense layers with INT8 weights, at every number of rows.
    """

    max_rows: int
    max_model_len: int
    max_tokens: int = 0
    num_drafts: int = 0
    flash: FlashLibrary | None = None
    uses_bitsandbytes: bool = False


class GpuDecoder:
    """A loaded model and its cache; the model's own tensors are taken over.

    Args:
        model: on the device.
        cache: on the device.
        plan: for it.
    """

    def __init__(self, model: Transformer, cache: KVCache, plan: DecoderPlan) -> None:
        self.config: ModelConfig = model.config
        self.embedding = model.embedding.data
        self.device = self.embedding.device
        self._dtype = self.embedding.dtype
        self._final_gain = gain_of(model.norm)
        self._head = Matrix.of(model.head)
        self._plan = plan
        self._cos_sin = rotary_table(model.config.rope, plan.max_model_len, torch.float32, self.device)
        self._counters = decode_counters(self.device)
        self._weights: list[GpuLayer] = list(gather_layers(model))
        if plan.uses_bitsandbytes:
            self._head = self._head.for_bitsandbytes()
            self._weights = [layer.for_bitsandbytes() for layer in self._weights]
        self._linear_library = bitsandbytes_name() if plan.uses_bitsandbytes else None
        attention = self._weights[0].attention
        self._latent = attention if isinstance(attention, LatentWeights) else None
        self._block_size = cache.block_size
        self._whole_prompts = self._find_whole_prompts()
        self._choices = Choices(model.config.norm_eps, self.device)
        self._layers: list[Layer] = []
        self.attach(cache)
        self._is_fused = all(has_fused_launches(layer) for layer in self._layers)

    def attach(self, cache: KVCache) -> None:
        """Compute over this cache from now on."""
        self._scratch: DecodeScratch | None = None
        self._layers = [
            self.layer_over(weights, cache.layer(index), cache.block_size)
            for index, weights in enumerate(self._weights)
        ]

    def layer_over(
        self, weights: GpuLayer, tensors: tuple[Tensor, ...], block_size: int, first_token: int = 0
    ) -> Layer:
        """A layer over its part of a cache; of latent attention, single rows see the tokens from `first_token` on."""
        if isinstance(weights.attention, LatentWeights):
            attention: GpuAttention = Latent(
                weights.attention, tensors[0], block_size, self._cos_sin, self._counters, first_token
            )
        else:
            kv = PagedKV.of(tensors, block_size)
            if self._plan.flash is not None:
                attention = FlashGroupedQuery(weights.attention, kv, self._cos_sin, self._plan.flash)
            else:
                num_heads = weights.attention.config.num_attention_heads
                room = -(-self._plan.max_model_len // block_size) * block_size  # of a row's block table
                self._scratch = self._scratch or decode_scratch(
                    self._plan.max_rows, num_heads, kv, room, self._dtype.itemsize
                )
                attention = GroupedQuery(weights.attention, kv, self._cos_sin, self._scratch, self._whole_prompts)
        return Layer(weights, attention, *self._choices.of(weights))

    def release(self) -> None:
        """Let go of weights and cache; nothing can be computed afterwards."""
        self._layers, self._weights = [], []
        self._choices.release()
        self._latent = self._scratch = None
        nothing = self.embedding.new_empty(0)
        self.embedding = self._final_gain = self._cos_sin = nothing
        self._head = Matrix(nothing, None)

    @property
    def has_static_chunks(self) -> bool:
        """Whether launches for prefill chunks depend on their number of tokens alone, so that a graph may hold them."""
        return self._latent is None

    @property
    def has_static_drafts(self) -> bool:
        """Whether drafts are launches of single rows as any others, so that a graph of those may hold them."""
        return self._latent is not None

    @property
    def latent(self) -> LatentConfig | None:
        """Of models with latent attention."""
        return None if self._latent is None else self._latent.config

    @contextmanager
    def few_layers(self) -> Generator[None]:
        """Within, compute only as many layers as it takes to launch every kernel that all of them do."""
        kinds = [_kind(layer.weights) for layer in self._layers]
        pairs = list(zip([None, *kinds], kinds, strict=False))
        count = max(pairs.index(pair) for pair in set(pairs)) + 1
        layers = self._layers
        self._layers = layers[:count] if kinds[count - 1] == kinds[-1] else [*layers[:count], layers[-1]]
        try:
            yield
        finally:
            self._layers = layers

    def kernels(self) -> dict[str, str]:
        """Which kernels serve which part of a step."""
        return kernel_names(
            self._weights, self._head, self._dtype, self._block_size,
            flash=None if self._plan.flash is None else f"flash-attn {self._plan.flash.version}",
            dense_library=self._linear_library,
            has_whole_prompts=self._whole_prompts is not None, is_fused=self._is_fused,
        )  # fmt: skip

    def hidden(self, step: GpuStep, x_TH: Tensor) -> Tensor:
        """Compute a step and fill the cache; [R, H] after the last norm.

        Args:
            step: from `GpuInputs`.
            x_TH: embeddings of the single rows' tokens, then of the chunks'.
        """
        rows = self._rows_of(step)
        if self._is_one_token(x_TH, step):
            residual_H = residual_of_one(x_TH[0], rows, self._layers, self.config.norm_eps)
            return self._last_norm(residual_H[None], None, None)
        return self._last_norm(*self._residual_of_many(x_TH, rows, self._layers), step.row_ids)

    def logits_of_step(self, step: GpuStep, x_TH: Tensor) -> tuple[Tensor | None, Tensor]:
        """Compute a step: what `hidden` gives, and the logits. One token's last norm is part of its head: then None."""
        if not (self._is_one_token(x_TH, step) and single_token.can_compute(self._head.weight)):
            hidden_RH = self.hidden(step, x_TH)
            return hidden_RH, self.logits(hidden_RH)
        x_H = residual_of_one(x_TH[0], self._rows_of(step), self._layers, self.config.norm_eps)
        head = self._head
        logits = torch.empty(1, head.weight.shape[0], dtype=x_H.dtype, device=x_H.device)
        single_token.norm_linear(
            x_H, head.weight, head.scale, head.bias, self._final_gain, self.config.final_norm_eps, logits[0]
        )
        return None, logits

    def make_plans(self) -> None:
        """Have cuDNN compile what it attends with; by the thread that computes."""
        attention = self._weights[0].attention
        if self._whole_prompts is not None and isinstance(attention, GroupedQueryWeights):
            config = attention.config
            self._whole_prompts.make_plans(
                config.num_attention_heads, config.num_key_value_heads, config.head_dim, self._dtype
            )  # fmt: skip

    def _find_whole_prompts(self) -> WholePrompts | None:
        plan = self._plan
        longest = min(plan.max_tokens, -(-plan.max_model_len // GRAIN) * GRAIN)  # a sequence's, padded
        found = WholePrompts(longest, self.device)
        has_library = self.device.type != "cuda" or torch.backends.cudnn.is_available()
        is_served = self._latent is None and plan.flash is None and self._dtype.itemsize == 2 and has_library
        return found if is_served and found.is_used else None

    def _rows_of(self, step: GpuStep) -> StepRows:
        has_flash = self._plan.flash is not None
        return step_rows(
            step, self._latent, self._block_size, self._dtype, self._whole_prompts, has_flash=has_flash
        )  # fmt: skip

    def _is_one_token(self, x_TH: Tensor, step: GpuStep) -> bool:
        """Whether the fused launches serve a step."""
        return self._is_fused and x_TH.shape[0] == 1 and step.chunks is None

    def logits(self, hidden_RH: Tensor) -> Tensor:
        """[R, V], of the model's type."""
        return multiply(Rows(hidden_RH), self._head)

    def _residual_of_many(self, x_TH: Tensor, rows: StepRows, layers: Iterable[Layer]) -> tuple[Tensor, Tensor | None]:
        """The residual stream behind the layers, and the rows that are still to be added to it."""
        num_tokens, eps = x_TH.shape[0], self.config.norm_eps
        added: Tensor | None = None
        for layer in layers:
            weights = layer.weights
            projection = projection_in(weights)
            reads_int8 = wants_int8(projection, num_tokens)
            normed = add_rms_norm(
                x_TH, weights.attention_gain, eps, rows=added, wants_values=not reads_int8, wants_int8=reads_int8
            )
            x_TH = normed.residual
            projected = self._project(normed_rows(normed), weights)
            attended = layer.attention.attend(projected, rows)
            added = multiply(Rows(attended), weights.attention.output)
            x_TH, added = feed_forward(x_TH, added, weights, eps)
        return x_TH, added

    def _last_norm(self, x_TH: Tensor, added: Tensor | None, row_ids: Tensor | None) -> Tensor:
        normed = add_rms_norm(x_TH, self._final_gain, self.config.final_norm_eps, rows=added, row_ids=row_ids)
        assert normed.values is not None
        return normed.values

    def _project(self, rows: Rows, weights: GpuLayer) -> Tensor:
        """What attention takes: queries, keys and values, or queries and the latent."""
        attention = weights.attention
        if isinstance(attention, GroupedQueryWeights):
            return multiply(rows, attention.qkv)
        projected = multiply(rows, attention.input)
        if attention.q_b is None or attention.q_gain is None:
            return projected
        rank = attention.config.q_lora_rank
        compressed = projected[:, :rank].contiguous()
        normed = add_rms_norm(compressed, attention.q_gain, LOW_RANK_NORM_EPS)
        return torch.cat((multiply(Rows(normed.values), attention.q_b), projected[:, rank:]), dim=1)


def _kind(weights: GpuLayer) -> tuple[object, ...]:
    """Equal for layers that are the same launches."""
    attention, network = weights.attention, weights.feed_forward
    matrices = (projection_in(weights), attention.output, network.gate_up, network.down)
    sizes = [(each.weight.shape, each.weight.dtype, each.scale is None, each.bias is None) for each in matrices]
    return (type(network), getattr(network, "routing", None), getattr(network, "num_shared", 0), *sizes)
