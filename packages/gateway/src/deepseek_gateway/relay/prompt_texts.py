"""What an engine's /tokenize is asked, to know how many tokens a request's prompt has."""

from typing import Any, NamedTuple, cast

from deepseek_gateway.relay.request import Dialect, GenerationRequest

MAX_TEXTS = 16
"""Prompts of one request that are counted one by one."""

MAX_BYTES = 2 * 2**20
"""A prompt of more is not worth a tokenizer's time before it is let in."""

_FILL_IN_TOKENS = 4
"""What a model's template puts around the two texts of a fill-in-the-middle request."""

_OF_THE_ANSWER = frozenset(
    {"stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "logprobs", "top_logprobs", "stop"}
)


class Countable(NamedTuple):
    """Bodies for /tokenize, each with what to ask where the first is refused; and tokens that are known already."""

    bodies: list[tuple[dict[str, Any], ...]]
    known: int = 0


def countable(request: GenerationRequest) -> Countable | None:
    """How a prompt can be counted; None where it cannot, or is not worth it."""
    if request.prompt.most > MAX_BYTES:
        return None
    fields = request.fields
    if request.dialect is Dialect.CHAT:
        return Countable([({name: value for name, value in fields.items() if name not in _OF_THE_ANSWER},)])
    prompt: Any = fields.get("input" if request.dialect is Dialect.EMBEDDINGS else "prompt")
    if request.dialect is Dialect.GENERATE:
        return _generate(prompt, is_raw=fields.get("raw") is True)
    suffix = fields.get("suffix")
    if isinstance(prompt, str) and isinstance(suffix, str) and suffix:
        return Countable([({"prompt": prompt},), ({"prompt": suffix},)], _FILL_IN_TOKENS)
    return _texts([prompt] if isinstance(prompt, str) else prompt)


def _generate(prompt: object, *, is_raw: bool) -> Countable | None:
    """A turn of a chat where the model has a template for one, else plain text."""
    if not isinstance(prompt, str):
        return None
    plain: dict[str, Any] = {"prompt": prompt}
    return Countable([(plain,) if is_raw else ({"messages": [{"role": "user", "content": prompt}]}, plain)])


def _texts(prompts: object) -> Countable | None:
    """Several prompts, of text or of token ids."""
    if not isinstance(prompts, list):
        return None
    texts = [one for one in cast("list[Any]", prompts) if isinstance(one, str)]
    known = 0
    for one in cast("list[Any]", prompts):
        known += len(cast("list[Any]", one)) if isinstance(one, list) else int(isinstance(one, int))
    return Countable([({"prompt": text},) for text in texts], known) if len(texts) <= MAX_TEXTS else None
