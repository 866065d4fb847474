"""The decoder: one Transformer whose parts are chosen by the checkpoint's own config.

T tokens of the step, H hidden_size, R rows whose logits are asked for.

Where several ranks share a model, each builds it with its own part's config. All of them hold the residual stream; what
attention and feed-forwards add to it is a part of a sum on each.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek_engine.kernels.torch_attention import AttentionMetadata
from deepseek_engine.kv_cache.pool import KVCache
from deepseek_engine.layers.linear import Linear
from deepseek_engine.layers.norm import hidden_norm
from deepseek_engine.layers.rotary import rotary_table
from deepseek_engine.model_config import ModelConfig
from deepseek_engine.models.decoder_layer import DecoderLayer
from deepseek_engine.models.mtp import MtpLayer
from deepseek_engine.parallel.group import SINGLE, ParallelGroup


class Transformer(nn.Module):
    """Token ids to logits. Parameters are empty until `weights.load_weights` fills them.

    Args:
        config: the model's shape, or that of a rank's part.
        max_model_len: positions that rotary tables are made for.
        dtype: of parameters.
        group: the ranks that share the model; the head is cut by rows if they divide the vocabulary.
    """

    def __init__(
        self, config: ModelConfig, max_model_len: int, dtype: torch.dtype, group: ParallelGroup = SINGLE
    ) -> None:
        super().__init__()
        self.config, self.group = config, group
        self.embedding = nn.Parameter(
            torch.empty(config.vocab_size, config.hidden_size, dtype=dtype), requires_grad=False
        )
        self.layers = nn.ModuleList(DecoderLayer(config, layer, dtype, group) for layer in config.layers)
        self.norm = hidden_norm(config, dtype, is_final=True)
        self.is_head_cut = group.size > 1 and config.vocab_size % group.size == 0
        words = config.vocab_size // group.size if self.is_head_cut else config.vocab_size
        # A tied head is the embedding, whose rows are read as they are: in INT8 it would be a second copy.
        is_tied = config.tie_word_embeddings
        self.head = Linear(config.hidden_size, (words,), bias=config.lm_head_bias, dtype=dtype, keeps_precision=is_tied)
        if is_tied:
            self.tie_head()
        self.mtp = MtpLayer(config, config.mtp_layer, dtype, group) if config.runs_mtp and config.mtp_layer else None
        self.cos_sin = rotary_table(config.rope, max_model_len, dtype, torch.device("cpu"))

    def tie_head(self) -> None:
        """Make the head's weight the embedding, or this rank's words of it; again whenever that has moved."""
        self.head.weight = self.embedding
        if self.is_head_cut:
            words = self.head.out_features[0]
            rows = self.embedding.data[self.group.rank * words : (self.group.rank + 1) * words]
            self.head.weight = nn.Parameter(rows, requires_grad=False)

    def hidden(
        self, token_ids_T: Tensor, positions_T: Tensor, rows_R: Tensor, cache: KVCache, metadata: AttentionMetadata
    ) -> Tensor:
        """Run one step up to the last norm.

        Args:
            token_ids_T: int64.
            positions_T: int64, each token's place in its sequence.
            rows_R: int64, the rows of the batch whose result is wanted.
            cache: what earlier steps stored of each token; this step's tokens are added to it.
            metadata: where they go and what each token attends to.

        Returns:
            [R, H].
        """
        return self.norm(self.states(token_ids_T, positions_T, cache, metadata).index_select(0, rows_R))

    def states(self, token_ids_T: Tensor, positions_T: Tensor, cache: KVCache, metadata: AttentionMetadata) -> Tensor:
        """Run one step up to, and without, the last norm: [T, H]; arguments as of `hidden`."""
        x_TH = F.embedding(token_ids_T, self.embedding)
        cos_sin = self.cos_sin.index_select(0, positions_T)
        for index, layer in enumerate(self.layers):
            x_TH = layer(x_TH, cos_sin, cache.layer(index), metadata)
        return x_TH

    def logits(self, hidden_RH: Tensor) -> Tensor:
        """float32 [R, vocab_size] from what `hidden` gives."""
        logits = self.head(hidden_RH)
        return (self.group.all_gather(logits) if self.is_head_cut else logits).float()

    def forward(
        self, token_ids_T: Tensor, positions_T: Tensor, rows_R: Tensor, cache: KVCache, metadata: AttentionMetadata
    ) -> Tensor:
        """One step to logits, float32 [R, vocab_size]; arguments as of `hidden`."""
        return self.logits(self.hidden(token_ids_T, positions_T, rows_R, cache, metadata))
