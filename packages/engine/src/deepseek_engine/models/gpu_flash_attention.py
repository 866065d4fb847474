"""Grouped-query attention of a layer through flash-attn: our kernel rotates and caches, the package attends."""

from torch import Tensor

from deepseek_engine.gpu_step import ChunkRows, SingleRows
from deepseek_engine.kernels.flash_attention import flash_decode, flash_prefill
from deepseek_engine.kernels.flash_library import FlashLibrary
from deepseek_engine.kernels.paged_kv import PagedKV
from deepseek_engine.kernels.triton.rope_and_cache import rope_and_cache
from deepseek_engine.models.gpu_attention import StepRows, attend_by_kind, head_norms
from deepseek_engine.models.gpu_weights import GroupedQueryWeights


class FlashGroupedQuery:
    """What `GroupedQuery` does, for blocks of 256 tokens or a multiple."""

    def __init__(self, weights: GroupedQueryWeights, kv: PagedKV, cos_sin: Tensor, library: FlashLibrary) -> None:
        self._kv, self._cos_sin, self._library = kv, cos_sin, library
        self._scale = weights.config.head_dim**-0.5
        self._norms = head_norms(weights)

    def attend(self, projected: Tensor, rows: StepRows) -> Tensor:
        """See `GpuAttention`."""
        q = rope_and_cache(projected, self._kv, rows.positions, rows.slots, self._cos_sin, self._norms)

        def decode(q: Tensor, singles: SingleRows) -> Tensor:
            return flash_decode(
                self._library, q, self._kv, singles.block_tables, singles.context_lens, scale=self._scale
            )

        def prefill(q: Tensor, _: ChunkRows) -> Tensor:
            assert rows.flash_chunks is not None
            return flash_prefill(self._library, q, self._kv, rows.flash_chunks, scale=self._scale)

        return attend_by_kind(q, rows, decode, prefill)
