"""The decoder: one Transformer whose parts are chosen by the checkpoint's own config.

T tokens of the step, H hidden_size, R rows whose logits are asked for.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek_engine.kernels.torch_attention import AttentionMetadata
from deepseek_engine.kv_cache.pool import KVCache
from deepseek_engine.layers.attention import GroupedQueryAttention
from deepseek_engine.layers.feed_forward import GatedFeedForward, MixtureOfExperts
from deepseek_engine.layers.linear import Linear
from deepseek_engine.layers.rotary import rotary_table
from deepseek_engine.model_config import ModelConfig


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, dtype=dtype), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] to the same shape."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each on a normalised residual stream."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.attention = GroupedQueryAttention(config, dtype)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        is_moe = config.num_local_experts > 0
        self.feed_forward = MixtureOfExperts(config, dtype) if is_moe else GatedFeedForward(config, dtype)

    def forward(
        self, x_TH: Tensor, cos_sin: Tensor, cache: tuple[Tensor, Tensor], metadata: AttentionMetadata
    ) -> Tensor:
        """[T, H] to [T, H]."""
        x_TH = x_TH + self.attention(self.attention_norm(x_TH), cos_sin, cache, metadata)
        return x_TH + self.feed_forward(self.feed_forward_norm(x_TH))


class Transformer(nn.Module):
    """Token ids to logits. Parameters are empty until `weights.load_weights` fills them."""

    def __init__(self, config: ModelConfig, max_model_len: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(
            torch.empty(config.vocab_size, config.hidden_size, dtype=dtype), requires_grad=False
        )
        self.layers = nn.ModuleList(DecoderLayer(config, dtype) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.head = Linear(config.hidden_size, (config.vocab_size,), bias=False, dtype=dtype, keeps_precision=True)
        if config.tie_word_embeddings:
            self.head.weight = self.embedding
        self.cos_sin = rotary_table(config, max_model_len, dtype, torch.device("cpu"))

    def forward(
        self, token_ids_T: Tensor, positions_T: Tensor, rows_R: Tensor, cache: KVCache, metadata: AttentionMetadata
    ) -> Tensor:
        """Run one step.

        Args:
            token_ids_T: int64.
            positions_T: int64, each token's place in its sequence.
            rows_R: int64, the rows of the batch whose logits are wanted.
            cache: keys and values; this step's are written to it.
            metadata: where they go and what each token attends to.

        Returns:
            logits, [R, vocab_size], float32.
        """
        x_TH = F.embedding(token_ids_T, self.embedding)
        cos_sin = self.cos_sin.index_select(0, positions_T)
        for index, layer in enumerate(self.layers):
            x_TH = layer(x_TH, cos_sin, cache.layer(index), metadata)
        return self.head(self.norm(x_TH.index_select(0, rows_R))).float()
