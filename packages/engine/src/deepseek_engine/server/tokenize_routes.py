"""Text to token ids and back over HTTP, in vLLM's shape. Bodies are bounded, and so is what they can hold."""

import asyncio
from typing import Any, TypeVar

import msgspec
import pydantic
from starlette.requests import Request
from starlette.responses import Response

from deepseek_client.types import ChatCompletionRequest, WireModel
from deepseek_client.types.base import WireList
from deepseek_engine.server.errors import ApiError, validation_error
from deepseek_engine.server.http import read_body
from deepseek_engine.server.state import ServerState

Wire = TypeVar("Wire", bound=WireModel)


class TokenizeRequest(WireModel):
    """A text; or, where `messages` is given, a chat request, of which the prompt is tokenised as a chat would.

    `return_token_strs` adds each token's text by itself.
    """

    model: str | None = None
    prompt: str | None = None
    messages: Any = None
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(WireModel):
    """Token ids to turn back into text, special tokens included unless `skip_special_tokens` is set."""

    model: str | None = None
    tokens: WireList[int]
    skip_special_tokens: bool = False


class TokenizeRoutes:
    """Handlers over one server's state."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def tokenize(self, request: Request) -> Response:
        """Token ids of a text or a conversation."""
        body = await self._body(request)
        asked = _parse(body, TokenizeRequest)
        self._state.models.find(asked.model)
        if (asked.prompt is None) == (asked.messages is None):
            raise ApiError(400, "give either prompt or messages", param="prompt")
        tokenizer = self._state.tokenizer
        if asked.prompt is not None:
            encode, special = tokenizer.encode, asked.add_special_tokens
            token_ids = await asyncio.to_thread(encode, asked.prompt, add_special_tokens=special)
        else:
            job = await self._state.converter.chat(_parse(body, ChatCompletionRequest))
            token_ids = job.prompts[0].token_ids
        answer: dict[str, Any] = {
            "count": len(token_ids), "max_model_len": self._state.context_len, "tokens": token_ids,
        }  # fmt: skip
        if asked.return_token_strs:
            answer["token_strs"] = [tokenizer.token_text(token_id) for token_id in token_ids]
        return _json(answer)

    async def detokenize(self, request: Request) -> Response:
        """The text of token ids."""
        asked = _parse(await self._body(request), DetokenizeRequest)
        self._state.models.find(asked.model)
        vocab_size = self._state.engine.info.vocab_size
        if asked.tokens and not 0 <= min(asked.tokens) <= max(asked.tokens) < vocab_size:
            raise ApiError(422, f"tokens: every id must be in 0..{vocab_size - 1}", param="tokens")
        decode, skip = self._state.tokenizer.decode, asked.skip_special_tokens
        text = await asyncio.to_thread(decode, asked.tokens, skip_special_tokens=skip)
        return _json({"prompt": text})

    async def _body(self, request: Request) -> bytes:
        return await read_body(request.scope, request.receive, self._state.settings.max_body_bytes)


def _parse(body: bytes, kind: type[Wire]) -> Wire:
    try:
        return kind.model_validate_json(body, strict=True)
    except pydantic.ValidationError as error:
        raise validation_error(error) from None


def _json(value: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(value), headers={"content-type": "application/json"})
