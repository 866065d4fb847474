"""CacheSpec: what one layer keeps of each token. Plain Python, so that a configuration can say it without torch."""

import math
from dataclasses import dataclass
from typing import Final

SCALE_BYTES: Final = 4
"""Of an INT8 head's scale, float32."""


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

    def num_bytes(self, element_bytes: int, *, is_int8: bool) -> int:
        """Bytes a token: numbers of `element_bytes` each, or INT8 and a scale for each head."""
        if not is_int8:
            return self.num_elements * element_bytes
        return self.num_elements + SCALE_BYTES * sum(math.prod(shape[:-1]) for shape in self.entries)
