"""What servers of other makers write in their own way, read as if our engine had written it."""

import json
from typing import Any, cast

import orjson

from deepseek_client.types import ErrorBody, error_body

Fields = dict[str, Any]

MAX_MESSAGE = 2000


def json_object(data: bytes | str) -> Fields | None:
    """A JSON object, or None for anything else."""
    try:
        value = orjson.loads(data)
    except ValueError:
        value = _mended(data)
    return cast("Fields", value) if isinstance(value, dict) else None


def is_spaced(data: bytes) -> bool:
    """Whether a space follows an object's first key, as Python's `json` writes it."""
    at = data.find(b'":')
    return at > 0 and data[at + 2 : at + 3] == b" "


def compacted(data: bytes) -> bytes:
    """An object without spaces; untouched where it is none."""
    value = json_object(data)
    return data if value is None else orjson.dumps(value)


def error_in(body: Fields, status: int) -> ErrorBody | None:
    """The error that a body or a chunk tells of, whatever the server calls it; None for an answer."""
    error = body.get("error")
    if isinstance(error, dict) and error:
        return _error(cast("Fields", error), status)
    if isinstance(error, str) and error:  # TGI, Ollama
        return _error({"message": error, "type": body.get("error_type")}, status)
    return _error(body, status) if body.get("object") == "error" else None  # vLLM before 0.10


def native_refusal(status: int, body: bytes) -> bytes:
    """The body of a refusal as our engine would have written it; untouched where it is."""
    value = json_object(body)
    if value is not None and isinstance(value.get("error"), dict) and isinstance(value["error"].get("message"), str):
        return body
    error = _told_in_text(body, status) if value is None else error_in(value, status) or _detail(value, status)
    if error is None:
        error = error_body(status, f"the server of this model answers {status} and does not say why")
    return error.model_dump_json().encode()


def _told_in_text(body: bytes, status: int) -> ErrorBody | None:
    """A page is for people, and may name machines."""
    text = body.decode(errors="replace").strip()
    is_page = not text or text.startswith("<") or len(text) > MAX_MESSAGE
    return None if is_page else error_body(status, text)


def _detail(value: Fields, status: int) -> ErrorBody | None:
    """FastAPI's way: a text, or a list with a place for each field at fault."""
    detail = value.get("detail", value.get("message"))
    if isinstance(detail, str) and detail:
        return error_body(status, detail[:MAX_MESSAGE])
    if not isinstance(detail, list) or not detail or not isinstance(detail[0], dict):
        return None
    fault = cast("Fields", detail[0])
    steps: Any = fault.get("loc")
    where = ".".join(str(step) for step in cast("list[object]", steps) if step != "body") if steps else ""
    message = str(fault.get("msg") or "is not valid")[:MAX_MESSAGE]
    return error_body(status, f"{where}: {message}" if where else message, param=where or None)


def _error(error: Fields, status: int) -> ErrorBody:
    """An error in our shape. A code that is a number is a status, which the caller sees elsewhere."""
    message, kind, param, code = (
        value if isinstance(value := error.get(name), str) and value else None
        for name in ("message", "type", "param", "code")
    )
    text = (message or "the server of this model failed")[:MAX_MESSAGE]
    return error_body(status, text, param=param, code=code, kind=kind)


def _mended(data: bytes | str) -> Any:
    """JSON that orjson refuses: half of a character in an escape is a question mark, NaN is null. None for no JSON."""
    try:
        text = json.dumps(json.loads(data, parse_constant=lambda _: None), ensure_ascii=False)
    except (ValueError, RecursionError):
        return None
    return orjson.loads(text.encode(errors="replace"))
