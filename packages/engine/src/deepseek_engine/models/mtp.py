"""Multi-token prediction: one layer behind the model that guesses the token after the next (DeepSeek-V3, section 2.2).

T tokens, H hidden_size.

At position i the layer reads the token t_i and the model's hidden state of the token before, h_(i-1), and what it says
is a guess for t_(i+1). In the paper, and in checkpoints, that is position i - 1. Here it is i, so that what the layer
keeps of a position follows from the tokens up to that position alone, as all else in the KV cache does: blocks may be
shared and reused by the same rule. Position 0 has no hidden state before it, and no query sees it.
"""

from collections.abc import Set as AbstractSet
from dataclasses import replace

import torch
from torch import Tensor, nn

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.kernels.torch_attention import AttentionMetadata
from deepseek_engine.layers.latent_attention import LatentAttention
from deepseek_engine.layers.linear import Linear
from deepseek_engine.layers.norm import hidden_norm
from deepseek_engine.model_config import LayerConfig, ModelConfig
from deepseek_engine.models.decoder_layer import DecoderLayer
from deepseek_engine.parallel.group import ParallelGroup


class MtpLayer(nn.Module):
    """Merges a token's embedding with the hidden state before it, and runs one decoder layer on that.

    The embedding and the head are the model's own.
    """

    def __init__(self, config: ModelConfig, layer: LayerConfig, dtype: torch.dtype, group: ParallelGroup) -> None:
        super().__init__()
        size = config.hidden_size
        self.embedding_norm = hidden_norm(config, dtype)
        self.hidden_norm = hidden_norm(config, dtype)
        # Released FP8 checkpoints leave it in full precision.
        self.merge = Linear(2 * size, (size,), bias=False, dtype=dtype, keeps_precision=True)
        self.layer = DecoderLayer(config, layer, dtype, group)
        self.norm = hidden_norm(config, dtype)

    def forward(
        self,
        embedding_TH: Tensor,
        hidden_TH: Tensor,
        cos_sin: Tensor,
        cache: tuple[Tensor, ...],
        metadata: AttentionMetadata,
    ) -> Tensor:
        """Guess; the positions are in the cache afterwards.

        Args:
            embedding_TH: of each position's token.
            hidden_TH: behind the model's last norm, of the token before; or what this gave for it, to guess further.
            cos_sin: of the positions.
            cache: this layer's.
            metadata: where they go and what they see, position 0 not among it.

        Returns:
            [T, H], for the model's head.
        """
        return self.norm(self.layer(self._merged(embedding_TH, hidden_TH), cos_sin, cache, metadata))

    def fill(
        self, embedding_TH: Tensor, hidden_TH: Tensor, cos_sin: Tensor, cache: tuple[Tensor, ...], slots_T: Tensor
    ) -> None:
        """Keep positions for later guesses without guessing there: of the layer, that takes keys alone."""
        attention = self.layer.attention
        assert isinstance(attention, LatentAttention), "only DeepSeek-V3 and its kin have such layers"
        x_TH = self.layer.attention_norm(self._merged(embedding_TH, hidden_TH))
        attention.store(x_TH, cos_sin, cache, slots_T)

    def _merged(self, embedding_TH: Tensor, hidden_TH: Tensor) -> Tensor:
        return self.merge(torch.cat((self.embedding_norm(embedding_TH), self.hidden_norm(hidden_TH)), dim=-1))


def mtp_prefix(config: ModelConfig) -> str:
    """What the names of the layer's tensors begin with in a checkpoint."""
    return f"model.layers.{len(config.layers)}."


def with_mtp(config: ModelConfig, names: AbstractSet[str], model: str) -> ModelConfig:
    """The model's shape together with its MTP layer.

    Args:
        config: without it.
        names: of the checkpoint's tensors.
        model: what the user calls it.

    Raises:
        ModelLoadError: there is no such layer.
    """
    if config.mtp_layer is None or config.num_mtp_layers == 0:
        raise ModelLoadError(
            f"speculation='mtp' needs a model with a layer for multi-token prediction, and {model} "
            f"({config.architecture}, num_nextn_predict_layers={config.num_mtp_layers}) has none: use "
            "speculation='ngram', which any model can"
        )
    prefix = mtp_prefix(config)
    if not any(name.startswith(prefix) for name in names):
        raise ModelLoadError(
            f"speculation='mtp' needs the tensors {prefix}*, and the checkpoint {model} has none of them, as GGUF "
            "files and rewritten checkpoints often lack them: take the model as it was released, or use "
            "speculation='ngram'"
        )
    return replace(config, runs_mtp=True)
