"""Record what a real server answers, without its secrets, and replay it.

A recording is a text file with one exchange a line: it can be read, edited and kept beside the tests.
"""

import base64
import http.client
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from deepseek_client.testing.answers import reply
from deepseek_client.testing.connection import Connection, Handler, Request

KEPT_HEADERS = frozenset({"content-type", "retry-after", "x-request-id", "x-ds-trace-id", "x-should-retry"})
"""Of a response; cookies, hosts and addresses are nobody's business. Of a request no header is kept."""

REDACTED = "[redacted]"
TIMEOUT_S = 600.0


def record(path: Path | str, base_url: str, *, redact: Callable[[str], str] | None = None) -> Handler:
    """Pass requests on to a real server, chunk by chunk, and append the exchanges to a file.

    The key is never written: where a body repeats it, it is replaced.

    Args:
        path: the recording.
        base_url: the server, up to what comes before a request's path: https://api.deepseek.com.
        redact: changes the text of bodies before they are written, for names and numbers that must not be kept.
    """
    target = urlsplit(base_url)
    connect = http.client.HTTPSConnection if target.scheme == "https" else http.client.HTTPConnection
    file, lock = Path(path), Lock()

    def handler(connection: Connection) -> None:
        request = connection.request
        headers = {name: value for name, value in request.headers.items() if name not in ("host", "connection")}
        upstream = connect(target.netloc, timeout=TIMEOUT_S)
        try:
            upstream.request(request.method, target.path.rstrip("/") + request.path, request.body, headers)
            response = upstream.getresponse()
            kept = {name.lower(): value for name, value in response.getheaders() if name.lower() in KEPT_HEADERS}
            connection.begin(response.status, kept)
            chunks: list[bytes] = []
            while chunk := response.read1(65536):
                chunks.append(chunk)
                connection.chunk(chunk)
            connection.end()
        finally:
            upstream.close()
        clean = _Redaction(request, redact)
        exchange = {
            "method": request.method,
            "path": request.path,
            "body": clean.text(request.body),
            "status": response.status,
            "headers": kept,
            "chunks": clean.chunks(chunks),
        }
        with lock, file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(exchange, ensure_ascii=False) + "\n")

    return handler


def replay(path: Path | str, *, redact: Callable[[str], str] | None = None) -> Handler:
    """Answer as recorded: the first exchange not yet used whose method, path and body are the request's.

    One that was recorded once is given again when it is asked for again; a request that is in no recording is a 501.

    Args:
        path: the recording.
        redact: what `record` was given, so that a request is compared as it would have been written.
    """
    exchanges: list[dict[str, Any]] = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
    unused, lock = list(exchanges), Lock()

    def handler(connection: Connection) -> None:
        request = connection.request
        body = _Redaction(request, redact).text(request.body)
        with lock:
            found = next((item for item in unused if _fits(item, request, body)), None)
            if found is not None:
                unused.remove(found)
        found = found or next((item for item in exchanges if _fits(item, request, body)), None)
        if found is None:
            message = f"{Path(path).name} has no {request.method} {request.path} with this body"
            reply({"error": {"message": message, "code": "not_recorded"}}, 501, x_should_retry="false")(connection)
            return
        connection.begin(found["status"], found["headers"])
        for chunk in found["chunks"]:
            connection.chunk(_bytes(chunk))
        connection.end()

    return handler


Kept = str | dict[str, str]
"""Text, or base64 where the bytes are none."""


class _Redaction:
    """Bodies as they may be kept."""

    def __init__(self, request: Request, change: Callable[[str], str] | None) -> None:
        scheme_and_key = request.headers.get("authorization", "").split(" ", 1)
        self._secrets = [text for text in (scheme_and_key[-1], request.headers.get("x-api-key", "")) if text]
        self._change = change

    def text(self, data: bytes) -> Kept:
        try:
            text = data.decode()
        except UnicodeDecodeError:  # a chunk may end inside a character
            return {"base64": base64.b64encode(data).decode()}
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        return self._change(text) if self._change is not None else text

    def chunks(self, chunks: list[bytes]) -> list[Kept]:
        """The chunks as they came; one, where something was replaced, since a secret may lie across two."""
        whole = b"".join(chunks)
        text = self.text(whole)
        return [self.text(chunk) for chunk in chunks] if _bytes(text) == whole else [text]


def _bytes(kept: Kept) -> bytes:
    return kept.encode() if isinstance(kept, str) else base64.b64decode(kept["base64"])


def _fits(exchange: Mapping[str, Any], request: Request, body: Kept) -> bool:
    if (exchange["method"], exchange["path"]) != (request.method, request.path):
        return False
    kept, asked = _bytes(exchange["body"]), _bytes(body)
    try:
        return bool(kept == asked or json.loads(kept) == json.loads(asked))
    except ValueError:
        return False
