"""`POST /tokenize`, as vLLM, SGLang and our servers have it."""

from deepseek_client.types.base import AnswerModel


class Tokenized(AnswerModel):
    """A text or a conversation as tokens."""

    count: int
    max_model_len: int | None = None
    tokens: list[int] | None = None
