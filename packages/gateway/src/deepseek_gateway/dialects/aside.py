"""What is relayed beside generation: embeddings, tokens of a text, a text of tokens. Not every server has them."""

from typing import cast

import orjson

from deepseek_client.types import error_body
from deepseek_gateway.dialects.anthropic_errors import ANTHROPIC_ERRORS
from deepseek_gateway.dialects.messages_request import chat_fields
from deepseek_gateway.dialects.translation import Translated
from deepseek_gateway.edge.error_shape import ErrorShape, OpenAIErrors
from deepseek_gateway.errors import ApiError
from deepseek_gateway.foreign import Fields, json_object
from deepseek_gateway.relay.request import Dialect, parse_request, read_request

MISSING = frozenset({404, 405, 501})
"""What servers answer that have no such path."""


class AsideErrors(OpenAIErrors):
    """OpenAI's errors, and a clear one where a server has no such path."""

    def __init__(self, path: str) -> None:
        self._path = path

    def relayed(self, status: int, body: bytes) -> bytes:
        """The engine's body, unless it only says that there is no such page."""
        if status not in MISSING or is_error_of_a_model(body):
            return body
        message = f"the server of this model has no /{self._path}: ask for a model whose server has it"
        return error_body(status, message, param="model", code="unsupported_route").model_dump_json().encode()


class AnthropicAsideErrors:
    """The same in Anthropic's shape, for counting tokens."""

    id_header = ANTHROPIC_ERRORS.id_header
    keep_alive = ANTHROPIC_ERRORS.keep_alive
    body = staticmethod(ANTHROPIC_ERRORS.body)
    event = staticmethod(ANTHROPIC_ERRORS.event)

    @staticmethod
    def relayed(status: int, body: bytes) -> bytes:
        """The engine's message; a clear one where a server counts no tokens."""
        return ANTHROPIC_ERRORS.relayed(status, AsideErrors(Dialect.TOKENIZE.value).relayed(status, body))


def read_aside(dialect: Dialect, body: bytes, prefix: str) -> Translated:
    """A request for what is not generated.

    Raises:
        ApiError: 400, it is malformed, or wants a stream.
    """
    request = parse_request(dialect, body)
    if request.stream:
        raise ApiError(400, f"stream: {dialect.value} answers all at once; leave it out", param="stream")
    return Translated(request, errors=AsideErrors(dialect.value), prefix=prefix)


class CountTranslation:
    """Anthropic's POST /v1/messages/count_tokens, by the engine's /tokenize of the translated conversation."""

    path = "messages/count_tokens"
    errors: ErrorShape = ANTHROPIC_ERRORS

    def translate(self, fields: Fields) -> Translated:
        """A request in the engine's terms.

        Raises:
            ApiError: 400, it names the field at fault.
        """
        chat = chat_fields({name: value for name, value in fields.items() if name != "stream"}, needs_max_tokens=False)
        return Translated(read_request(Dialect.TOKENIZE, chat), (CountStage(),), AnthropicAsideErrors())


class CountStage:
    """The count of an answer of /tokenize."""

    def pass_on(self, frame: bytes) -> bytes:
        """There is no stream of it."""
        return frame

    def body(self, body: bytes) -> bytes:
        """Anthropic's answer."""
        return orjson.dumps({"input_tokens": tokens_counted(body) or 0})


def tokens_counted(body: bytes) -> int | None:
    """How many tokens an answer of /tokenize tells of; None where it does not say."""
    answer = json_object(body) or {}
    count, tokens = answer.get("count"), answer.get("tokens")
    if isinstance(count, int):
        return count
    return len(cast("list[int]", tokens)) if isinstance(tokens, list) else None


def is_error_of_a_model(body: bytes) -> bool:
    """Whether a 404 is about the model, not about the path."""
    error = (json_object(body) or {}).get("error")
    return isinstance(error, dict) and cast("Fields", error).get("code") == "model_not_found"
