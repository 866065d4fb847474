"""A call as the caller states it, and the HTTP request that it becomes. Pure.

The optional parameters of each call are typed once for the sync and the async client. A parameter that is left out, or
is None, is not sent: the server's default applies. `extra_body` is the door for fields that are not listed here; they
are sent as they are and override the rest.
Paths are the same everywhere, but DeepSeek's cloud has some under `/beta` only.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict, cast
from urllib.parse import urlencode

from pydantic import BaseModel

from deepseek_client import __version__
from deepseek_client.settings import Settings, Timeout, as_timeout
from deepseek_client.types.base import StreamOptions


class CallOptions(TypedDict, total=False):
    """What concerns this call rather than the model."""

    extra_body: Mapping[str, Any] | None
    extra_query: Mapping[str, Any] | None
    extra_headers: Mapping[str, str] | None
    timeout: float | Timeout | None


class GeneratingOptions(CallOptions, total=False):
    """With `resume` a stream of this call that breaks goes on where it can; the client's setting if left out."""

    resume: bool | None


class SamplingParams(GeneratingOptions, total=False):
    """What every generating call takes."""

    model: str | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    stop: str | list[str] | None
    stop_token_ids: list[int] | None
    logit_bias: Mapping[str, float] | None
    min_tokens: int | None
    ignore_eos: bool | None
    return_token_ids: bool | None
    user: str | None
    priority: int | None
    deadline_s: float | None


class GenerateParams(SamplingParams, total=False):
    """`generate` and `generate_stream`; `raw` sends the prompt without a chat template.

    On DeepSeek's cloud `thinking` is disabled unless it is set here: reasoning counts towards max_tokens there.
    """

    raw: bool | None
    thinking: Mapping[str, Any] | None
    reasoning_effort: str | None


class FimParams(SamplingParams, total=False):
    """`fim.create`."""

    max_tokens: int | None
    n: int | None
    logprobs: int | None
    stream_options: StreamOptions | Mapping[str, bool] | None


class CompletionParams(FimParams, total=False):
    """`completions.create`."""

    echo: bool | None
    suffix: str | None


class ResponseParams(GeneratingOptions, total=False):
    """`responses.create`."""

    model: str | None
    instructions: str | None
    max_output_tokens: int | None
    temperature: float | None
    top_p: float | None
    tools: Iterable[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    reasoning: Mapping[str, Any] | None
    text: Mapping[str, Any] | None
    user: str | None
    metadata: Mapping[str, Any] | None


class SearchParams(CallOptions, total=False):
    """`tools.search`."""

    count: int | None
    need_content: bool | None
    ori_question: str | None
    localization: Mapping[str, Any] | str | None


class CountParams(CallOptions, total=False):
    """`tokens.count`."""

    model: str | None
    add_special_tokens: bool | None


class ListParams(CallOptions, total=False):
    """`files.list`."""

    purpose: str | None
    order: Literal["asc", "desc"] | str | None
    limit: int | None
    after: str | None


DEFAULT_MAX_ROUNDS = 10
"""How many answers `chat.completions.run_tools` takes before it gives up."""


class ToolParams(SamplingParams, total=False):
    """`chat.completions.run_tools`."""

    max_tokens: int | None
    max_completion_tokens: int | None
    response_format: Mapping[str, Any] | None
    tool_choice: str | Mapping[str, Any] | None
    thinking: Mapping[str, Any] | None
    reasoning_effort: str | None


class ChatParams(ToolParams, total=False):
    """`chat.completions.create`."""

    n: int | None
    logprobs: bool | None
    top_logprobs: int | None
    tools: Iterable[Mapping[str, Any]] | None
    stream_options: StreamOptions | Mapping[str, bool] | None


@dataclass(frozen=True, slots=True)
class Upload:
    """A body that is no JSON."""

    content_type: str
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Call:
    """One call as the caller stated it: the JSON body, or another in its place, and what is not part of it."""

    body: Mapping[str, Any]
    timeout: Timeout
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    query: Mapping[str, Any] = field(default_factory=dict[str, Any])
    upload: "Upload | None" = None
    is_aside: bool = False
    resume: bool = False

    def with_body(self, **changes: object) -> "Call":
        """The same call with some fields of the body set."""
        return replace(self, body={**self.body, **changes})


def make_call(settings: Settings, schema: type, required: Mapping[str, object], params: Mapping[str, Any]) -> Call:
    """Merge the parts of a call.

    Args:
        settings: the client's.
        schema: the TypedDict of the parameters that the call takes.
        required: body fields that always go.
        params: the optional parameters, None for what is left out.

    Raises:
        TypeError: a parameter that the call does not take.
    """
    allowed: frozenset[str] = getattr(schema, "__optional_keys__")  # noqa: B009 (typing does not show it)
    unknown = params.keys() - allowed
    if unknown:
        names = ", ".join(sorted(unknown))
        raise TypeError(f"unknown parameter: {names}. A field of another server goes into extra_body={{...}}")
    fields = {name: value for name, value in params.items() if value is not None and name not in _OPTIONS}
    if "tools" in fields:
        fields["tools"] = list(cast("Iterable[object]", fields["tools"]))
    timeout = as_timeout(params["timeout"]) if "timeout" in params else settings.timeout
    body = {name: value for name, value in required.items() if value is not None} | fields
    return Call(
        {**body, **(params.get("extra_body") or {})},
        timeout,
        dict(params.get("extra_headers") or {}),
        dict(params.get("extra_query") or {}),
        resume=settings.resume if params.get("resume") is None else bool(params["resume"]),
    )


_OPTIONS = frozenset(GeneratingOptions.__annotations__)


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
