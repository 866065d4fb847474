"""One prompt through a model in one step, without an engine: for measuring what its layers compute.

T tokens, V vocab_size.
"""

from typing import Final

import torch
from torch import Tensor

from deepseek_engine.kv_cache.pool import KVCache
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import ScheduledSequence, Sequence
from deepseek_engine.step_inputs import prepare_step

_BLOCK_SIZE: Final = 16


@torch.inference_mode()
def run_whole_prompt(model: Transformer, token_ids: list[int]) -> Tensor:
    """Logits at every position, float32 [T, V].

    Args:
        model: loaded, for a context of at least T tokens.
        token_ids: at least one.
    """
    dtype, num_tokens = model.embedding.dtype, len(token_ids)
    sequence = Sequence("prompt", 0, token_ids, SamplingParams(temperature=0.0), sampling_seed=0)
    sequence.block_table = list(range(-(-num_tokens // _BLOCK_SIZE)))
    cache = KVCache(
        model.config.cache_specs, len(sequence.block_table), _BLOCK_SIZE, dtype, torch.device(model.embedding.device)
    )
    inputs = prepare_step([ScheduledSequence(sequence, num_tokens)], _BLOCK_SIZE, dtype)
    return model(inputs.token_ids_T, inputs.positions_T, torch.arange(num_tokens), cache, inputs.metadata)
