"""Grammar masks on logits: what the grammar does not allow cannot be chosen, whatever penalties and bias say.

R rows of logits, V vocabulary, M rows with a mask.
"""

from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from deepseek_engine.sequence import Sequence


def apply_token_masks(logits_RV: Tensor, sequences: Seq[Sequence]) -> None:
    """Set the logits of forbidden tokens to minus infinity, in place.

    Args:
        logits_RV: one row a sequence.
        sequences: in the rows' order; those without `token_mask` are left alone.
    """
    masked = [(row, each.token_mask) for row, each in enumerate(sequences) if each.token_mask is not None]
    if not masked:
        return
    rows = [row for row, _ in masked]
    masks = np.stack([mask for _, mask in masked])
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little", count=logits_RV.shape[1])
    is_forbidden_MV = torch.from_numpy(bits).to(logits_RV.device) == 0
    if len(rows) == len(sequences):
        logits_RV.masked_fill_(is_forbidden_MV, float("-inf"))
    else:
        for row, is_forbidden_V in zip(rows, is_forbidden_MV, strict=True):
            logits_RV[row].masked_fill_(is_forbidden_V, float("-inf"))
