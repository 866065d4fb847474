"""The routes that generate nothing: models, health, metrics, tokenising, abort."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import pydantic
from starlette.requests import Request
from starlette.responses import Response

import deepseek_engine
from deepseek_client.types import ChatMessage, Model, ModelList, WireModel
from deepseek_client.types.base import WireList
from deepseek_engine.server.chat_messages import plain_messages
from deepseek_engine.server.errors import ApiError, validation_error
from deepseek_engine.server.http import read_body
from deepseek_engine.server.metrics import CONTENT_TYPE
from deepseek_engine.server.served_models import ServedModel
from deepseek_engine.server.state import ServerState

Handler = Callable[[Request], Awaitable[Response]]
Wire = TypeVar("Wire", bound=WireModel)


class TokenizeRequest(WireModel):
    """A text, or a conversation as the chat template renders it."""

    prompt: str | None = None
    messages: WireList[ChatMessage] | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(WireModel):
    """Token ids to turn back into text, special tokens included."""

    tokens: WireList[int]


class Routes:
    """Handlers over one server's state."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._created = int(time.time())

    async def models(self, request: Request) -> Response:  # noqa: ARG002  Starlette's signature
        """Every name that the model is served under."""
        models = self._state.models.all()
        return _json(ModelList(object="list", data=[self._model(model) for model in models]).to_wire())

    async def model(self, request: Request) -> Response:
        """One of them."""
        return _json(self._model(self._state.models.find(request.path_params["model_id"])).to_wire())

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        """Whether this process answers."""
        return _json({"status": "ok"})

    async def ready(self, request: Request) -> Response:  # noqa: ARG002
        """Whether it may take traffic."""
        self._state.check_available()
        return _json({"status": "ready", "model": self._state.settings.model_names[0]})

    async def version(self, request: Request) -> Response:  # noqa: ARG002
        """The engine's version."""
        return _json({"version": deepseek_engine.__version__})

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        """Prometheus text."""
        return Response(self._state.metrics.exposition(), headers={"content-type": CONTENT_TYPE.decode()})

    async def abort(self, request: Request) -> Response:
        """End the requests whose `x-request-id` is the path's; their own answers then end with `abort`."""
        request_id = request.path_params["request_id"]
        return _json({"id": request_id, "aborted": self._state.running.abort(request_id)})

    async def tokenize(self, request: Request) -> Response:
        """Token ids of a text or a conversation."""
        asked = await self._parse(request, TokenizeRequest)
        if (asked.prompt is None) == (asked.messages is None):
            raise ApiError(400, "give either prompt or messages", param="prompt")
        tokenizer = self._state.tokenizer
        if asked.prompt is not None:
            token_ids = await asyncio.to_thread(
                tokenizer.encode, asked.prompt, add_special_tokens=asked.add_special_tokens
            )
        else:
            messages, continue_final = plain_messages(asked.messages or [])
            token_ids = await asyncio.to_thread(tokenizer.encode_chat, messages, continue_final=continue_final)
        return _json({"tokens": token_ids, "count": len(token_ids), "max_model_len": self._state.context_len})

    async def detokenize(self, request: Request) -> Response:
        """The text of token ids."""
        asked = await self._parse(request, DetokenizeRequest)
        vocab_size = self._state.engine.info.vocab_size
        if asked.tokens and not 0 <= min(asked.tokens) <= max(asked.tokens) < vocab_size:
            raise ApiError(422, f"tokens: every id must be in 0..{vocab_size - 1}", param="tokens")
        text = await asyncio.to_thread(self._state.tokenizer.decode, asked.tokens, skip_special_tokens=False)
        return _json({"prompt": text})

    def _model(self, model: ServedModel) -> Model:
        lineage = {} if model.parent is None else {"parent": model.parent}
        return Model(
            id=model.name,
            **lineage,
            object="model",
            created=self._created,
            owned_by="deepseek-engine",
            max_model_len=self._state.context_len,
        )

    async def _parse(self, request: Request, kind: type[Wire]) -> Wire:
        body = await read_body(request.scope, request.receive, self._state.settings.max_body_bytes)
        try:
            return kind.model_validate_json(body, strict=True)
        except pydantic.ValidationError as error:
            raise validation_error(error) from None


def _json(value: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(value), headers={"content-type": "application/json"})
