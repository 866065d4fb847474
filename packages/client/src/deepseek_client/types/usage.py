"""Token counts of one request."""

from deepseek_client.types.base import WireModel


class CompletionTokensDetails(WireModel):
    """How the generated tokens divide."""

    reasoning_tokens: int = 0


class PromptTokensDetails(WireModel):
    """How the prompt's tokens divide (OpenAI's spelling of the cache hit)."""

    cached_tokens: int = 0


class Usage(WireModel):
    """Tokens processed for one request.

    `prompt_tokens` is cache hits plus misses; `completion_tokens` includes reasoning.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_cache_hit_tokens: int = 0
    prompt_cache_miss_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None
