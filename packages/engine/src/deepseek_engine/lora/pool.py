"""AdapterPool: which adapters are known, which are in memory, and which requests may run now. No torch.

Requests enter the scheduler only while their adapter is in memory, and keep it there until they have ended. So a batch
never has more than `max_loras` adapters, and the scheduler need not know of them. Files are read in a thread.

    known ──a request comes──▶ loading ──▶ resident ──another needs the place, no request uses this one──▶ known

When every place is in use and another adapter is wanted, the resident one with the fewest requests gets no new ones
until it is free: its requests only grow fewer, so nobody waits for ever.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Final

from deepseek_engine.errors import AdapterError, UnknownAdapterError
from deepseek_engine.messages import AdapterInfo, AdapterReply, LoadAdapter, UnloadAdapter
from deepseek_engine.request import Request
from deepseek_engine.runner_protocol import AdapterHost

logger = logging.getLogger(__name__)

MAX_KNOWN: Final = 4096
"""Adapters that may be known at once; each is a name and a path."""


@dataclass(slots=True, eq=False)
class _Adapter:
    """One loading of a name. Loaded again under the same name it is another one.

    Attributes:
        number: the runner's name for what is in memory, never used twice; 0 while nothing is.
        num_requests: those that have been admitted and have not ended.
        parked: those that wait for it.
    """

    name: str
    path: str
    number: int = 0
    is_loading: bool = False
    num_requests: int = 0
    parked: dict[Request, None] = field(default_factory=dict[Request, None])


@dataclass(frozen=True, slots=True)
class _Read:
    """A folder has been read, or could not be; with a call, for a caller who asked for it."""

    adapter: _Adapter
    content: Any
    error: Exception | None
    call: LoadAdapter | None


@dataclass(frozen=True, slots=True)
class News:
    """What has come of reading files: answers to callers, and requests whose adapter could not be read."""

    replies: list[AdapterReply] = field(default_factory=list[AdapterReply])
    failures: list[tuple[Request, str]] = field(default_factory=list[tuple[Request, str]])


class AdapterPool:
    """Adapters of one engine, used from the engine's thread only.

    Args:
        host: reads adapters, and keeps those in memory.
        max_loras: adapters in memory at once.
        on_news: called from another thread when a file has been read; then `take_news` has something to say.
    """

    def __init__(self, host: AdapterHost, max_loras: int, on_news: Callable[[], None]) -> None:
        self._host = host
        self._max_loras = max_loras
        self._on_news = on_news
        self._known: dict[str, _Adapter] = {}
        self._resident: dict[int, _Adapter] = {}  # by number, least recently used first
        self._wanted: dict[_Adapter, None] = {}  # those with parked requests, in the order in which they were wanted
        self._of_request: dict[Request, _Adapter] = {}
        self._reads: SimpleQueue[_Read] = SimpleQueue()
        self._num_loading = 0
        self._last_number = 0
        self._is_settled = True
        self._admitted: list[tuple[Request, int]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="adapters")

    @property
    def has_work(self) -> bool:
        """Whether `take_news` or `admit` would do anything."""
        return not self._is_settled or not self._reads.empty()

    @property
    def num_parked(self) -> int:
        """Requests that wait for their adapter."""
        return sum(len(adapter.parked) for adapter in self._wanted)

    @property
    def num_resident(self) -> int:
        """Adapters in memory."""
        return len(self._resident)

    def load_now(self, name: str, path: str) -> AdapterInfo:
        """Make an adapter known, and keep it in memory if there is a free place; for the start, as it blocks.

        Raises:
            AdapterError: it is no adapter for this model, or the name is taken.
        """
        adapter = self._check_new(name, path, replace=False)
        content = self._host.read(path)
        return self._accept(adapter, content)

    def load(self, call: LoadAdapter) -> None:
        """Read an adapter in the background; the answer comes with `take_news`.

        Raises:
            AdapterError: the name is taken, or too many are known.
        """
        self._read_in_thread(self._check_new(call.name, call.path, replace=call.replace), call)

    def unload(self, call: UnloadAdapter) -> AdapterReply:
        """Forget a name; requests that came before keep the adapter until they have ended.

        Raises:
            UnknownAdapterError: nothing of that name is loaded.
        """
        adapter = self._known.pop(call.name, None)
        if adapter is None:
            raise UnknownAdapterError(f"no adapter {call.name!r} is loaded")
        self._drop_if_unused(adapter)
        return AdapterReply(call.call_id)

    def enter(self, request: Request, name: str) -> None:
        """Take in a request; `admit` gives it back when its adapter is in memory.

        Raises:
            UnknownAdapterError: nothing of that name is loaded.
        """
        adapter = self._known.get(name)
        if adapter is None:
            raise UnknownAdapterError(f"no adapter {name!r} is loaded")
        self._of_request[request] = adapter
        adapter.parked[request] = None
        self._wanted[adapter] = None
        self._is_settled = False

    def leave(self, request: Request) -> None:
        """A request has ended, admitted or not; those without an adapter are none of ours."""
        adapter = self._of_request.pop(request, None)
        if adapter is None:
            return
        if request in adapter.parked:
            del adapter.parked[request]
            if not adapter.parked:
                del self._wanted[adapter]
        else:
            adapter.num_requests -= 1
        self._is_settled = False
        self._drop_if_unused(adapter)

    def admit(self) -> list[tuple[Request, int]]:
        """Requests that may run from now on, each with its adapter's number; starts to load what others need."""
        if self._is_settled:
            return []
        self._is_settled = True
        victims = self._victims()
        for adapter in victims:
            if not adapter.num_requests:
                self._evict(adapter)
        for adapter in list(self._wanted):
            if adapter.number and adapter not in victims:
                self._start_requests(adapter)
            elif not adapter.number and not adapter.is_loading and self._num_free_places > 0:
                adapter.is_loading = True
                self._num_loading += 1
                self._read_in_thread(adapter, None)
        admitted, self._admitted = self._admitted, []
        return admitted

    def take_news(self) -> News:
        """What has come of the files read since the last call."""
        news = News()
        while not self._reads.empty():
            read = self._reads.get()
            if read.call is None:
                self._finish_load(read, news)
            else:
                news.replies.append(self._answer(read, read.call))
            self._is_settled = False
        return news

    @property
    def _num_free_places(self) -> int:
        return self._max_loras - len(self._resident) - self._num_loading

    def _victims(self) -> list[_Adapter]:
        """The residents that have to give up their places, those with the fewest requests first."""
        num_cold = sum(not adapter.number and not adapter.is_loading for adapter in self._wanted)
        num_needed = max(num_cold - self._num_free_places, 0)
        ordered = sorted(self._resident.values(), key=lambda adapter: (adapter.num_requests, bool(adapter.parked)))
        return ordered[:num_needed]

    def _start_requests(self, adapter: _Adapter) -> None:
        self._resident[adapter.number] = self._resident.pop(adapter.number)  # now the most recently used
        self._wanted.pop(adapter, None)
        self._admitted += [(request, adapter.number) for request in adapter.parked]
        adapter.num_requests += len(adapter.parked)
        adapter.parked.clear()

    def _finish_load(self, read: _Read, news: News) -> None:
        adapter = read.adapter
        adapter.is_loading = False
        self._num_loading -= 1
        if read.error is None:
            self._install(adapter, read.content)
            # At once: if others want the place, it was read for nothing unless those who waited for it come first.
            self._start_requests(adapter)
            self._drop_if_unused(adapter)
            return
        reason = f"the adapter {adapter.name!r} could not be loaded again: {read.error}"
        logger.error("%s; %d requests end with an error", reason, len(adapter.parked))
        news.failures.extend((request, reason) for request in adapter.parked)

    def _answer(self, read: _Read, call: LoadAdapter) -> AdapterReply:
        if read.error is not None:
            return AdapterReply(call.call_id, error=str(read.error))
        try:
            self._check_new(call.name, call.path, replace=call.replace)  # another call may have come first
        except AdapterError as error:
            return AdapterReply(call.call_id, error=str(error))
        return AdapterReply(call.call_id, self._accept(read.adapter, read.content))

    def _check_new(self, name: str, path: str, *, replace: bool) -> _Adapter:
        if name in self._known:
            if not replace:
                raise AdapterError(f"the adapter {name!r} is loaded already: unload it first, or replace it")
        elif len(self._known) >= MAX_KNOWN:
            raise AdapterError(f"{len(self._known)} adapters are loaded, which is the limit: unload one first")
        return _Adapter(name, path)

    def _accept(self, adapter: _Adapter, content: Any) -> AdapterInfo:
        """Make an adapter known under its name, instead of the one before, and keep it where there is a free place."""
        before = self._known.get(adapter.name)
        self._known[adapter.name] = adapter
        if before is not None:
            self._drop_if_unused(before)
        if self._num_free_places > 0:
            self._install(adapter, content)
        return AdapterInfo(adapter.name, adapter.path, content.max_rank, content.num_bytes)

    def _install(self, adapter: _Adapter, content: Any) -> None:
        self._last_number += 1
        adapter.number = self._last_number
        self._resident[adapter.number] = adapter
        self._host.install(adapter.number, content)

    def _evict(self, adapter: _Adapter) -> None:
        self._host.remove(adapter.number)
        del self._resident[adapter.number]
        adapter.number = 0

    def _drop_if_unused(self, adapter: _Adapter) -> None:
        """Free what an adapter holds once its name is gone and its requests have ended."""
        is_known = self._known.get(adapter.name) is adapter
        if adapter.number and not is_known and not adapter.num_requests and not adapter.parked:
            self._evict(adapter)
            self._is_settled = False

    def _read_in_thread(self, adapter: _Adapter, call: LoadAdapter | None) -> None:
        self._thread.submit(self._read, adapter, call)

    def _read(self, adapter: _Adapter, call: LoadAdapter | None) -> None:
        content, failure = None, None
        try:
            content = self._host.read(adapter.path)
        except Exception as error:  # whatever reading a foreign file may raise is the reason that the caller is told
            failure = error if isinstance(error, AdapterError) else AdapterError(f"{adapter.path}: {error!r}")
        self._reads.put(_Read(adapter, content, failure, call))
        self._on_news()
