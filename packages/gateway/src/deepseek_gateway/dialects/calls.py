"""Tool calls out of a chat's deltas: one whole call after another, whatever way a server has of telling them apart.

Other makers' streams have their items one by one. Most servers send calls so; of those that send pieces of several in
turns, a call waits until the one before it is whole JSON, or the answer ends.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from deepseek_gateway.foreign import Fields


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of a tool call; `id` and `name` come with its first."""

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(slots=True)
class _Call:
    """One call: its arguments as far as they came, and how many of their pieces were given; None before the head."""

    index: int
    id: str | None
    name: str | None
    parts: list[str] = field(default_factory=list[str])
    num_given: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether its arguments are an object."""
        try:
            return isinstance(orjson.loads("".join(self.parts)), dict)
        except ValueError:
            return False

    def take(self) -> CallDelta:
        """What came since the last time; the first has the head."""
        new, is_first = "".join(self.parts[self.num_given or 0 :]), self.num_given is None
        self.num_given = len(self.parts)
        return CallDelta(self.index, self.id, self.name, new) if is_first else CallDelta(self.index, None, None, new)


class CallReader:
    """The calls of one answer."""

    def __init__(self) -> None:
        self._by_index: dict[int, _Call] = {}
        self._last: _Call | None = None
        self._open: _Call | None = None
        self._waiting: deque[_Call] = deque()
        self.num_calls = 0

    def read(self, deltas: object) -> tuple[CallDelta, ...]:
        """What `tool_calls` of a delta adds to the call that is open, and to the next when that is whole."""
        given: list[CallDelta] = []
        for delta in cast("list[object]", deltas) if isinstance(deltas, list) else ():
            if isinstance(delta, dict):
                self._add(cast("Fields", delta), given)
        while self._waiting and self._open is not None and self._open.is_whole:
            self._next(given)
        return tuple(given)

    def rest(self) -> tuple[CallDelta, ...]:
        """At the end: the calls that still wait."""
        given: list[CallDelta] = []
        while self._waiting:
            self._next(given)
        return tuple(given)

    def _add(self, delta: Fields, given: list[CallDelta]) -> None:
        made: Any = delta.get("function")
        function = cast("Fields", made) if isinstance(made, dict) else {}
        call = self._call_of(delta, _text(delta.get("id")), _text(function.get("name")))
        call.parts.append(_arguments(function.get("arguments")))
        if call is self._open:
            given.append(call.take())

    def _call_of(self, delta: Fields, id_: str | None, name: str | None) -> _Call:
        """Whose delta it is. Some servers give no index (Gemini), or 0 to all (Ollama): then a new id is a new call."""
        index = delta.get("index")
        known = self._by_index.get(index) if isinstance(index, int) else self._last
        if known is not None and name is not None and id_ is None and not isinstance(index, int) and known.is_whole:
            known = None
        if known is None or (name is not None and id_ is not None and id_ != known.id):
            known = self._begin(id_, name)
        if isinstance(index, int):
            self._by_index[index] = known
        self._last = known
        return known

    def _begin(self, id_: str | None, name: str | None) -> _Call:
        call = _Call(self.num_calls, id_, name)
        self.num_calls += 1
        if self._open is None:
            self._open = call
        else:
            self._waiting.append(call)
        return call

    def _next(self, given: list[CallDelta]) -> None:
        self._open = self._waiting.popleft()
        given.append(self._open.take())


def _arguments(value: Any) -> str:
    """Arguments as text: some servers send the object itself."""
    if value is None or isinstance(value, str):
        return value or ""
    return orjson.dumps(value).decode()


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
