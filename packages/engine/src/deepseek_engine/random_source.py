"""The weights of a fresh model instead of a checkpoint: drawn tensor by tensor on the device that will hold them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from deepseek_engine.model_config import ModelConfig
from deepseek_engine.models.names import checkpoint_destinations
from deepseek_engine.models.transformer import Transformer

DEVIATION: Final = 0.02
"""Of matrices in a model that was never trained, as most families initialise theirs."""
DAMPING: Final = 1e-4
"""Of what the layers add where one of them guesses: then the next token follows from the last one, and guesses are
right, as those of a trained layer often are. Guesses that are always wrong would say nothing of its speed."""


class RandomSource:
    """Tensors under the names of the family's checkpoints: matrices normal, norms 1, biases 0.

    Of a shape with a layer for multi-token prediction there are its tensors, too; it passes the last token's embedding
    on, and what layers add is damped.

    A tensor is drawn when it is asked for, so that one that becomes INT8 is never in memory beside others. The same
    seed gives the same values on the same kind of device, whatever type they are then stored as.

    Args:
        config: the shape.
        device: where to draw: on the one that the model is on nothing is copied.
        seed: of the first tensor; each has its own.
    """

    def __init__(self, config: ModelConfig, device: torch.device, seed: int = 0) -> None:
        self._guesses = config.num_mtp_layers > 0 and config.mtp_layer is not None
        with torch.device("meta"):
            model = Transformer(replace(config, runs_mtp=self._guesses), max_model_len=1, dtype=torch.float32)
        # A name's spelling depends on those that a checkpoint has: with none, it is a tensor an expert.
        self._shapes = {name: place.tensor.shape for name, place in checkpoint_destinations(model, set()).items()}
        self._device, self._seed = device, seed

    def names(self) -> set[str]:
        """Of all tensors."""
        return set(self._shapes)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor, float32, drawn as it is yielded."""
        generator = torch.Generator(device=self._device)
        for index, (name, shape) in enumerate(self._shapes.items()):
            tensor = torch.empty(shape, dtype=torch.float32, device=self._device)
            if name.endswith("eh_proj.weight"):
                torch.nn.init.eye_(tensor)  # of the embedding; the hidden state's half is 0
            elif len(shape) > 1:
                is_damped = self._guesses and name.endswith(("o_proj.weight", "down_proj.weight"))
                deviation = DEVIATION * DAMPING if is_damped else DEVIATION
                tensor.normal_(0.0, deviation, generator=generator.manual_seed(self._seed + index))
            else:
                tensor.fill_(0.0 if name.endswith("bias") else 1.0)
            yield name, tensor
