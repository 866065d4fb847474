"""Mixture of attention heads (JetMoE, arXiv 2404.07413): each expert has its own query and output projection.

T tokens, H hidden_size, K experts a token, N key/value heads, D head_dim.

Keys and values do not depend on routing, so there is one ordinary stream of them: paging, prefix reuse and chunked
prefill work as for any model.
"""

import torch
from torch import Tensor, nn

from deepseek_engine.kernels.torch_attention import AttentionMetadata, attend
from deepseek_engine.layers.experts import ExpertGroups, expert_linear, weighted_sum
from deepseek_engine.layers.linear import Linear, QuantizableModule
from deepseek_engine.layers.rotary import rotate
from deepseek_engine.layers.routers import Router
from deepseek_engine.model_config import MixtureOfAttentionConfig


class MixtureOfAttention(QuantizableModule):
    """A token's K experts each ask N heads' queries of the same N keys and values.

    Attributes:
        queries: [E, N D, H]; queries_scale: float32 [E, N D] if the weights are int8, else None.
        outputs: [E, H, N D]; outputs_scale: float32 [E, H] likewise.
    """

    queries: nn.Parameter
    queries_scale: nn.Parameter | None
    outputs: nn.Parameter
    outputs_scale: nn.Parameter | None
    quantizable = ("queries", "outputs")

    def __init__(self, config: MixtureOfAttentionConfig, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        num_experts, width = config.num_local_experts, config.num_key_value_heads * config.head_dim
        self.router = Router(config.router, hidden_size, dtype)
        self.kv = Linear(hidden_size, (width, width), bias=False, dtype=dtype)
        self.queries = nn.Parameter(torch.empty(num_experts, width, hidden_size, dtype=dtype), requires_grad=False)
        self.outputs = nn.Parameter(torch.empty(num_experts, hidden_size, width, dtype=dtype), requires_grad=False)
        self.register_parameter("queries_scale", None)
        self.register_parameter("outputs_scale", None)
        self.bias = nn.Parameter(torch.empty(hidden_size, dtype=dtype), requires_grad=False)

    def forward(self, x_TH: Tensor, cos_sin: Tensor, cache: tuple[Tensor, ...], metadata: AttentionMetadata) -> Tensor:
        """[T, H] to [T, H]; the new keys and values are in the cache afterwards."""
        top_k, num_heads, dim = self.config.num_experts_per_tok, self.config.num_key_value_heads, self.config.head_dim
        num_tokens = x_TH.shape[0]
        weights_TK, expert_ids_TK = self.router(x_TH)
        groups = ExpertGroups.of(expert_ids_TK, self.config.num_local_experts)
        grouped = expert_linear(x_TH.index_select(0, groups.order // top_k), self.queries, self.queries_scale, groups)
        queries = torch.empty_like(grouped)
        queries[groups.order] = grouped

        # Attention wants the K queries of a key side by side: [T, K, N, D] to [T, N * K, D], and back.
        side_by_side = queries.view(num_tokens, top_k, num_heads, dim).transpose(1, 2).flatten(1, 2)
        k, v = self.kv(x_TH).view(num_tokens, 2 * num_heads, dim).split(num_heads, dim=1)
        rotated = rotate(torch.cat((side_by_side, k), dim=1), cos_sin)
        q, k = rotated[:, : num_heads * top_k], rotated[:, num_heads * top_k :]
        attended = attend(q, k, v, (cache[0], cache[1]), metadata)
        rows = attended.view(num_tokens, num_heads, top_k, dim).transpose(1, 2).reshape(num_tokens * top_k, -1)
        outputs = expert_linear(rows[groups.order], self.outputs, self.outputs_scale, groups)
        return weighted_sum(outputs, weights_TK, groups) + self.bias
