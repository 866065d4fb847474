"""Choosing tokens, row by row and by sorting: the oracle of `kernels/triton/sampling.py`.

R rows of logits, V vocabulary.
"""

import ctypes
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from deepseek_engine.kernels.sampling_rows import (
    IN_ANSWER,
    IS_ADJUSTED,
    IS_FILTERED,
    IS_RANDOM,
    IS_REPORTED,
    ROW,
    ROW_BYTES,
    Needs,
    RowTable,
    SamplingConfig,
    Scratch,
)
from deepseek_engine.sampler import uniform
from deepseek_engine.sampling_params import MAX_LOGPROBS

Floats = np.ndarray[Any, np.dtype[np.float32]]
Record = Any
"""An element of an array of ROW."""


def choose_tokens(
    logits_RV: Tensor,
    rows: RowTable,
    needs: Needs,
    scratch: Scratch,
    config: SamplingConfig,
    out_R: Tensor,
    results: Tensor,
) -> None:
    """As its fast twin; reads the host's memory behind `counts_address`, so it is for CPU tensors."""
    _ = needs, scratch, config  # every row is done in full
    records = rows.buffer[: rows.max_rows * (ROW_BYTES // 8)].numpy().view(ROW)
    words = rows.int32.numpy()
    for row in range(logits_RV.shape[0]):
        record = records[row]
        logits = logits_RV[row].float().numpy()
        counts = _counts_at(int(record["counts_address"]), logits.size)
        adjusted = _adjusted(logits, record, counts, words) if record["flags"] & IS_ADJUSTED else logits
        token_id = int(record["forced_token_id"])
        if token_id < 0:
            token_id = _draw(adjusted, record) if record["flags"] & IS_RANDOM else int(adjusted.argmax())
        out_R[row] = token_id
        results[row, 0] = token_id
        if counts is not None:
            counts[token_id] += IN_ANSWER
        if record["flags"] & IS_REPORTED:
            _report(torch.from_numpy(logits), token_id, results[row])


def _counts_at(address: int, vocab_size: int) -> np.ndarray[Any, np.dtype[np.int32]] | None:
    if address == 0:
        return None
    return np.ctypeslib.as_array((ctypes.c_int32 * vocab_size).from_address(address))


def _adjusted(logits: Floats, record: Record, counts: Any, words: Any) -> Floats:
    values = logits.copy()
    if counts is not None:
        known = counts > 0
        in_answer = (counts[known] // IN_ANSWER).astype(np.float32)
        old, repetition = values[known], record["repetition_penalty"]
        some = cast("Floats", np.where(old > 0, old / repetition, old * repetition))
        some -= record["frequency_penalty"] * in_answer
        some -= record["presence_penalty"] * (in_answer > 0)
        values[known] = some
    begin, count = int(record["bias_at"]), int(record["num_bias"])
    values[words[begin : begin + count]] += words[begin + count : begin + 2 * count].view(np.float32)
    begin, count = int(record["forbidden_at"]), int(record["num_forbidden"])
    values[words[begin : begin + count]] = -np.inf
    if record["mask_at"] >= 0:
        begin = int(record["mask_at"])
        mask = words[begin : begin + -(-values.size // 32)].view(np.uint8)
        values[np.unpackbits(mask, bitorder="little", count=values.size) == 0] = -np.inf
    return values


def _draw(values: Floats, record: Record) -> int:
    number = uniform([int(record["seed"])], [int(record["position"])])[0]
    scaled = (values.astype(np.float64) - float(values.max())) / float(record["temperature"])
    weights = np.exp(scaled)
    order = np.arange(values.size)
    if record["flags"] & IS_FILTERED:
        order = np.argsort(-values, kind="stable")
        if record["top_k"] > 0:
            order = order[: int(record["top_k"])]
        running = weights[order].cumsum()
        if record["top_p"] < 1.0:
            order = order[running - weights[order] < record["top_p"] * running[-1]]
        order = order[weights[order] >= record["min_p"]]
    running = weights[order].cumsum()
    target: float = number * float(running[-1])
    place = int(np.searchsorted(running, target, side="right"))
    return int(order[min(place, len(order) - 1)])


def _report(logits: Tensor, token_id: int, result: Tensor) -> None:
    logprobs = logits.log_softmax(dim=-1)
    values, ids = logprobs.sort(descending=True, stable=True)
    count = min(MAX_LOGPROBS, logits.shape[0])
    result[1] = logprobs[token_id].view(torch.int32)
    result[2 : 2 + count] = ids[:count]
    result[2 + MAX_LOGPROBS : 2 + MAX_LOGPROBS + count] = values[:count].view(torch.int32)
