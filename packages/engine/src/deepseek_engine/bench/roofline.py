"""The time that a model's bytes and operations take at the device's ceilings: what no implementation is faster than.

Bytes are those of weights and KV that have to be read, operations those of matrix products and attention. Embedding
rows, norms and activations are left out, a thousandth of the rest. Counts come from the model's own parameters.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from torch import nn

from deepseek_engine.bench.ceilings import Ceilings
from deepseek_engine.load_report import kind_of
from deepseek_engine.model_config import (
    AttentionConfig,
    GroupedQueryConfig,
    LatentConfig,
    LayerConfig,
    MixtureOfAttentionConfig,
    MoEConfig,
)
from deepseek_engine.models.transformer import Transformer

_NOT_READ: Final = ("embeddings", "norms")


@dataclass(frozen=True, slots=True)
class Roofline:
    """A model on a device.

    Args:
        model: its parameters say types and sizes; they may be on the meta device.
        ceilings: of the device, with the rate of every type that the model's matrices have.
        kv_bytes_per_token: what the cache stores of a token, all layers together.
    """

    model: Transformer
    ceilings: Ceilings
    kv_bytes_per_token: float

    def step_floor_ms(self, batch_size: int, context: int) -> float:
        """One decode step: the longer of reading and computing.

        Args:
            batch_size: sequences that decode.
            context: tokens before each; 0 counts weights alone.
        """
        num_bytes = sum(active_bytes(self.model, batch_size).values()) + batch_size * context * self.kv_bytes_per_token
        reading_s = num_bytes / self.ceilings.copy_gb_s / 1e9
        return max(reading_s, batch_size * self._token_s(context, with_head=True)) * 1e3

    def prefill_floor_s(self, num_prompts: int, prompt_tokens: int) -> float:
        """Prompts from their first token on, each token attending to half of its prompt on average."""
        return num_prompts * prompt_tokens * self._token_s(prompt_tokens / 2, with_head=False)

    def _token_s(self, context: float, *, with_head: bool) -> float:
        """Seconds of one token's operations."""
        times = [
            ops / self.ceilings.tera_ops[dtype] for dtype, ops in matrix_ops(self.model, with_head=with_head).items()
        ]
        dtype = str(self.model.embedding.dtype).removeprefix("torch.")
        times.append(context * attention_ops_per_key(self.model) / self.ceilings.tera_ops[dtype])
        return sum(times) / 1e12


def active_bytes(model: Transformer, batch_size: int = 1) -> dict[str, int]:
    """Bytes of weights that one decode step reads, by part of the model; an INT8 weight's scales belong to it.

    Of the routed experts those count that a batch is expected to touch where each token takes any K of the E:
    `E (1 - (1 - K / E)^batch_size)`.
    """
    found: Counter[str] = Counter()
    for kind, _, parameter, share in _read_parameters(model):
        found[kind] += round(parameter.nbytes * (1 - (1 - share) ** batch_size))
    return dict(found)


def matrix_ops(model: Transformer, *, with_head: bool) -> dict[str, float]:
    """Operations of one token in matrix products, by torch's name of the matrix's type: two a value."""
    found: dict[str, float] = {}
    for kind, name, parameter, share in _read_parameters(model):
        if parameter.dim() > 1 and not name.endswith("_scale") and (with_head or kind != "head"):
            dtype = str(parameter.dtype).removeprefix("torch.")
            found[dtype] = found.get(dtype, 0.0) + 2 * parameter.numel() * share
    return found


def attention_ops_per_key(model: Transformer) -> int:
    """Operations of one token for each token that it attends to, all layers together."""
    return sum(_ops_per_key(layer.attention) for layer in model.config.layers)


def _ops_per_key(config: AttentionConfig) -> int:
    match config:
        case GroupedQueryConfig():
            return 4 * config.num_attention_heads * config.head_dim
        case LatentConfig():  # not folded, as prompts are best computed
            return 2 * config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
        case MixtureOfAttentionConfig():
            return 4 * config.num_experts_per_tok * config.num_key_value_heads * config.head_dim


def _read_parameters(model: Transformer) -> Iterator[tuple[str, str, nn.Parameter, float]]:
    """Of each parameter that a step reads: its part of the model, its name, itself, the share that one token needs."""
    for name, parameter in model.named_parameters():
        kind = kind_of(name)
        if parameter is model.embedding and model.config.tie_word_embeddings:
            yield "head", name, parameter, 1.0
        elif kind not in _NOT_READ:
            yield kind, name, parameter, _share_of_a_token(model.config.layers, name, parameter)


def _share_of_a_token(layers: Sequence[LayerConfig], name: str, parameter: nn.Parameter) -> float:
    """K of E for what holds all experts, else 1."""
    top, _, rest = name.partition(".")
    if top != "layers":
        return 1.0
    index, part, _ = rest.split(".", 2)
    layer = layers[int(index)]
    config = layer.feed_forward if part == "feed_forward" else layer.attention
    if not isinstance(config, MoEConfig | MixtureOfAttentionConfig):
        return 1.0
    # Stacks of experts are [E, N, K] and their scales [E, N]; everything else has a dimension less.
    holds_experts = parameter.dim() == (2 if name.endswith("_scale") else 3)
    return config.router.num_experts_per_tok / config.router.num_experts if holds_experts else 1.0
