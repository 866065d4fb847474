"""The common kind of decoder on a CPU with the kernels for it: a loaded Transformer, packed, and run a step at a time.

T tokens of the step, R rows asked for, H hidden_size, V vocab_size.
"""

import logging
from typing import cast

import torch
from torch import Tensor, nn

from deepseek_engine.host_memory import return_freed_memory
from deepseek_engine.kernels.cpu.adapters import StepAdapters
from deepseek_engine.kernels.cpu.attention import PagedBatch
from deepseek_engine.kernels.cpu.decoder import CPUDecoder
from deepseek_engine.kernels.cpu.layer_weights import LayerWeights
from deepseek_engine.kernels.cpu.library import STORE_FLOAT, load
from deepseek_engine.kernels.cpu.packed_matrix import PackedMatrix
from deepseek_engine.kv_cache.pool import KVCache
from deepseek_engine.layers.rotary import rotary_table
from deepseek_engine.load_threads import load_threads
from deepseek_engine.model_config import ModelConfig
from deepseek_engine.models.decoder_layer import DecoderLayer
from deepseek_engine.models.fused_layers import decoder_shape, pack, pack_layer, pack_linear, pack_norm
from deepseek_engine.models.fused_support import obstacle
from deepseek_engine.models.transformer import Transformer

logger = logging.getLogger(__name__)


class FusedDecoder:
    """A whole model in the CPU kernels.

    Every row's result depends on its own sequence only: batches, chunks and threads do not change a bit of it.
    """

    def __init__(self, decoder: CPUDecoder, head: PackedMatrix, model_config: ModelConfig) -> None:
        self.config = model_config
        self._decoder = decoder
        self._head = head

    def hidden(
        self, token_ids_T: Tensor, rows_R: Tensor, batch: PagedBatch, adapters: StepAdapters | None = None
    ) -> Tensor:
        """Run one step; bfloat16 [R, H] after the last norm. Arguments as of `CPUDecoder.step`."""
        return self._decoder.step(token_ids_T, rows_R, batch, adapters)

    def logits(self, hidden_RH: Tensor) -> Tensor:
        """float32 [R, V]."""
        return self._head.multiply(hidden_RH, STORE_FLOAT)

    def free_scratch(self) -> None:
        """Give back the memory that steps work in; the next step gets what it needs."""
        self._decoder.free_scratch()


def fuse(model: Transformer, cache: KVCache, max_model_len: int) -> FusedDecoder | None:
    """Pack a loaded model for the CPU kernels, or return None where they cannot run it.

    Weights are packed layer by layer and the model's own are freed as it goes, so `model` is of no use afterwards.
    """
    config, library = model.config, load()
    if library is None:
        return None
    if (reason := obstacle(model, cache)) is not None:
        logger.info("computing with torch's operators, since the CPU kernels cannot run this model: %s", reason)
        return None
    library.set_num_threads(torch.get_num_threads())  # a model loaded before in this process may have set another
    embedding = pack(model.embedding)
    head = embedding if config.tie_word_embeddings and model.head.bias is None else pack_linear(model.head)
    for parameter in (model.embedding, model.head.weight):
        parameter.data = parameter.data.new_empty(0)
    with load_threads() as (pool, _):
        layers = list(pool.map(_pack_and_free, model.layers))
    table = rotary_table(config.rope, max_model_len, torch.float32, cache.layer(0)[0].device)
    decoder = CPUDecoder(
        library,
        decoder_shape(config),
        layers=layers,
        embedding=embedding,
        final_norm=pack_norm(model.norm),
        cos_sin=_halves(table),
        cache=[cache.layer(index) for index in range(len(layers))],
    )
    return FusedDecoder(decoder, head, config)


def _pack_and_free(module: nn.Module) -> LayerWeights:
    packed = pack_layer(cast("DecoderLayer", module))
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.new_empty(0)
    return_freed_memory()
    return packed


def _halves(table: Tensor) -> Tensor:
    """The kernels' table [positions, 2, D / 2], from that of `rotary_table` with repeated halves and signed sines."""
    half = table.shape[-1] // 2
    return torch.stack((table[:, 0, :half], table[:, 1, half:]), dim=1).contiguous()
