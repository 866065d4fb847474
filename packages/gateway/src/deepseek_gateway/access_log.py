"""One line a request. No header, no body and no key gets here, so none can be logged.

Lines gather for a moment and are written together: a write for each would cost as much as a tenth of the request.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import orjson

from deepseek_gateway.edge.context import RequestContext

Form = Literal["text", "json", "off"]

FLUSH_DELAY_S = 0.1
"""What a kill -9 can lose of this log. The ledger loses nothing."""

MAX_WAITING_BYTES = 64 * 1024
_FORGING = frozenset(' "=')


def write_stderr(data: bytes) -> None:
    """To where all other lines go."""
    sys.stderr.write(data.decode())
    sys.stderr.flush()


class AccessLog:
    """The access log of one gateway.

    Args:
        form: `text` is key=value, `json` an object a line.
        write: takes whole lines.
    """

    def __init__(self, form: Form, write: Callable[[bytes], None] = write_stderr) -> None:
        self._line = _json_line if form == "json" else _text_line
        self._is_off = form == "off"
        self._write = write
        self._waiting: list[bytes] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    def log(self, context: RequestContext) -> None:
        """Note a request that is over."""
        if self._is_off:
            return
        line = self._line(context)
        self._waiting.append(line)
        self._size += len(line)
        if self._size > MAX_WAITING_BYTES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_DELAY_S, self.flush)

    def flush(self) -> None:
        """Write what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._waiting, self._size = self._waiting, [], 0
        if lines:
            self._write(b"".join(lines))


class JsonFormatter(logging.Formatter):
    """All other lines as JSON, for when the access log is: one stream, one form."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        fields: dict[str, object] = {
            "time": _moment(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(fields).decode()


def set_up_logging(level: str, form: Form) -> None:
    """Level and form of the lines of this process."""
    root = logging.getLogger()
    root.setLevel(level.upper())
    logging.getLogger("uvicorn.error").setLevel("ERROR")  # else a line for every invalid request that anybody sends
    if form == "json":
        for handler in root.handlers:
            handler.setFormatter(JsonFormatter())


def _json_line(context: RequestContext) -> bytes:
    tokens = context.tokens
    fields = {
        "time": _moment(time.time()),
        "kind": "access",
        "request_id": context.request_id,
        "key": context.key_id,
        "route": context.route,
        "model": None if context.model is None else context.model[:80],
        "status": context.status,
        "outcome": context.outcome,
        "prompt_tokens": None if tokens is None else tokens.prompt,
        "completion_tokens": None if tokens is None else tokens.completion,
        "cached_tokens": None if tokens is None else tokens.cached,
        "ttft_ms": None if context.ttft_ms is None else round(context.ttft_ms, 1),
        "total_ms": round(context.elapsed_ms(), 1),
    }
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def _text_line(context: RequestContext) -> bytes:
    tokens = context.tokens
    prompt, completion, cached = ("-",) * 3 if tokens is None else (tokens.prompt, tokens.completion, tokens.cached)
    ttft_ms = "-" if context.ttft_ms is None else f"{context.ttft_ms:.1f}"
    return (
        f"{_moment(time.time())} access request_id={context.request_id} key={context.key_id or '-'} "
        f"route={context.route} model={_plain(context.model)} status={context.status} outcome={context.outcome} "
        f"prompt_tokens={prompt} completion_tokens={completion} cached_tokens={cached} ttft_ms={ttft_ms} "
        f"total_ms={context.elapsed_ms():.1f}\n"
    ).encode("utf-8", "replace")


def _moment(wall_s: float) -> str:
    second = int(wall_s)
    return f"{_second(second)}.{int((wall_s - second) * 1000):03d}Z"


@lru_cache(8)
def _second(wall_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(wall_s))


def _plain(text: str | None) -> str:
    """A model name as callers wrote it must not break the line, or forge one."""
    if not text:
        return "-"
    text = text[:80]
    if text.isprintable() and _FORGING.isdisjoint(text):
        return text
    return "".join(c if c.isprintable() and c not in _FORGING else "?" for c in text)
