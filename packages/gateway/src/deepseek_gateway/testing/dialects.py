"""The fake engine's answers, in the wire form of each dialect. `usage` is always a chunk's last key."""

import json
import time
from dataclasses import dataclass
from typing import Any

from deepseek_gateway.ledger.records import TokenCounts


@dataclass(frozen=True, slots=True)
class Wire:
    """How one request's answer is written; `path` is `generate`, `chat/completions` or `completions`.

    `deltas` are what chat says, in place of its words.
    """

    path: str
    id: str
    model: str
    deltas: tuple[dict[str, Any], ...] = ()

    def opening(self) -> dict[str, Any] | None:
        """The event before the first word: chat's role."""
        if self.path != "chat/completions":
            return None
        return self._chunk([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])

    def word(self, text: str, finish: str | None) -> dict[str, Any]:
        """One event."""
        if self.path == "generate":
            return {**self._head("generation.chunk"), "text": text, "finish_reason": finish}
        if self.path == "chat/completions":
            return self._chunk([{"index": 0, "delta": self._delta(text), "finish_reason": finish}])
        return self._chunk([{"index": 0, "text": text, "finish_reason": finish}])

    def trailer(self) -> dict[str, Any] | None:
        """The event after the last, for usage; generate has none."""
        return None if self.path == "generate" else self._chunk([])

    def whole(self, text: str, finish: str, usage: dict[str, Any]) -> dict[str, Any]:
        """An answer that is not streamed."""
        if self.path == "generate":
            return {**self._head("generation"), "text": text, "finish_reason": finish, "usage": usage}
        if self.path == "chat/completions":
            message = message_of(self.deltas) if self.deltas else {"role": "assistant", "content": text}
            choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": finish}
            return {**self._head("chat.completion"), "choices": [choice], "usage": usage}
        choice = {"index": 0, "text": text, "finish_reason": finish}
        return {**self._head("text_completion"), "choices": [choice], "usage": usage}

    def _delta(self, text: str) -> dict[str, Any]:
        if self.deltas and text:
            return self.deltas[int(text.split()[0].removeprefix("w")) - 1]
        return {"content": text} if text else {}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.path == "chat/completions" else "text_completion"
        return {**self._head(kind), "choices": choices}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": int(time.time()), "model": self.model}


def message_of(deltas: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """The message that deltas add up to."""
    message: dict[str, Any] = {"role": "assistant", "content": None}
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        for name in ("content", "reasoning_content"):
            if delta.get(name):
                message[name] = (message.get(name) or "") + delta[name]
        for call in delta.get("tool_calls", ()):
            known = calls.setdefault(call["index"], {"type": "function", "function": {"name": "", "arguments": ""}})
            known["id"] = call.get("id") or known.get("id")
            for name, text in call["function"].items():
                known["function"][name] += text
    return {**message, "tool_calls": list(calls.values())} if calls else message


def usage_json(counts: TokenCounts) -> dict[str, Any]:
    """Usage with every field of the contract."""
    return {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.completion,
        "total_tokens": counts.total,
        "prompt_cache_hit_tokens": counts.cached,
        "prompt_cache_miss_tokens": counts.prompt - counts.cached,
        "prompt_tokens_details": {"cached_tokens": counts.cached},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def compact(value: dict[str, Any]) -> bytes:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
