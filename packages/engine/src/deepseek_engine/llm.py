"""LLM: the engine without a server, for scripts, benchmarks and tests. Names are those that vLLM's users know."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import msgspec

from deepseek_engine.config import EngineConfig
from deepseek_engine.detokenizer import Detokenizer
from deepseek_engine.engine import Engine
from deepseek_engine.errors import EngineError, InvalidRequestError
from deepseek_engine.grammar.source import GrammarUse
from deepseek_engine.grammar.store import GrammarStore, make_backend
from deepseek_engine.messages import Delta, Submit, TokenLogprobs
from deepseek_engine.model_runner import build_runner
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.tokenizer import Tokenizer, load_tokenizer

Prompt = str | Mapping[str, list[int]]
"""A text, or `{"prompt_token_ids": [...]}`."""


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
    """A prompt and its answers."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """A LoRA adapter: a name for it, and the folder that PEFT saved it to. vLLM's has a number as well."""

    lora_name: str
    lora_path: str


class LLM:
    """A model in this process.

    Args:
        model: a folder of safetensors, a `.gguf` file, or a built-in name.
        settings: fields of `EngineConfig`.

    Raises:
        ModelLoadError: the checkpoint is missing, broken or not supported.
        InvalidRequestError: a setting is out of range.
    """

    def __init__(self, model: str, **settings: Any) -> None:
        self.config = EngineConfig(model=model, **settings)
        self.tokenizer: Tokenizer = load_tokenizer(model)
        self._wake = threading.Event()
        runner = build_runner(self.config)
        grammars = GrammarStore(lambda: make_backend(self.tokenizer, runner.info.vocab_size))
        self.engine = Engine(self.config, runner, wake=self._wake.set, grammars=grammars)
        self._adapter_paths = dict(self.config.lora_modules)
        self._ids = count()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
    ) -> list[RequestOutput]:
        """Answer every prompt, all in one continuous batch; results come in the prompts' order.

        Args:
            prompts: sent as they are, without a chat template.
            sampling_params: one for all, or one a prompt; by default `SamplingParams()`.
            lora_request: the adapter of all, or one a prompt, None for the base model; needs `enable_lora=True`.

        Raises:
            InvalidRequestError: a prompt does not fit the context, or the numbers of prompts and parameters differ.
            AdapterError: an adapter cannot be loaded.
            EngineError: the model failed.
        """
        listed = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        texts = [prompt if isinstance(prompt, str) else None for prompt in listed]
        ids = [self.tokenizer.encode(p) if isinstance(p, str) else list(p["prompt_token_ids"]) for p in listed]
        return self._run(texts, ids, sampling_params, lora_request)

    def chat(
        self,
        messages: Sequence[dict[str, str]] | Sequence[Sequence[dict[str, str]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
    ) -> list[RequestOutput]:
        """Answer a conversation, or each of several, through the model's chat template; raises as `generate` does."""
        conversations = [messages] if messages and isinstance(messages[0], dict) else messages
        ids = [self.tokenizer.encode_chat(conversation) for conversation in conversations]  # pyright: ignore[reportArgumentType] - narrowed by its first element
        return self._run([None] * len(ids), ids, sampling_params, lora_request)

    def _run(
        self,
        texts: Sequence[str | None],
        prompts: Sequence[list[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None,
    ) -> list[RequestOutput]:
        params = _one_each(sampling_params, len(prompts))
        adapters = self._load_adapters(lora_request, len(prompts))
        pending = [
            _Pending(str(next(self._ids)), text, ids, p, self.tokenizer, adapter)
            for text, ids, p, adapter in zip(texts, prompts, params, adapters, strict=True)
        ]
        by_id = {request.output.request_id: request for request in pending}
        try:
            for request in pending:
                self.engine.add_request(request.submit)
            for delta in self._deltas():
                if (request := by_id.get(delta.request_id)) and request.take(delta):
                    self.engine.cancel(delta.request_id, delta.index)
        finally:
            # After an error or Ctrl-C no request may stay behind and run in the next call.
            for request_id in by_id:
                self.engine.cancel(request_id)
            self.engine.step()
        return [request.output for request in pending]

    def _deltas(self) -> Iterator[Delta]:
        while self.engine.has_work or self.engine.has_requests:
            if not self.engine.has_work:
                self._wake.wait()  # every request waits for an adapter to be read
            self._wake.clear()
            yield from self.engine.step().deltas

    def _load_adapters(
        self, lora_request: LoRARequest | Sequence[LoRARequest | None] | None, num_prompts: int
    ) -> list[str | None]:
        """Each prompt's adapter, loaded."""
        listed = (
            [lora_request] * num_prompts
            if lora_request is None or isinstance(lora_request, LoRARequest)
            else lora_request
        )
        if len(listed) != num_prompts:
            raise InvalidRequestError(
                f"{len(listed)} entries of lora_request for {num_prompts} prompts: give one, or one a prompt",
                param="lora_request",
            )
        for adapter in listed:
            if adapter is not None and adapter.lora_name not in self._adapter_paths:
                self.engine.load_adapter(adapter.lora_name, adapter.lora_path)
                self._adapter_paths[adapter.lora_name] = adapter.lora_path
            elif adapter is not None and adapter.lora_path != self._adapter_paths[adapter.lora_name]:
                raise InvalidRequestError(
                    f"the adapter {adapter.lora_name!r} is loaded from {self._adapter_paths[adapter.lora_name]}: "
                    f"give the one of {adapter.lora_path} another name",
                    param="lora_request",
                )
        return [adapter and adapter.lora_name for adapter in listed]


class _Pending:
    """A request under way: deltas in, output out."""

    def __init__(
        self,
        request_id: str,
        text: str | None,
        ids: list[int],
        params: SamplingParams,
        tokenizer: Tokenizer,
        adapter: str | None = None,
    ) -> None:
        self.submit = Submit(
            request_id=request_id,
            prompt_token_ids=ids,
            params=msgspec.structs.replace(params, structured_outputs=None),
            eos_token_ids=tokenizer.eos_token_ids,
            grammar=_grammar_use(params),
            adapter=adapter,
        )
        outputs = [CompletionOutput(i, logprobs=None if params.logprobs is None else []) for i in range(params.n)]
        self.output = RequestOutput(request_id, text, ids, outputs)
        self._detokenizers = [Detokenizer(tokenizer.text_stream(), params.stop) for _ in outputs]

    def take(self, delta: Delta) -> bool:
        """Add a delta to its answer; true if a stop string ended it, so that the engine need not go on."""
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


def _grammar_use(params: SamplingParams) -> GrammarUse | None:
    return None if params.structured_outputs is None else GrammarUse(params.structured_outputs.to_source())


def _one_each(params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * num_prompts
    if len(params) != num_prompts:
        raise InvalidRequestError(
            f"{len(params)} sampling_params for {num_prompts} prompts: give one, or one a prompt",
            param="sampling_params",
        )
    return list(params)
