"""The decoder on a GPU together with its layer for multi-token prediction: `models/mtp.py` as launches of our kernels.

A step fills the layer's cache for the tokens that it computes, prompts as well as drafts, and leaves the hidden states
that later ones need (`HiddenTails`); to guess, the layer runs as any other does, behind what its two inputs become.

T tokens of the step, B rows to guess for, H hidden_size, R rows wanted, V vocab_size.
"""

import torch
from torch import Tensor

from deepseek_engine.gpu_step import ChunkRows, GpuStep, SingleRows
from deepseek_engine.hidden_tails import HiddenTails
from deepseek_engine.kernels.triton.merge_inputs import StatePlaces, keep_states, merge_inputs
from deepseek_engine.kernels.triton.norm import add_rms_norm
from deepseek_engine.kv_cache.pool import KVCache
from deepseek_engine.models.gpu_attention import Latent, StepRows
from deepseek_engine.models.gpu_decoder import DecoderPlan, GpuDecoder
from deepseek_engine.models.gpu_linear import Rows, multiply
from deepseek_engine.models.gpu_one_token import Layer, has_fused_launches, residual_of_one
from deepseek_engine.models.gpu_weights import LatentWeights, Matrix, gain_of, gather_layer
from deepseek_engine.models.transformer import Transformer


class GpuMtpDecoder(GpuDecoder):
    """See `GpuDecoder`.

    Args:
        model: with its MTP layer; others as of `GpuDecoder`.
        cache: whose last layer is that one's.
    """

    def __init__(self, model: Transformer, cache: KVCache, plan: DecoderPlan) -> None:
        mtp = model.mtp
        assert mtp is not None
        self._embedding_gain, self._state_gain = gain_of(mtp.embedding_norm), gain_of(mtp.hidden_norm)
        self._merge, self._guess_gain = Matrix.of(mtp.merge), gain_of(mtp.norm)
        weights = gather_layer(mtp.layer)
        self._mtp_weights = weights.for_bitsandbytes() if plan.uses_bitsandbytes else weights
        attention = self._mtp_weights.attention
        assert isinstance(attention, LatentWeights), "only DeepSeek-V3 and its kin have such layers"
        self._latent_part = attention.input.rows_from(-attention.config.latent_dim)
        super().__init__(model, cache, plan)
        self._is_fused = self._is_fused and has_fused_launches(self._mtp)

    @property
    def num_tail_bytes(self) -> int:
        """Of the hidden states that are kept beside the cache."""
        return self._tails.num_bytes

    def attach(self, cache: KVCache) -> None:
        """See `GpuDecoder`."""
        super().attach(cache)
        tensors, block_size = cache.layer(len(self._weights)), cache.block_size
        # Position 0 has no state before it, and nobody sees it.
        self._mtp: Layer = self.layer_over(self._mtp_weights, tensors, block_size, first_token=1)
        self._tails = HiddenTails(
            tensors[0].shape[0] // block_size, block_size, self._plan.num_drafts, self.config.hidden_size, self._dtype,
            self.device,
        )  # fmt: skip

    def release(self) -> None:
        """See `GpuDecoder`."""
        super().release()
        del self._mtp, self._mtp_weights, self._tails
        self._merge = self._latent_part = Matrix(self.embedding, None)
        self._embedding_gain = self._state_gain = self._guess_gain = self.embedding

    def kernels(self) -> dict[str, str]:
        """See `GpuDecoder`."""
        return super().kernels() | {"guesses": "the same, one layer and the head for each"}

    def hidden(self, step: GpuStep, x_TH: Tensor) -> Tensor:
        """See `GpuDecoder`; of all tokens the layer's cache has what guesses will need."""
        rows = self._rows_of(step)
        if self._is_one_token(x_TH, step):
            residual_H = residual_of_one(x_TH[0].clone(), rows, self._layers, self.config.norm_eps)
            hidden_TH = self._last_norm(residual_H[None], None, None)
        else:
            hidden_TH = self._last_norm(*self._residual_of_many(x_TH, rows, self._layers), None)
        self._fill(step, rows, x_TH, hidden_TH)
        return hidden_TH if step.row_ids is None else hidden_TH.index_select(0, step.row_ids)

    def logits_of_step(self, step: GpuStep, x_TH: Tensor) -> tuple[Tensor | None, Tensor]:
        """See `GpuDecoder`; there are always hidden states, as the layer reads them."""
        hidden_RH = self.hidden(step, x_TH)
        return hidden_RH, self.logits(hidden_RH)

    def guess(self, rows: SingleRows, x_BH: Tensor, states: Tensor) -> Tensor:
        """Run the layer for the token after each row's; its own output, [B, H], for the head and for guessing further.

        Args:
            rows: the sequences' last tokens, or guesses behind them; their places in the layer's cache are written.
            x_BH: embeddings of those.
            states: [any, H], what this gave for the tokens before, in the rows that `sources` names; the state before
                a row without a source was left by a step.
        """
        num_rows = x_BH.shape[0]
        pairs = torch.empty(num_rows, 2 * x_BH.shape[1], dtype=x_BH.dtype, device=x_BH.device)
        places = self._places_of_singles(rows)
        self._merge_inputs(x_BH, states, places, rows.sources, pairs)
        merged_BH = multiply(Rows(pairs), self._merge)
        step = StepRows(
            singles=rows, chunks=None, positions=rows.positions, slots=rows.slots, num_singles=num_rows,
            has_drafts=False, latent_plan=None,
        )  # fmt: skip
        if self._is_fused and num_rows == 1:
            residual_BH = residual_of_one(merged_BH[0], step, (self._mtp,), self.config.norm_eps)[None]
            return self._guess_norm(residual_BH, None)
        return self._guess_norm(*self._residual_of_many(merged_BH, step, (self._mtp,)))

    def _fill(self, step: GpuStep, rows: StepRows, x_TH: Tensor, hidden_TH: Tensor) -> None:
        """Bring the layer's cache and the tails up to the step: of the layer, that takes keys alone."""
        pairs = torch.empty(x_TH.shape[0], 2 * x_TH.shape[1], dtype=x_TH.dtype, device=x_TH.device)
        first = 0
        for places in self._places(step):
            of_part = slice(first, first + places.positions.shape[0])
            first = of_part.stop
            self._merge_inputs(x_TH[of_part], hidden_TH[of_part], places, None, pairs[of_part])
            keep_states(hidden_TH[of_part], self._tails.states, places)
        weights, attention = self._mtp_weights, self._mtp.attention
        assert isinstance(attention, Latent), "so its weights are"
        merged_TH = multiply(Rows(pairs), self._merge)
        normed = add_rms_norm(merged_TH, weights.attention_gain, self.config.norm_eps)
        attention.store(multiply(Rows(normed.values), self._latent_part), rows)

    def _merge_inputs(
        self, x_TH: Tensor, states: Tensor, places: StatePlaces, sources: Tensor | None, pairs: Tensor
    ) -> None:
        merge_inputs(
            x_TH, states, self._tails.states, self._embedding_gain, self._state_gain, self.config.norm_eps, places,
            sources, pairs,
        )  # fmt: skip

    def _guess_norm(self, x_BH: Tensor, added: Tensor | None) -> Tensor:
        normed = add_rms_norm(x_BH, self._guess_gain, self.config.norm_eps, rows=added)
        assert normed.values is not None
        return normed.values

    def _places(self, step: GpuStep) -> list[StatePlaces]:
        singles = [] if step.singles is None else [self._places_of_singles(step.singles)]
        return singles if step.chunks is None else [*singles, self._places_of_chunks(step.chunks)]

    def _places_of_singles(self, rows: SingleRows) -> StatePlaces:
        return StatePlaces(rows.positions, rows.slots, rows.block_tables, None, self._block_size, self._tails.ring)

    def _places_of_chunks(self, chunks: ChunkRows) -> StatePlaces:
        numbers = torch.arange(chunks.token_ids.shape[0], dtype=torch.int32, device=self.device)
        table_rows = torch.searchsorted(chunks.cu_seqlens[1:], numbers, right=True, out_int32=True)
        return StatePlaces(
            chunks.positions, chunks.slots, chunks.block_tables, table_rows, self._block_size, self._tails.ring
        )
