"""Log-probabilities as they are reported: of the chosen tokens, and of the likeliest ones beside them.

R rows, V vocabulary, K alternatives.
"""

from collections.abc import Sequence as Seq
from typing import cast

from torch import Tensor

from deepseek_engine.messages import TokenLogprobs, TopLogprob
from deepseek_engine.sampling_params import MAX_LOGPROBS


def read_logprobs(logprobs_RV: Tensor, token_ids_R: Tensor, num_top: Seq[int]) -> list[TokenLogprobs]:
    """What to report of each row.

    Args:
        logprobs_RV: normalised, float32.
        token_ids_R: the chosen tokens, int64.
        num_top: alternatives that each row reports, at most MAX_LOGPROBS.
    """
    chosen = cast("list[float]", logprobs_RV.gather(1, token_ids_R[:, None])[:, 0].tolist())
    if not any(num_top):
        return [TokenLogprobs(value) for value in chosen]
    # As many for all rows, whoever is there: which of two equal ones comes first follows from how many are taken.
    values_RK, ids_RK = logprobs_RV.topk(min(MAX_LOGPROBS, logprobs_RV.shape[1]))
    all_values = cast("list[list[float]]", values_RK.tolist())
    all_ids = cast("list[list[int]]", ids_RK.tolist())
    return [
        TokenLogprobs(value, tuple(map(TopLogprob, ids[:count], values[:count])))
        for value, count, ids, values in zip(chosen, num_top, all_ids, all_values, strict=True)
    ]
