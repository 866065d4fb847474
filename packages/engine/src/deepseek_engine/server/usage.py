"""Counting the tokens of one HTTP request, which may hold several prompts with several answers each."""

from deepseek_engine.messages import Delta


class UsageMeter:
    """Tokens processed so far: the one source of usage in answers, metrics and the access log."""

    def __init__(self, num_prompts: int) -> None:
        self._prompt_tokens = [0] * num_prompts
        self._cached_tokens = [0] * num_prompts
        self.completion_tokens = 0
        self.reasoning_tokens = 0

    def add(self, prompt_index: int, delta: Delta, num_new_tokens: int, num_reasoning_tokens: int = 0) -> None:
        """Count one delta. Answers of one prompt share it, so its tokens are those of the answer that went furthest."""
        if delta.num_prompt_tokens > self._prompt_tokens[prompt_index]:
            self._prompt_tokens[prompt_index] = delta.num_prompt_tokens
            self._cached_tokens[prompt_index] = delta.num_cached_tokens
        self.completion_tokens += num_new_tokens
        self.reasoning_tokens += num_reasoning_tokens

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens processed."""
        return sum(self._prompt_tokens)

    @property
    def cached_tokens(self) -> int:
        """How many of those came from the prefix cache."""
        return sum(self._cached_tokens)

    def to_json(self) -> bytes:
        """The wire's `usage` object."""
        prompt, cached, completion = self.prompt_tokens, self.cached_tokens, self.completion_tokens
        return (
            b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_cache_hit_tokens":%d,'
            b'"prompt_cache_miss_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d},'
            b'"completion_tokens_details":{"reasoning_tokens":%d}}'
        ) % (prompt, completion, prompt + completion, cached, prompt - cached, cached, self.reasoning_tokens)
