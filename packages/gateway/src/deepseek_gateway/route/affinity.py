"""What ties a request to an engine: its session, or the beginning of its prompt, which that engine may still have.

The beginning is the first 2 KiB of tools, system prompt and first user message. So all turns of a conversation have one
key, and so have all requests that share a long system prompt.
"""

from collections.abc import Mapping
from typing import Any, cast

import orjson

from deepseek_gateway.route.rendezvous import hash32

PREFIX_BYTES = 2048
MIN_PREFIX_BYTES = 64
"""Less than a block of 16 tokens: there is nothing to find again."""


def affinity_key(fields: Mapping[str, Any], key_id: str, session: str | None) -> int | None:
    """A hash of what the request shares with its relatives; None when any engine is as good as another.

    Args:
        fields: the request's body.
        key_id: the caller's key: prompts of other callers are never found again, as caches are salted with it.
        session: the header X-Session-ID.
    """
    if session:
        return hash32(b"session\0" + key_id.encode() + b"\0" + session[:256].encode("utf-8", "replace"))
    prefix = _prefix(fields)
    if len(prefix) < MIN_PREFIX_BYTES:
        return None
    return hash32(key_id.encode() + b"\0" + prefix)


def _prefix(fields: Mapping[str, Any]) -> bytes:
    messages = fields.get("messages")
    if not isinstance(messages, list):
        return _bytes_of(fields.get("prompt"))
    parts = bytearray(orjson.dumps(fields["tools"])[:PREFIX_BYTES] if fields.get("tools") else b"")
    for message in cast("list[Any]", messages[:8]):
        if len(parts) >= PREFIX_BYTES or not isinstance(message, dict):
            break
        parts += _bytes_of(cast("dict[str, Any]", message).get("content"))
        if cast("dict[str, Any]", message).get("role") == "user":
            break
    return bytes(parts[:PREFIX_BYTES])


def _bytes_of(value: Any) -> bytes:
    """The beginning of a text, of token ids, or of parts."""
    if isinstance(value, str):
        return value[:PREFIX_BYTES].encode("utf-8", "replace")[:PREFIX_BYTES]
    if isinstance(value, list):
        return orjson.dumps(value[: PREFIX_BYTES // 4])[:PREFIX_BYTES]
    return b""
