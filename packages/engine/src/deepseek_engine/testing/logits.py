"""The engine's logits at every position of a sequence, chunk by chunk. For tests only."""

from typing import Final

import torch
from torch import Tensor

from deepseek_engine.model_runner import ModelRunner
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import ScheduledSequence, Sequence
from deepseek_engine.step_inputs import prepare_step
from deepseek_engine.step_model import TorchModel

BLOCK_SIZE: Final = 16
"""That the runner is to be built with, and 32 blocks."""


def sequence_of(token_ids: list[int], num_tokens: int) -> Sequence:
    """A sequence with blocks for `num_tokens`, not in order, so that a page out of place is noticed."""
    sequence = Sequence("r", 0, list(token_ids), SamplingParams(temperature=0.0), sampling_seed=0)
    sequence.block_table = [(5 + 7 * i) % 31 for i in range(-(-num_tokens // BLOCK_SIZE))]
    return sequence


def engine_logits(runner: ModelRunner, sequence: Sequence, num_new: int) -> Tensor:
    """Logits of the sequence's next `num_new` tokens, which are in the cache afterwards."""
    assert isinstance(runner.model, TorchModel)
    with torch.inference_mode():
        inputs = prepare_step([ScheduledSequence(sequence, num_new)], BLOCK_SIZE, torch.float32)
        logits = runner.model.transformer(
            inputs.token_ids_T, inputs.positions_T, torch.arange(num_new), runner.model.cache, inputs.metadata
        )
    sequence.num_computed_tokens += num_new
    return logits
