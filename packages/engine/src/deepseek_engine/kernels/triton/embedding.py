"""Embeddings of a step's tokens, of which some were sampled in the step before and are known to the device alone.

T tokens, D single-token rows among them, R rows of the step before, H hidden_size.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# Triton compiles these functions from their source: their values have no Python types.

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_engine.kernels.triton.launch import has_dependent_launch, let_next_begin, wait_for_inputs


@triton.jit(do_not_specialize=["token_ids", "sources", "num_sources"])
def _embed_kernel(
    token_ids, sources, sampled, embedding, out, num_sources,
    H: tl.constexpr, HAS_SOURCES: tl.constexpr, BLOCK_H: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    features = tl.arange(0, BLOCK_H)
    let_next_begin(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    token_id = tl.load(token_ids + row)
    if HAS_SOURCES:
        source = tl.load(sources + row, mask=row < num_sources, other=-1)
        pending = tl.load(sampled + source, mask=source >= 0, other=0).to(token_id.dtype)
        token_id = tl.where(source >= 0, pending, token_id)
    values = tl.load(embedding + token_id.to(tl.int64) * H + features, mask=features < H, other=0.0)
    tl.store(out + row.to(tl.int64) * H + features, values, mask=features < H)


def embed(token_ids_T: Tensor, sources_T: Tensor | None, sampled_R: Tensor, embedding: Tensor) -> Tensor:
    """Each token's embedding, [T, H].

    Args:
        token_ids_T: int32.
        sources_T: int32 [D], for the first D tokens: the row of the step before whose sampled token it is, -1 if it is
            the one in `token_ids_T`. None if all are known.
        sampled_R: int32 or int64, tokens sampled in the step before.
        embedding: [V, H].
    """
    num_tokens, hidden_size = token_ids_T.shape[0], embedding.shape[1]
    out = torch.empty(num_tokens, hidden_size, dtype=embedding.dtype, device=embedding.device)
    is_dependent = has_dependent_launch(embedding.device)
    _embed_kernel[(num_tokens,)](
        token_ids_T, sources_T, sampled_R, embedding, out, 0 if sources_T is None else sources_T.shape[0],
        H=hidden_size, HAS_SOURCES=sources_T is not None, BLOCK_H=triton.next_power_of_2(hidden_size),
        IS_DEPENDENT=is_dependent, num_warps=4, launch_pdl=is_dependent,
    )  # fmt: skip
    return out
