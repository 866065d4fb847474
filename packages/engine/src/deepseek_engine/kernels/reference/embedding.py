"""`kernels/triton/embedding.py` with PyTorch's operators."""

import torch
from torch import Tensor


def embed(token_ids_T: Tensor, sources_T: Tensor | None, sampled_R: Tensor, embedding: Tensor) -> Tensor:
    """See the kernel."""
    ids = token_ids_T.long()
    if sources_T is not None:
        of_rows = ids[: sources_T.shape[0]]
        pending = sampled_R.long()[sources_T.long().clamp(min=0)]
        ids = torch.cat((torch.where(sources_T >= 0, pending, of_rows), ids[sources_T.shape[0] :]))
    return embedding[ids]
