"""A call to an HTTP request, and where it goes: paths are the same everywhere, but for DeepSeek's `/beta`. Pure."""

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlencode

from pydantic import BaseModel

from deepseek_client import __version__
from deepseek_client.params import Call
from deepseek_client.settings import Settings, Timeout


def completions_path(settings: Settings) -> str:
    """The path of plain completions, and with a suffix of FIM; other servers have no `/beta`."""
    return "/beta/completions" if settings.is_deepseek else "completions"


def chat_path(settings: Settings, body: Mapping[str, Any]) -> str:
    """The path of a chat: DeepSeek's cloud goes on with a message, and holds to strict schemas, under `/beta` only."""
    is_beta = settings.is_deepseek and (_continues(body) or _is_strict(body))
    return "/beta/chat/completions" if is_beta else "chat/completions"


def _continues(body: Mapping[str, Any]) -> bool:
    messages = body.get("messages")
    last: object = messages[-1] if messages else None
    if isinstance(last, Mapping):
        return bool(cast("Mapping[str, Any]", last).get("prefix"))
    return bool(getattr(last, "prefix", None))


def _is_strict(body: Mapping[str, Any]) -> bool:
    """Whether every tool asks for a strict schema: DeepSeek takes them all together, or not at all."""
    tools = cast("list[Mapping[str, Any]]", body.get("tools") or [])
    functions = [cast("Mapping[str, Any]", tool.get("function") or {}) for tool in tools]
    return bool(functions) and all(function.get("strict") for function in functions)


USER_AGENT = f"deepseek-client/{__version__} python/{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True, slots=True)
class HTTPRequest:
    """One request, ready to send. Header names are in lower case; the headers hold the key, so repr leaves them out."""

    method: str
    url: str
    timeout: Timeout
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)
    retries_taken: int = 0
    """How often it was sent before."""
    is_aside: bool = False
    """It asks what is needed to make the caller's own request, such as for the list of models."""

    @property
    def json(self) -> Any:
        """The body, where it is JSON; else None."""
        is_json = self.body is not None and self.headers.get("content-type") == "application/json"
        return json.loads(self.body or b"null") if is_json else None


def build_request(settings: Settings, method: str, path: str, call: Call, *, is_stream: bool = False) -> HTTPRequest:
    """The request for a call; `path` is one that `Settings.url_of` takes.

    Raises:
        TypeError, ValueError: a value that JSON cannot hold.
    """
    upload = call.upload
    body = upload.content if upload is not None else encode_body(call.body) if method == "POST" else None
    headers = {"user-agent": USER_AGENT, "accept": "text/event-stream" if is_stream else "application/json"}
    if is_stream:
        headers["accept-encoding"] = "identity"  # a compressor in between would hold events back
    if body is not None:
        headers["content-type"] = upload.content_type if upload is not None else "application/json"
    if settings.api_key:
        headers["authorization"] = f"Bearer {settings.api_key}"
    for extra in (settings.default_headers, call.headers):
        headers.update({name.lower(): value for name, value in extra.items()})
    url = settings.url_of(path)
    query = {name: _query_value(value) for name, value in call.query.items() if value is not None}
    if query:
        url = f"{url}?{urlencode(query)}"
    return HTTPRequest(method, url, call.timeout, headers, body, is_aside=call.is_aside)


def encode_body(body: Mapping[str, Any]) -> bytes:
    """Compact JSON; messages may be dicts or our models."""
    return json.dumps(body, default=_plain, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _query_value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, object]", value))
    if isinstance(value, tuple | set | frozenset):
        return list(cast("Iterable[object]", value))
    raise TypeError(f"{type(value).__name__} cannot be sent as JSON: {value!r:.100}")
