"""The shapes of attention: grouped queries, one latent for all heads, or a mixture of attention experts."""

from dataclasses import dataclass

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.kv_cache.specs import CacheSpec
from deepseek_engine.model_config.feed_forward import RouterConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedQueryConfig:
    """Grouped-query attention (arXiv 2305.13245).

    Attributes:
        qk_norm_eps: of the RMS norm over each head's query and key, where there is one (Qwen3).
        kv_replicas: ranks of tensor parallelism that have the same key/value head, where there are more ranks than
            heads; the other numbers are one rank's then.
    """

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm_eps: float | None = None
    kv_replicas: int = 1

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelLoadError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )

    @property
    def cache_spec(self) -> CacheSpec:
        """Keys and values."""
        heads = (self.num_key_value_heads, self.head_dim)
        return CacheSpec((heads, heads))


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexerConfig:
    """DeepSeek Sparse Attention: a small scorer that picks the `index_topk` keys which a query may see (V3.2)."""

    index_n_heads: int
    index_head_dim: int
    index_topk: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentConfig:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Attributes:
        q_lora_rank: width of the compressed query; None projects queries straight from the hidden state (V2-Lite).
        softmax_scale: of the scores, yarn's correction included.
        rope_interleave: whether rotary pairs are neighbours (as DeepSeek releases them) or halves apart.
        attention_bias: of the projections that read or write the hidden state.
    """

    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    softmax_scale: float
    rope_interleave: bool = True
    attention_bias: bool = False
    indexer: IndexerConfig | None = None

    @property
    def qk_head_dim(self) -> int:
        """Width of one head's query: the part without position and the rotated part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """What is cached of a token: the compressed keys and values, then the one rotated key of all heads."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def cache_spec(self) -> CacheSpec:
        """The latent, then the indexer's key where there is one."""
        index_keys = () if self.indexer is None else ((self.indexer.index_head_dim,),)
        return CacheSpec(((self.latent_dim,), *index_keys))


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureOfAttentionConfig:
    """Mixture of attention heads (JetMoE, arXiv 2404.07413): experts own queries and outputs only."""

    num_key_value_heads: int
    head_dim: int
    num_local_experts: int
    num_experts_per_tok: int

    @property
    def router(self) -> RouterConfig:
        """How heads are chosen: the weights are a softmax over the chosen ones."""
        return RouterConfig(
            kind="softmax",
            num_experts=self.num_local_experts,
            num_experts_per_tok=self.num_experts_per_tok,
            norm_topk_prob=True,
        )

    @property
    def cache_spec(self) -> CacheSpec:
        """Keys and values; routing does not touch them."""
        heads = (self.num_key_value_heads, self.head_dim)
        return CacheSpec((heads, heads))


AttentionConfig = GroupedQueryConfig | LatentConfig | MixtureOfAttentionConfig
