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

    def plus(self, other: "Usage") -> "Usage":
        """Of both together: two requests for one answer."""
        parts = (self, other)
        prompt = [part.prompt_tokens_details for part in parts if part.prompt_tokens_details is not None]
        output = [part.completion_tokens_details for part in parts if part.completion_tokens_details is not None]
        cached = PromptTokensDetails(cached_tokens=sum(each.cached_tokens for each in prompt))
        reasoning = CompletionTokensDetails(reasoning_tokens=sum(each.reasoning_tokens for each in output))
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            total_tokens=self.total_tokens + other.total_tokens,
            prompt_cache_hit_tokens=self.prompt_cache_hit_tokens + other.prompt_cache_hit_tokens,
            prompt_cache_miss_tokens=self.prompt_cache_miss_tokens + other.prompt_cache_miss_tokens,
            prompt_tokens_details=cached if prompt else None,
            completion_tokens_details=reasoning if output else None,
        )
