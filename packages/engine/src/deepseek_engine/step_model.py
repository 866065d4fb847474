"""A loaded model with its KV cache: scheduled batches to hidden states, hidden states to logits.

R rows that are asked for, H hidden_size, V vocab_size.
"""

from collections.abc import Sequence as Seq
from typing import Protocol

from torch import Tensor

from deepseek_engine.kv_cache.pool import KVCache
from deepseek_engine.lora.appliers import Applier, FusedApplier, LayerApplier
from deepseek_engine.models.fused_decoder import FusedDecoder
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.paged_inputs import prepare_paged_step
from deepseek_engine.sequence import ScheduledSequence
from deepseek_engine.step_inputs import prepare_step


class StepModel(Protocol):
    """What a runner needs of a model."""

    @property
    def applier(self) -> Applier | None:
        """Where its adapters are kept; None where LoRA is off."""
        ...

    def hidden(self, batch: Seq[ScheduledSequence]) -> Tensor:
        """Compute the batch and fill the cache; [R, H] after the last norm, in the batch's order."""
        ...

    def logits(self, hidden_RH: Tensor) -> Tensor:
        """float32 [R, V]."""
        ...

    def free_scratch(self) -> None:
        """Give back memory that is only kept from one step to the next."""
        ...


class TorchModel:
    """Any model, layer by layer, with PyTorch's operators."""

    def __init__(self, model: Transformer, cache: KVCache, applier: LayerApplier | None = None) -> None:
        self.transformer, self.cache = model, cache
        self.applier = applier

    def hidden(self, batch: Seq[ScheduledSequence]) -> Tensor:
        """See `StepModel`."""
        inputs = prepare_step(batch, self.cache.block_size, self.transformer.embedding.dtype)
        if self.applier is not None:
            self.applier.set_rows(inputs.owners)
        return self.transformer.hidden(
            inputs.token_ids_T, inputs.positions_T, inputs.rows_R, self.cache, inputs.metadata
        )

    def logits(self, hidden_RH: Tensor) -> Tensor:
        """See `StepModel`."""
        return self.transformer.logits(hidden_RH)

    def free_scratch(self) -> None:
        """See `StepModel`: there is none."""


class FusedModel:
    """A model whose step is one call of the kernels; the decoder was built over the cache."""

    def __init__(self, decoder: FusedDecoder, block_size: int, applier: FusedApplier | None = None) -> None:
        self._decoder, self._block_size = decoder, block_size
        self.applier = applier

    def hidden(self, batch: Seq[ScheduledSequence]) -> Tensor:
        """See `StepModel`."""
        inputs = prepare_paged_step(batch, self._block_size)
        adapters = None
        if self.applier is not None:
            adapters = self.applier.step_adapters(
                (s.sequence, s.num_new_tokens + len(s.draft_token_ids)) for s in batch
            )
        return self._decoder.hidden(inputs.token_ids_T, inputs.rows_R, inputs.batch, adapters)

    def logits(self, hidden_RH: Tensor) -> Tensor:
        """See `StepModel`."""
        return self._decoder.logits(hidden_RH)

    def free_scratch(self) -> None:
        """See `StepModel`."""
        self._decoder.free_scratch()
