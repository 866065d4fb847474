"""CacheSpec: what one layer keeps of each token. Plain Python, so that a configuration can say it without torch."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """The entries that one layer stores for a token, by shape.

    Grouped-query attention keeps keys and values, `((kv heads, head_dim), (kv heads, head_dim))`; latent attention
    keeps one vector, `((kv_lora_rank + qk_rope_head_dim,),)`, and with an indexer that one's key as well.
    """

    entries: tuple[tuple[int, ...], ...]

    @property
    def num_elements(self) -> int:
        """Numbers a token."""
        return sum(math.prod(shape) for shape in self.entries)
