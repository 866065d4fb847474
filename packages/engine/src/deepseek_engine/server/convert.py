"""Wire request to job: texts to token ids, fields to sampling parameters, with the server's defaults and limits."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final, TypeVar, cast

import msgspec

from deepseek_client.types import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    GenerateRequest,
    SamplingFields,
)
from deepseek_engine.chat.conversation import ChatEncoder, Conversation
from deepseek_engine.errors import InvalidRequestError
from deepseek_engine.infill import Infill, find_infill
from deepseek_engine.sampling_params import MAX_PRIORITY, SamplingParams
from deepseek_engine.server.chat_messages import num_chars, plain_messages
from deepseek_engine.server.embeddings import embed_params
from deepseek_engine.server.encoding import PromptEncoder
from deepseek_engine.server.errors import ApiError, unsupported
from deepseek_engine.server.job import Job, Prompt
from deepseek_engine.server.limits import DEFAULT_GENERATE_MAX_TOKENS, MAX_CHOICES, MAX_EMBEDDING_INPUTS, MAX_PROMPTS
from deepseek_engine.server.reasoning import ThinkingWish, budget_markers, read_thinking
from deepseek_engine.server.settings import ServerSettings
from deepseek_engine.server.tools import ToolUse, read_tools
from deepseek_engine.text_parsers.parser import ParserSpec
from deepseek_engine.tokenizer import Tokenizer

_TOOLS_CHARS: Final = 5000
"""What tools count as in the length of a conversation, which says where it is encoded."""

Result = TypeVar("Result")


class Converter:
    """Turns requests into jobs for one model.

    Args:
        tokenizer: the model's.
        settings: defaults of requests, and the model's names.
        context_len: most tokens of a prompt and its answer together.
        vocab_size: ids that the model knows.
        hidden_size: numbers of an embedding.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        settings: ServerSettings,
        *,
        context_len: int,
        vocab_size: int,
        hidden_size: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._encoder = PromptEncoder(tokenizer)
        self._infill = find_infill(tokenizer.token_id)
        self._settings = settings
        self._context_len = context_len
        self._vocab_size = vocab_size
        self._hidden_size = hidden_size

    async def generate(self, request: GenerateRequest) -> Job:
        """A one-shot instruct call: one user turn of the chat template, if there is one and `raw` is not set."""
        if request.n not in (None, 1):
            raise unsupported("n", f"n={request.n}: generate gives one answer; use /v1/completions for several")
        text = request.prompt
        if request.raw or self._tokenizer.chat_encoder is None:
            (token_ids,) = await self._encoder.texts([text])
        else:
            turn = Conversation([{"role": "user", "content": text}])
            token_ids = (await self._encoder.conversation(turn, len(text))).token_ids
        prompt = self._prompt(request, token_ids, request.max_tokens, default=DEFAULT_GENERATE_MAX_TOKENS)
        return self._job(request, (prompt,))

    async def chat(self, request: ChatCompletionRequest) -> Job:
        """A conversation; with `prefix` on the last message, which is the assistant's, the answer continues it."""
        messages, continue_final = plain_messages(request.messages)
        tools, wish = read_tools(request), read_thinking(request)
        num_logprobs = _chat_logprobs(request)
        encoder = self._tokenizer.chat_encoder
        if encoder is not None:
            _check_abilities(encoder, tools, wish)
        conversation = Conversation(messages, tools.tools, wish.thinking, wish.effort, continue_final)
        size = num_chars(messages) + (_TOOLS_CHARS if tools.tools else 0)
        encoded = await self._encoder.conversation(conversation, size)
        token_ids = encoded.token_ids
        spellings = {"logprobs": "top_logprobs"}
        max_tokens = request.max_tokens
        if request.max_completion_tokens is not None:
            max_tokens, spellings["max_tokens"] = request.max_completion_tokens, "max_completion_tokens"
        prompt = self._prompt(request, token_ids, max_tokens, num_logprobs=num_logprobs, spellings=spellings)
        parser = thinking = None
        if encoder is not None:
            parser = ParserSpec(encoder.format, encoded.reasoning, tools.names, None if tools.is_parallel else 1)
            if wish.budget is not None and parser.reads_reasoning and encoder.format.reasoning is not None:
                thinking = budget_markers(self._tokenizer, encoder.format.reasoning, encoded.reasoning)
                params = msgspec.structs.replace(prompt.params, thinking_token_budget=wish.budget)
                prompt = replace(prompt, params=params)
        return replace(self._job(request, (prompt,), parser), thinking=thinking, tools=tools)

    async def completions(self, request: CompletionRequest) -> Job:
        """One or several texts or token-id lists to continue."""
        num_prompt_logprobs = _prompt_logprobs(request)
        texts = _listed_prompts(request.prompt)
        if not texts or len(texts) > MAX_PROMPTS:
            raise ApiError(400, f"prompt has {len(texts)} entries: from 1 to {MAX_PROMPTS} are allowed", param="prompt")
        choices = len(texts) * (request.n or 1)
        if choices > MAX_CHOICES:
            message = (
                f"{len(texts)} prompts with n={request.n} are {choices} answers: at most {MAX_CHOICES} are allowed"
            )
            raise ApiError(422, message, param="n")
        infill = self._infill_for(request, texts) if request.suffix else None
        asked: list[str | list[int]] = texts
        if infill is not None:
            asked = [infill.format.prompt(str(text), request.suffix or "") for text in texts]
        encoded = await self._encoder.texts(asked)
        prompts = tuple(
            self._prompt(
                request,
                token_ids,
                request.max_tokens,
                num_logprobs=request.logprobs,
                num_prompt_logprobs=num_prompt_logprobs,
                echo=self._echo(text) if request.echo else None,
            )
            for text, token_ids in zip(texts, encoded, strict=True)
        )
        return replace(self._job(request, prompts), end_token_ids=() if infill is None else infill.end_token_ids)

    async def embeddings(self, request: EmbeddingRequest) -> Job:
        """One or several texts or token-id lists to embed."""
        embed = embed_params(request, pooling=self._settings.pooling, hidden_size=self._hidden_size)
        inputs = _listed_prompts(request.input)
        if not 1 <= len(inputs) <= MAX_EMBEDDING_INPUTS:
            message = f"input has {len(inputs)} entries: from 1 to {MAX_EMBEDDING_INPUTS} are allowed"
            raise ApiError(400, message, param="input")
        encoded = await self._encoder.texts(inputs)
        params = SamplingParams(
            max_tokens=0, priority=self._priority(request.priority), deadline_s=self._deadline_s(request.deadline_s)
        )
        prompts: list[Prompt] = []
        for index, token_ids in enumerate(encoded):
            self._known_ids("input", token_ids)
            if not 0 < len(token_ids) <= self._context_len:
                message = f"input[{index}] has {len(token_ids)} tokens: from 1 to {self._context_len} fit the context"
                code = "context_length_exceeded" if token_ids else None
                raise ApiError(400, message, param="input", code=code)
            prompts.append(Prompt(token_ids, params, embed=embed))
        return replace(self._job(request, tuple(prompts)), is_base64=request.encoding_format == "base64")

    def _infill_for(self, request: CompletionRequest, prompts: Sequence[str | list[int]]) -> Infill:
        if self._infill is None:
            raise unsupported(
                "suffix", "suffix: this model was not made to fill in the middle: its vocabulary has no tokens for it"
            )
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise ApiError(400, "suffix goes with a prompt that is text, not token ids", param="suffix")
        if request.echo and request.logprobs is not None:
            raise ApiError(
                400, "suffix: echo with logprobs would score the suffix as well; leave one of them out", param="suffix"
            )
        return self._infill

    def _echo(self, prompt: str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(self._known_ids("prompt", prompt))

    def _job(self, request: SamplingFields, prompts: tuple[Prompt, ...], parser: ParserSpec | None = None) -> Job:
        options = request.stream_options
        return Job(
            model=request.model or self._settings.model_names[0],
            prompts=prompts,
            stream=bool(request.stream),
            include_usage=bool(options and options.include_usage),
            continuous_usage=bool(options and options.continuous_usage_stats),
            return_token_ids=bool(request.return_token_ids),
            parser=parser,
        )

    def _prompt(
        self,
        request: SamplingFields,
        token_ids: list[int],
        max_tokens: int | None,
        *,
        default: int | None = None,
        spellings: Mapping[str, str] = MappingProxyType({}),
        num_logprobs: int | None = None,
        num_prompt_logprobs: int | None = None,
        echo: str | None = None,
    ) -> Prompt:
        """One prompt; `echo` is not None where answers begin with it."""
        self._known_ids("prompt", token_ids)
        if max_tokens is None and (default := self._settings.max_tokens or default) is not None:
            # A default gives way to a long prompt; what the caller asked for does not, and the engine says so.
            max_tokens = min(default, max(self._context_len - len(token_ids), 1))
        if max_tokens == 0 and echo is None and num_prompt_logprobs is None:
            name = spellings.get("max_tokens", "max_tokens")
            message = f"{name}=0 is out of range: it must be at least 1, or come with echo or prompt_logprobs"
            raise ApiError(422, message, param=name)
        params = self._params(request, max_tokens, num_logprobs, num_prompt_logprobs, spellings)
        return Prompt(token_ids, params, echo or "", echo is not None and num_logprobs is not None)

    def _params(
        self,
        request: SamplingFields,
        max_tokens: int | None,
        num_logprobs: int | None,
        num_prompt_logprobs: int | None,
        spellings: Mapping[str, str],
    ) -> SamplingParams:
        settings = self._settings
        try:
            return SamplingParams(
                n=_given(request.n, 1),
                max_tokens=max_tokens,
                min_tokens=_given(request.min_tokens, 0),
                temperature=_given(request.temperature, settings.temperature),
                top_p=_given(request.top_p, settings.top_p),
                top_k=_given(request.top_k, 0),
                min_p=_given(request.min_p, 0.0),
                repetition_penalty=_given(request.repetition_penalty, settings.repetition_penalty),
                presence_penalty=_given(request.presence_penalty, 0.0),
                frequency_penalty=_given(request.frequency_penalty, 0.0),
                seed=request.seed,
                stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
                stop_token_ids=self._known_ids("stop_token_ids", request.stop_token_ids or ()),
                ignore_eos=bool(request.ignore_eos),
                logit_bias=self._logit_bias(request.logit_bias),
                logprobs=num_logprobs,
                prompt_logprobs=num_prompt_logprobs,
                priority=self._priority(request.priority),
                deadline_s=self._deadline_s(request.deadline_s),
            )
        except InvalidRequestError as error:
            name = error.param or ""
            spelling = spellings.get(name, name)
            raise ApiError(422, str(error).replace(name, spelling, 1), param=spelling) from error

    def _priority(self, given: int | None) -> int:
        """Anyone may step back, but only as far forward as the operator lets them: it is at others' expense."""
        most_urgent = self._settings.min_priority
        if given is not None and given < most_urgent:
            raise ApiError(
                422, f"priority={given}: this server takes {most_urgent} to {MAX_PRIORITY}", param="priority"
            )
        return max(0, most_urgent) if given is None else given

    def _deadline_s(self, given: float | None) -> float | None:
        limit = self._settings.max_deadline_s
        return limit if given is None or (limit is not None and given > limit) else given

    def _logit_bias(self, given: dict[str, float] | None) -> dict[int, float] | None:
        if not given:
            return None
        try:
            ids = [int(key) for key in given]
        except ValueError as error:
            raise ApiError(400, "logit_bias: every key must be a token id", param="logit_bias") from error
        return dict(zip(self._known_ids("logit_bias", ids), given.values(), strict=True))

    def _known_ids(self, name: str, ids: Sequence[int]) -> tuple[int, ...]:
        for index in (min(ids, default=0), max(ids, default=0)):
            if not 0 <= index < self._vocab_size:
                raise ApiError(422, f"{name}: token id {index} is outside 0..{self._vocab_size - 1}", param=name)
        return tuple(ids)


def _check_abilities(encoder: ChatEncoder, tools: ToolUse, wish: ThinkingWish) -> None:
    """Refuse what the model was not made for, rather than leave it out of the prompt."""
    if tools.tools and (encoder.format.tools is None or not encoder.takes_tools):
        raise unsupported(
            "tools",
            "tools: this model's chat template has no place for them, or its calls are of no known format; the "
            "server's --chat-template and --chat-format can give it both",
        )
    if wish.asks_to_think and encoder.format.reasoning is None:
        raise unsupported(wish.param, f"{wish.param}: this model does not think before it answers")


def _chat_logprobs(request: ChatCompletionRequest) -> int | None:
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    return None


def _prompt_logprobs(request: CompletionRequest) -> int | None:
    """Log-probabilities of the prompt: in OpenAI's form with `echo`, or in vLLM's field."""
    echoed = request.logprobs if request.echo else None
    if request.prompt_logprobs is None:
        return echoed
    if echoed is not None:
        raise ApiError(
            400, "prompt_logprobs: logprobs with echo has them already; leave one out", param="prompt_logprobs"
        )
    if request.stream:
        raise unsupported("prompt_logprobs", "prompt_logprobs is not supported in a stream: use echo with logprobs")
    return request.prompt_logprobs


def _listed_prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [cast("list[int]", prompt)]
    return list(cast("list[str | list[int]]", prompt))


def _given(value: Result | None, default: Result) -> Result:
    return default if value is None else value
