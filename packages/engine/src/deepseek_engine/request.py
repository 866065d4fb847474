"""One submitted request: whether it fits this engine, and the sequences that its answers become."""

import hashlib
import secrets
from dataclasses import dataclass

from deepseek_engine.errors import ContextLengthError, InvalidRequestError
from deepseek_engine.messages import Ready, Submit
from deepseek_engine.prompt_reading import PromptReading, embedding_reading, logprobs_reading
from deepseek_engine.runner_protocol import RunnerInfo
from deepseek_engine.sequence import Sequence, SequenceStatus
from deepseek_engine.thinking import ThinkingState

# Both say what a loaded model can hold: the one in the core, the other in the API process.
Capacity = RunnerInfo | Ready


@dataclass(slots=True, eq=False)
class Request:
    """A request in the engine: its answers, and how much of the prompt has been processed for it so far.

    `arrived_s` and `started_s`, the beginning of the first step that it was part of, are of the engine's clock.
    """

    sequences: list[Sequence]
    num_unfinished: int
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    arrived_s: float = 0.0
    started_s: float | None = None

    def start(self, adapter_id: int = 0) -> Sequence:
        """The answer that computes the prompt; the others are its forks. Those that were cancelled are left out."""
        leader, *forks = [sequence for sequence in self.sequences if not sequence.is_finished]
        leader.status, leader.forks = SequenceStatus.WAITING, forks
        for sequence in (leader, *forks):
            sequence.adapter_id = adapter_id
        return leader

    def note_progress(self, sequence: Sequence, num_computed_tokens: int, step_began_s: float) -> None:
        """Take the furthest that any answer has come; what preemption repeats does not count again."""
        if self.started_s is None:
            self.started_s = step_began_s
        if self.num_prompt_tokens == 0:
            self.num_cached_tokens = sequence.num_cached_tokens
        done = min(num_computed_tokens, sequence.num_prompt_tokens)
        self.num_prompt_tokens = max(self.num_prompt_tokens, done)


def max_total_tokens(submit: Submit, capacity: Capacity) -> int:
    """The length at which the request's answers end, prompt included.

    Raises:
        ContextLengthError: prompt and max_tokens exceed the context, or what the KV cache can hold, or the prompt does
            not fit the one step that it has to be computed in.
        InvalidRequestError: the prompt is empty, or a token id is not in the vocabulary.
    """
    num_prompt_tokens = len(submit.prompt_token_ids)
    if not num_prompt_tokens:
        raise InvalidRequestError("the prompt has no tokens: at least one is needed", param="prompt")
    limit, what = capacity.max_model_len, "context"
    num_cache_tokens = capacity.num_blocks * capacity.block_size
    if num_cache_tokens < limit:
        limit, what = num_cache_tokens, "KV cache"
    max_tokens = submit.params.max_tokens
    num_new_tokens = 1 if max_tokens is None else max_tokens
    if num_prompt_tokens + num_new_tokens > limit:
        asked = "" if max_tokens is None else f", max_tokens={max_tokens}"
        if num_new_tokens < limit:
            way_out = f"at most {limit - num_new_tokens} prompt tokens fit"
        else:
            way_out = f"max_tokens can be at most {max(limit - num_prompt_tokens, 1)}"
        raise ContextLengthError(
            f"prompt has {num_prompt_tokens} tokens{asked}: the {what} is {limit} tokens, so {way_out}",
            param="prompt" if num_new_tokens < limit else "max_tokens",
        )
    if capacity.max_prefix_len is not None and num_prompt_tokens > capacity.max_prefix_len:
        raise ContextLengthError(
            f"prompt has {num_prompt_tokens} tokens: this engine's prompts attend in both directions, so that one is "
            f"computed in one step, which holds {capacity.max_prefix_len} tokens (max_num_batched_tokens)",
            param="prompt",
        )
    _check_vocabulary(submit, capacity.vocab_size)
    _check_thinking(submit)
    _check_reading(submit, capacity)
    return limit if max_tokens is None else num_prompt_tokens + max_tokens


def build_request(submit: Submit, capacity: Capacity) -> Request:
    """Make the answers' sequences, which wait for `Request.start`.

    Raises:
        InvalidRequestError: as `max_total_tokens` does.
    """
    total = max_total_tokens(submit, capacity)
    params = submit.params
    markers, reading = submit.thinking, _reading(submit)
    seed = secrets.randbits(64) if params.seed is None else params.seed
    # A grammar that is complete can only be ended.
    ignores_eos = params.ignore_eos and submit.grammar is None
    eos_token_ids = () if ignores_eos else submit.eos_token_ids
    sequences = [
        Sequence(
            request_id=submit.request_id,
            index=index,
            token_ids=list(submit.prompt_token_ids),
            params=params,
            sampling_seed=sampling_seed(seed, index),
            stop_token_ids=frozenset((*params.stop_token_ids, *eos_token_ids)),
            cache_salt=submit.cache_salt,
            tenant=submit.cache_salt,
            max_total_tokens=total,
            prefix_len=0 if capacity.max_prefix_len is None else len(submit.prompt_token_ids),
            status=SequenceStatus.PENDING,
            thinking=None if markers is None else ThinkingState(markers, params.thinking_token_budget),
            reading=reading,
        )
        for index in range(params.n)
    ]
    return Request(sequences, num_unfinished=params.n)


def sampling_seed(seed: int, index: int) -> int:
    """The seed of one answer, from 0 to 2**63 - 1: equal for equal request seed and index, else unrelated."""
    material = (seed % 2**64).to_bytes(8, "little") + index.to_bytes(8, "little")
    return int.from_bytes(hashlib.sha256(material).digest()[:8], "little") >> 1


def _reading(submit: Submit) -> PromptReading | None:
    num_prompt_tokens, embed = len(submit.prompt_token_ids), submit.embed
    if embed is not None:
        return embedding_reading(num_prompt_tokens, embed.pooling, normalise=embed.normalise)
    if submit.params.prompt_logprobs is not None:
        return logprobs_reading(num_prompt_tokens, submit.params.prompt_logprobs)
    return None


def _check_reading(submit: Submit, capacity: Capacity) -> None:
    params = submit.params
    if submit.embed is not None and (params.max_tokens, params.n, params.prompt_logprobs) != (0, 1, None):
        raise InvalidRequestError("embed goes with max_tokens=0, n=1 and no prompt_logprobs", param="embed")
    if params.prompt_logprobs is not None and capacity.max_prefix_len is not None:
        raise InvalidRequestError(
            "prompt_logprobs: this engine's prompts attend in both directions, so no token of one is predicted from "
            "those before it",
            param="prompt_logprobs",
        )


def _check_thinking(submit: Submit) -> None:
    markers = submit.thinking
    if markers is not None and not markers.end_token_ids:
        raise InvalidRequestError("thinking has no end_token_ids: reasoning could not be closed", param="thinking")
    if markers is None and submit.params.thinking_token_budget is not None:
        raise InvalidRequestError(
            "thinking_token_budget is set, and the tokens around this model's reasoning are not known: leave it out",
            param="thinking_token_budget",
        )


def _check_vocabulary(submit: Submit, vocab_size: int) -> None:
    params, markers = submit.params, submit.thinking
    for param, token_ids in (
        ("prompt", submit.prompt_token_ids),
        ("thinking", () if markers is None else (*markers.start_token_ids, *markers.end_token_ids)),
        ("stop_token_ids", params.stop_token_ids),
        ("logit_bias", params.logit_bias or ()),
    ):
        for token_id in (min(token_ids, default=0), max(token_ids, default=0)):
            if not 0 <= token_id < vocab_size:
                raise InvalidRequestError(
                    f"{param} has token id {token_id}: the vocabulary is 0 to {vocab_size - 1}", param=param
                )
