"""LLM: the engine without a server, for scripts, benchmarks and tests. Names are those that vLLM's users know."""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, Self, cast

import msgspec
from tqdm import tqdm

from deepseek_engine.config import EngineConfig
from deepseek_engine.engine import Engine
from deepseek_engine.errors import EngineError, InvalidRequestError
from deepseek_engine.grammar.store import GrammarStore, make_backend
from deepseek_engine.interrupts import InterruptGuard
from deepseek_engine.load_report import LoadReport
from deepseek_engine.messages import Delta, EmbedParams, StepOutputs, Submit
from deepseek_engine.model_runner import build_runner
from deepseek_engine.model_source import as_hub_model, resolve_model
from deepseek_engine.offline_request import CompletionOutput, EmbeddingOutput, PendingRequest, RequestOutput
from deepseek_engine.request_log.log_file import LogFile
from deepseek_engine.request_log.recorder import RequestRecorder, with_seed
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.tokenizer import Tokenizer, load_tokenizer

__all__ = ["LLM", "CompletionOutput", "EmbeddingOutput", "LoRARequest", "Prompt", "RequestOutput"]

Prompt = str | Mapping[str, list[int]]
"""A text, or `{"prompt_token_ids": [...]}`."""


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """A LoRA adapter: a name for it, and the folder that PEFT saved it to. vLLM's has a number as well."""

    lora_name: str
    lora_path: str


class LLM:
    """A model in this process. As a context manager it gives the memory of the model and its cache back at the end.

    Args:
        model: a folder of safetensors, a `.gguf` file, a built-in name, or a hub id (`org/name@revision`), which is
            downloaded once.
        request_log: a file to write every request and its answers to, for `deepseek-bench replay`.
        settings: fields of `EngineConfig`.

    Attributes:
        load_report: the bytes that were loaded, by type and by part of the model.

    Raises:
        ModelLoadError: the checkpoint is missing, broken or not supported.
        InvalidRequestError: a setting is out of range, or the request log cannot be written.
    """

    def __init__(self, model: str, *, request_log: str | os.PathLike[str] | None = None, **settings: Any) -> None:
        log = None if request_log is None else LogFile(request_log)
        self.config = EngineConfig(model=model, **settings)
        if as_hub_model(model) is not None:
            self.config = msgspec.structs.replace(self.config, model=str(resolve_model(model)))
        self.tokenizer: Tokenizer = load_tokenizer(self.config.model)
        self._wake = threading.Event()
        runner = build_runner(self.config)
        self.load_report: LoadReport = runner.load_report
        grammars = GrammarStore(lambda: make_backend(self.tokenizer, runner.info.vocab_size))
        self._engine: Engine | None = Engine(self.config, runner, wake=self._wake.set, grammars=grammars)
        self._adapter_paths = dict(self.config.lora_modules)
        self._ids = count()
        self._num_steps = 0
        self._recorder = None if log is None else RequestRecorder(log, self.config, runner.info)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def engine(self) -> Engine:
        """The engine that runs it all.

        Raises:
            EngineError: the LLM was closed.
        """
        if self._engine is None:
            raise EngineError("this LLM is closed: make another one")
        return self._engine

    def close(self) -> None:
        """Drop the model and its cache, and end other ranks; a second call does nothing."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None
        if self._recorder is not None:
            self._recorder.close()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        *,
        use_tqdm: bool | None = None,
    ) -> list[RequestOutput]:
        """Answer every prompt, all in one continuous batch; results come in the prompts' order.

        Ctrl-C ends all of them after the step under way; the `LLM` can be used again.

        Args:
            prompts: sent as they are, without a chat template.
            sampling_params: one for all, or one a prompt; by default `SamplingParams()`.
            lora_request: the adapter of all, or one a prompt, None for the base model; needs `enable_lora=True`.
            use_tqdm: show a progress bar; None shows it on terminals only.

        Raises:
            InvalidRequestError: a prompt does not fit the context, or the numbers of prompts and parameters differ.
            AdapterError: an adapter cannot be loaded.
            EngineError: the model failed.
        """
        texts, ids = self._encode(prompts)
        params = _one_each(sampling_params, len(ids))
        adapters = self._load_adapters(lora_request, len(ids))
        pending = [
            PendingRequest(self._next_id(), text, token_ids, p, self.tokenizer, adapter)
            for text, token_ids, p, adapter in zip(texts, ids, params, adapters, strict=True)
        ]
        self._run(pending, use_tqdm=use_tqdm)
        return [request.output for request in pending]

    def chat(
        self,
        messages: Sequence[dict[str, str]] | Sequence[Sequence[dict[str, str]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        *,
        use_tqdm: bool | None = None,
    ) -> list[RequestOutput]:
        """Answer a conversation, or each of several, through the model's chat template; raises as `generate` does."""
        conversations = [messages] if messages and isinstance(messages[0], dict) else messages
        _check_conversations(conversations)
        ids = [self.tokenizer.encode_chat(conversation) for conversation in conversations]  # pyright: ignore[reportArgumentType] - narrowed by its first element
        prompts: list[Prompt] = [{"prompt_token_ids": token_ids} for token_ids in ids]
        return self.generate(prompts, sampling_params, lora_request, use_tqdm=use_tqdm)

    def score(
        self, prompts: Prompt | Sequence[Prompt], *, prompt_logprobs: int = 0, use_tqdm: bool | None = None
    ) -> list[RequestOutput]:
        """How likely the model finds each token of each prompt: `prompt_logprobs` of the outputs, and no answers.

        Args:
            prompts: texts or token ids.
            prompt_logprobs: alternatives to report beside each token.
            use_tqdm: as in `generate`.
        """
        params = SamplingParams(max_tokens=0, prompt_logprobs=prompt_logprobs)
        return self.generate(prompts, params, use_tqdm=use_tqdm)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: Literal["mean", "last"] = "mean",
        normalise: bool = True,
        use_tqdm: bool | None = None,
    ) -> list[EmbeddingOutput]:
        """Each prompt's embedding: its hidden states after the last norm, pooled.

        Args:
            prompts: texts or token ids.
            pooling: the mean of all tokens, or the last one.
            normalise: scale to length 1.
            use_tqdm: as in `generate`.
        """
        texts, ids = self._encode(prompts)
        params, embed = SamplingParams(max_tokens=0), EmbedParams(pooling=pooling, normalise=normalise)
        pending = [
            PendingRequest(self._next_id(), text, token_ids, params, self.tokenizer, embed=embed)
            for text, token_ids in zip(texts, ids, strict=True)
        ]
        self._run(pending, use_tqdm=use_tqdm)
        return [
            EmbeddingOutput(request.output.request_id, request.output.prompt_token_ids, request.embedding)
            for request in pending
        ]

    def _encode(self, prompts: Prompt | Sequence[Prompt]) -> tuple[list[str | None], list[list[int]]]:
        listed = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        texts = [prompt if isinstance(prompt, str) else None for prompt in listed]
        return texts, [self.tokenizer.encode(p) if isinstance(p, str) else _token_ids(p) for p in listed]

    def _next_id(self) -> str:
        return str(next(self._ids))

    def _run(self, pending: Sequence[PendingRequest], *, use_tqdm: bool | None) -> None:
        """Step until every request has ended."""
        engine = self.engine
        by_id = {request.submit.request_id: request for request in pending}
        hide_bar = None if use_tqdm is None else not use_tqdm  # None lets tqdm look for a terminal
        with InterruptGuard() as guard, tqdm(total=len(pending), unit="prompt", disable=hide_bar) as bar:
            try:
                for request in pending:
                    self._submit(request.submit)
                for delta in self._deltas(guard):
                    request = by_id.get(delta.request_id)
                    if request is None or request.is_finished:
                        continue
                    if request.take(delta):
                        engine.cancel(delta.request_id, delta.index)
                    if request.is_finished:
                        bar.update()
            finally:
                # After an error or Ctrl-C no request may stay behind and run in the next call.
                for request_id in by_id:
                    engine.cancel(request_id)
                self._step()

    def _submit(self, submit: Submit) -> None:
        if self._recorder is None:
            self.engine.add_request(submit)
            return
        submit = with_seed(submit)
        self.engine.add_request(submit)
        path = None if submit.adapter is None else self._adapter_paths[submit.adapter]
        self._recorder.add(submit, self._num_steps, path)

    def _step(self) -> StepOutputs:
        outputs = self.engine.step()
        self._num_steps = outputs.stats.num_steps
        if self._recorder is not None:
            self._recorder.take(outputs)
        return outputs

    def _deltas(self, guard: InterruptGuard) -> Iterator[Delta]:
        while self.engine.has_work or self.engine.has_requests:
            guard.check()
            if not self.engine.has_work:
                self._wake.wait()  # every request waits for an adapter or a grammar
            self._wake.clear()
            yield from self._step().deltas

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


def _token_ids(prompt: object) -> list[int]:
    kind = type(prompt).__name__
    if not isinstance(prompt, Mapping) or "prompt_token_ids" not in prompt:
        raise InvalidRequestError(
            f'a prompt is of type {kind}: give a text, or {{"prompt_token_ids": [...]}}', param="prompts"
        )
    return list(cast("Mapping[str, list[int]]", prompt)["prompt_token_ids"])


def _check_conversations(conversations: object) -> None:
    """Callers may well give a bare text, which is a sequence too."""
    for messages in cast("Sequence[object]", conversations):
        if isinstance(messages, str) or not all(isinstance(m, Mapping) for m in cast("Sequence[object]", messages)):
            raise InvalidRequestError(
                'give a list of messages, such as [{"role": "user", "content": "Hi"}], or a list of such lists',
                param="messages",
            )


def _one_each(params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * num_prompts
    if len(params) != num_prompts:
        raise InvalidRequestError(
            f"{len(params)} sampling_params for {num_prompts} prompts: give one, or one a prompt",
            param="sampling_params",
        )
    return list(params)
