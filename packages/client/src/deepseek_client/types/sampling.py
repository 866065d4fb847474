"""Fields that every generating request shares."""

from typing import Any

from deepseek_client.types.base import WireList, WireModel


class StreamOptions(WireModel):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingFields(WireModel):
    """Sampling and streaming fields of generate, chat and completions. Servers state the limits and the defaults."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | WireList[str] | None = None
    stop_token_ids: WireList[int] | None = None
    logit_bias: dict[str, float] | None = None
    n: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    return_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    priority: int | None = None
    """Our engine's and vLLM's: lower goes sooner, 0 is usual."""
    deadline_s: float | None = None
    """Our engine's: seconds after which the answer ends with what it has, finish reason `abort`."""
