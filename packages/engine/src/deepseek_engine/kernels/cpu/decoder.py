"""A decoder's whole step in one call of the CPU kernels: no operator a layer is dispatched from Python.

T tokens of the step, R rows asked for, H hidden_size, D head_dim.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from deepseek_engine.kernels.cpu.adapters import StepAdapters
from deepseek_engine.kernels.cpu.attention import PagedBatch
from deepseek_engine.kernels.cpu.layer_weights import (
    AskingWeights,
    DecoderShape,
    DenseWeights,
    ExpertWeights,
    GroupedQueryShape,
    GroupedQueryWeights,
    LatentWeights,
    LayerWeights,
    NormWeights,
)
from deepseek_engine.kernels.cpu.library import (
    Adapters,
    Decoder,
    IndexerShape,
    LatentShape,
    Layer,
    Library,
    Matrix,
    Routing,
    Step,
)
from deepseek_engine.kernels.cpu.packed_matrix import PackedMatrix


class CPUDecoder:
    """Runs steps of one model over one cache.

    Args:
        library: the kernels.
        shape: sizes.
        layers: weights of each layer.
        embedding: [vocabulary, H], bfloat16, packed as a matrix of H inputs.
        final_norm: of H features.
        cos_sin: float32 [positions, 2, D / 2]: cosines, then sines.
        cache: each layer's keys and values, bfloat16 [slots, kv heads, D], which the kernels keep in an order of their
            own; or latents, bfloat16 [slots, latent], and behind them the indexer's keys, [slots, index dim].
    """

    def __init__(
        self,
        library: Library,
        shape: DecoderShape,
        *,
        layers: Sequence[LayerWeights],
        embedding: PackedMatrix,
        final_norm: NormWeights,
        cos_sin: Tensor,
        cache: Sequence[tuple[Tensor, ...]],
    ) -> None:
        self._library = library
        self._hidden_size = shape.hidden_size
        self._held = (layers, embedding, final_norm, cos_sin, cache)  # the structures below point into these
        self._layers = (Layer * len(layers))()
        self._arrays: list[ctypes.Array[Matrix]] = []
        for structure, weights, entries in zip(self._layers, layers, cache, strict=True):
            self._fill(structure, weights)
            structure.keys = entries[0].data_ptr()
            if len(entries) > 1:
                structure.values = entries[1].data_ptr()
        self._decoder = Decoder(
            num_layers=len(layers),
            hidden_size=shape.hidden_size,
            dense_size=shape.dense_size,
            expert_size=shape.expert_size,
            routing=shape.routing or Routing(),
            indexer=shape.indexer or IndexerShape(),
            embedding=embedding.matrix,
            final_norm=final_norm.structure(),
            cos_sin=cos_sin.data_ptr(),
            layers=self._layers,
        )
        match shape.attention:
            case LatentShape() as latent:
                self._decoder.latent = latent
            case GroupedQueryShape() as grouped:
                self._decoder.num_heads, self._decoder.num_kv_heads = grouped.num_heads, grouped.num_kv_heads
                self._decoder.head_dim, self._decoder.attention_scale = grouped.head_dim, grouped.scale
                self._decoder.is_asking = grouped.is_asking
        self.free_scratch()

    def free_scratch(self) -> None:
        """Give back the memory that steps work in; the next step gets what it needs."""
        self._scratch = self._adapter_scratch = torch.empty(0, dtype=torch.uint8)

    def step(
        self, token_ids_T: Tensor, rows_R: Tensor, batch: PagedBatch, adapters: StepAdapters | None = None
    ) -> Tensor:
        """Compute a batch; keys and values of its tokens are in the cache afterwards.

        Args:
            token_ids_T: int64, the sequences' new tokens one after another.
            rows_R: int64, the rows whose result is wanted.
            batch: whose tokens they are.
            adapters: low-rank changes of some rows; the others have the same bits as without.

        Returns:
            bfloat16 [R, H], after the last norm.
        """
        num_tokens, num_wanted = token_ids_T.shape[0], rows_R.shape[0]
        hidden_RH = torch.empty(num_wanted, self._hidden_size, dtype=torch.bfloat16)
        self._scratch = _room(self._scratch, self._library.scratch_bytes(self._decoder, num_tokens))
        step = Step(
            batch=batch.structure(),
            num_rows=num_tokens,
            token_ids=token_ids_T.data_ptr(),
            num_wanted=num_wanted,
            wanted_rows=rows_R.data_ptr(),
            hidden=hidden_RH.data_ptr(),
            scratch=self._scratch.data_ptr(),
        )
        if adapters is None:
            self._library.decoder_step(self._decoder, step)
        else:
            self._library.decoder_step_adapted(self._decoder, step, self._adapters(adapters, num_tokens))
        return hidden_RH

    def _adapters(self, adapters: StepAdapters, num_tokens: int) -> Adapters:
        num_bytes = self._library.adapters_scratch_bytes(self._decoder, num_tokens, adapters.max_ranks)
        self._adapter_scratch = _room(self._adapter_scratch, num_bytes)
        return Adapters(
            groups=adapters.groups,
            num_groups=adapters.num_groups,
            max_ranks=adapters.max_ranks,
            scratch=self._adapter_scratch.data_ptr(),
        )

    def _fill(self, structure: Layer, weights: LayerWeights) -> None:
        structure.attention_norm = weights.attention_norm.structure()
        structure.feed_forward_norm = weights.feed_forward_norm.structure()
        match weights.attention:
            case GroupedQueryWeights() as grouped:
                structure.qkv, structure.output = grouped.qkv.matrix, grouped.output.matrix
                if grouped.q_norm is not None and grouped.k_norm is not None:
                    structure.q_norm, structure.k_norm = grouped.q_norm.structure(), grouped.k_norm.structure()
            case LatentWeights() as latent:
                self._fill_latent(structure, latent)
            case AskingWeights() as asking:
                structure.qkv, structure.asking_router = asking.kv.matrix, asking.router.matrix
                structure.asking_queries = self._array(asking.queries)
                structure.asking_outputs = self._array(asking.outputs)
                structure.asking_bias = asking.bias.data_ptr()
        match weights.feed_forward:
            case DenseWeights() as dense:
                _fill_dense(structure, dense)
            case ExpertWeights() as experts:
                structure.router = experts.router.matrix
                if experts.choice_bias is not None:
                    structure.choice_bias = experts.choice_bias.data_ptr()
                structure.experts_gate_up = self._array(experts.gate_up)
                structure.experts_down = self._array(experts.down)
                if experts.bias is not None:
                    structure.experts_bias = experts.bias.data_ptr()
                if experts.shared is not None:
                    _fill_dense(structure, experts.shared)

    def _fill_latent(self, structure: Layer, weights: LatentWeights) -> None:
        structure.qkv, structure.output = weights.input.matrix, weights.output.matrix
        structure.k_norm = weights.latent_norm.structure()
        if weights.query_norm is not None and weights.query is not None:
            structure.q_norm, structure.query = weights.query_norm.structure(), weights.query.matrix
        if weights.indexer is not None:
            structure.index_query, structure.index_key = weights.indexer.query.matrix, weights.indexer.key.matrix
            structure.index_weights = weights.indexer.head_weights.matrix
            structure.index_norm = weights.indexer.key_norm.structure()
        structure.fold_keys, structure.fold_values = self._array(weights.fold_keys), self._array(weights.fold_values)

    def _array(self, matrices: Sequence[PackedMatrix]) -> "ctypes.Array[Matrix]":
        array = (Matrix * len(matrices))(*(packed.matrix for packed in matrices))
        self._arrays.append(array)
        return array


def _fill_dense(structure: Layer, weights: DenseWeights) -> None:
    structure.gate_up, structure.down = weights.gate_up.matrix, weights.down.matrix


def _room(scratch: Tensor, num_bytes: int) -> Tensor:
    """The scratch memory, or a larger one."""
    return scratch if scratch.nbytes >= num_bytes else torch.empty(num_bytes, dtype=torch.uint8)
