"""What `LLM` gives back, and a request on its way there: deltas in, output out."""

import struct
from dataclasses import dataclass, field

import msgspec

from deepseek_engine.detokenizer import Detokenizer
from deepseek_engine.errors import EngineError
from deepseek_engine.grammar.source import GrammarUse
from deepseek_engine.messages import Delta, EmbedParams, Submit, ThinkingMarkers, TokenLogprobs
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.text_stream import NoTextStream
from deepseek_engine.thinking_markers import markers_of_prompt
from deepseek_engine.tokenizer import Tokenizer


@dataclass(slots=True)
class CompletionOutput:
    """One answer. `stop_reason` is the stop string or the stop token that ended it, if one did."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its answers. `prompt_logprobs` has an entry a prompt token, None for the first."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """A prompt and its embedding."""

    request_id: str
    prompt_token_ids: list[int]
    embedding: list[float]


class PendingRequest:
    """A request under way.

    Args:
        request_id: of this engine.
        text: the prompt, where it was a text.
        ids: its tokens.
        params: how to answer.
        tokenizer: the model's.
        adapter: name of a loaded LoRA adapter.
        embed: asks for the prompt's embedding; `params` are then those of `max_tokens=0`.
    """

    def __init__(
        self,
        request_id: str,
        text: str | None,
        ids: list[int],
        params: SamplingParams,
        tokenizer: Tokenizer,
        adapter: str | None = None,
        embed: EmbedParams | None = None,
    ) -> None:
        self.submit = Submit(
            request_id=request_id,
            prompt_token_ids=ids,
            params=msgspec.structs.replace(params, structured_outputs=None),
            eos_token_ids=tokenizer.eos_token_ids,
            grammar=_grammar_use(params),
            adapter=adapter,
            embed=embed,
            thinking=_thinking(params, tokenizer, ids),
        )
        outputs = [CompletionOutput(i, logprobs=None if params.logprobs is None else []) for i in range(params.n)]
        self.output = RequestOutput(
            request_id, text, ids, outputs, prompt_logprobs=None if params.prompt_logprobs is None else [None]
        )
        self.embedding: list[float] = []
        new_stream = tokenizer.text_stream if params.detokenize else NoTextStream
        self._detokenizers = [Detokenizer(new_stream(), params.stop) for _ in outputs]

    @property
    def is_finished(self) -> bool:
        """Whether every answer has ended."""
        return all(answer.finish_reason is not None for answer in self.output.outputs)

    def take(self, delta: Delta) -> bool:
        """Add a delta to its answer; true if a stop string ended it, so that the engine need not go on.

        Raises:
            EngineError: the engine failed on the request.
        """
        if self.output.prompt_logprobs is not None:
            self.output.prompt_logprobs += delta.prompt_logprobs
        if delta.embedding is not None:
            self.embedding = unpack_embedding(delta.embedding)
        answer = self.output.outputs[delta.index]
        if answer.finish_reason is not None:
            return False
        if delta.error is not None:
            raise EngineError(delta.error)
        self.output.num_cached_tokens = delta.num_cached_tokens
        piece = self._detokenizers[delta.index].push(delta.token_ids)
        answer.text += piece.text
        answer.token_ids += delta.token_ids[: piece.num_tokens]
        if answer.logprobs is not None and delta.logprobs is not None:
            answer.logprobs += delta.logprobs[: piece.num_tokens]
        if piece.stop is None and delta.finish_reason is not None:
            rest = self._detokenizers[delta.index].finish()
            answer.text += rest.text
            answer.finish_reason, answer.stop_reason = delta.finish_reason, rest.stop or delta.stop_token_id
        elif piece.stop is not None:
            answer.finish_reason, answer.stop_reason = "stop", piece.stop
            return delta.finish_reason is None
        return False


def unpack_embedding(data: bytes) -> list[float]:
    """The numbers of `Delta.embedding`."""
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def _thinking(params: SamplingParams, tokenizer: Tokenizer, prompt: list[int]) -> ThinkingMarkers | None:
    """The tokens that a budget of thinking counts between; without them the engine refuses the budget."""
    encoder = tokenizer.chat_encoder
    markup = None if encoder is None else encoder.format.reasoning
    if params.thinking_token_budget is None or markup is None:
        return None
    return markers_of_prompt(tokenizer.token_id, markup, prompt)


def _grammar_use(params: SamplingParams) -> GrammarUse | None:
    return None if params.structured_outputs is None else GrammarUse(params.structured_outputs.to_source())
