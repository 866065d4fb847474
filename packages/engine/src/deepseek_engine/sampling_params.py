"""What the caller asked of the sampler."""

from typing import Final

import msgspec

from deepseek_engine.errors import InvalidRequestError
from deepseek_engine.grammar.params import StructuredOutputsParams

MAX_COUNT: Final = 2**31 - 1
"""Above every context and vocabulary: what a number of tokens may be without being a mistake."""
MAX_N: Final = 64
MAX_LOGPROBS: Final = 20
MAX_STOP_STRINGS: Final = 16
MAX_STOP_STRING_CHARS: Final = 1024
MAX_STOP_TOKEN_IDS: Final = 256
MAX_LOGIT_BIAS: Final = 1024
MAX_PRIORITY: Final = 100
MAX_DEADLINE_S: Final = 86400.0


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to choose tokens and when to stop; every field has vLLM's name and meaning.

    Attributes:
        n: answers a prompt.
        max_tokens: tokens to generate at most; None is as many as the context has room for, 0 only reads the prompt.
        min_tokens: tokens before an end-of-sequence or stop token may be chosen.
        temperature: 0 is greedy.
        top_p: keep the likeliest tokens that together have this probability; 1 is off.
        top_k: keep this many likeliest tokens; 0 or -1 is off.
        min_p: keep tokens with at least this share of the likeliest token's probability; 0 is off.
        repetition_penalty: over 1 makes tokens of the prompt and the answer less likely (CTRL, arXiv 1909.05858).
        presence_penalty: subtracted once from the logit of every token of the answer.
        frequency_penalty: subtracted from a token's logit for each time that it is in the answer.
        seed: the same seed gives the same tokens, whatever else is in the batch.
        stop: strings that end the answer and are not part of it.
        stop_token_ids: tokens that end the answer.
        ignore_eos: go on after the end-of-sequence token.
        logit_bias: added to the logits of these token ids.
        structured_outputs: what the answer must look like; read by `LLM`, the server sends grammars beside it.
        thinking_token_budget: tokens of reasoning after which its end is forced, so that the answer begins; 0 begins it
            at once, None is no limit. It counts among `max_tokens` like any other token.
        logprobs: alternatives to report a token beside the chosen one; 0 is the chosen one only, None is off.
        prompt_logprobs: as `logprobs`, for the tokens of the prompt; such a prompt is computed in full, whatever the
            prefix cache holds.
        detokenize: whether `LLM` makes text of the answer; off, `text` stays empty, which saves the host's time.
        priority: who goes first, from -100 to 100; lower is sooner, 0 is usual.
        deadline_s: seconds from submission after which the answers end as they are; None is no limit.

    Raises:
        InvalidRequestError: a value is out of range; `param` names it.
    """

    n: int = 1
    max_tokens: int | None = 512
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: dict[int, float] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    thinking_token_budget: int | None = None
    priority: int = 0
    deadline_s: float | None = None
    structured_outputs: StructuredOutputsParams | None = None
    detokenize: bool = True

    def __post_init__(self) -> None:
        _in_range("n", self.n, 1, MAX_N)
        if self.max_tokens is not None:
            _in_range("max_tokens", self.max_tokens, 0, MAX_COUNT)
        _in_range("min_tokens", self.min_tokens, 0, MAX_COUNT if self.max_tokens is None else self.max_tokens)
        _in_range("temperature", self.temperature, 0.0, 2.0)
        _in_range("top_p", self.top_p, 0.0, 1.0, low_open=True)
        _in_range("top_k", self.top_k, -1, MAX_COUNT)
        _in_range("min_p", self.min_p, 0.0, 1.0)
        _in_range("repetition_penalty", self.repetition_penalty, 0.0, 10.0, low_open=True)
        _in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.seed is not None:
            _in_range("seed", self.seed, -(2**63), 2**64 - 1)
        if self.thinking_token_budget is not None:
            _in_range("thinking_token_budget", self.thinking_token_budget, 0, MAX_COUNT)
        if self.logprobs is not None:
            _in_range("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.prompt_logprobs is not None:
            _in_range("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        _in_range("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY)
        if self.deadline_s is not None:
            _in_range("deadline_s", self.deadline_s, 0.0, MAX_DEADLINE_S, low_open=True)
        _at_most("stop", len(self.stop), MAX_STOP_STRINGS, "strings")
        for text in self.stop:
            if not text:
                raise InvalidRequestError(
                    "stop has an empty string: every text would match; leave it out", param="stop"
                )
            _at_most("stop", len(text), MAX_STOP_STRING_CHARS, "characters in one string")
        if self.stop and not self.detokenize:
            raise InvalidRequestError("stop is looked for in text: it needs detokenize=True", param="stop")
        _at_most("stop_token_ids", len(self.stop_token_ids), MAX_STOP_TOKEN_IDS, "ids")
        if self.logit_bias is not None:
            _at_most("logit_bias", len(self.logit_bias), MAX_LOGIT_BIAS, "entries")
            for bias in self.logit_bias.values():
                _in_range("logit_bias", bias, -100.0, 100.0)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always the one chosen."""
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def penalises_tokens(self) -> bool:
        """Whether what has been generated changes the logits of what comes."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


def _in_range(param: str, value: float, low: float, high: float, *, low_open: bool = False) -> None:
    # Written so that NaN, which no comparison holds for, is out of range; integers of any length can be compared.
    if not ((low < value if low_open else low <= value) and value <= high):
        bound = f"{'more than' if low_open else 'at least'} {low} and at most {high}"
        raise InvalidRequestError(f"{param}={value} is out of range: it must be {bound}", param=param)


def _at_most(param: str, count: int, limit: int, what: str) -> None:
    if count > limit:
        raise InvalidRequestError(f"{param} has {count} {what}: at most {limit} are allowed", param=param)
