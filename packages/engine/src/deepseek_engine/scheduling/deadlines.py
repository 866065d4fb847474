"""When requests must have ended."""

from deepseek_engine.scheduling.lazy_heap import LazyHeap


class Deadlines:
    """Request ids by the time at which they end, in seconds of the engine's clock."""

    def __init__(self) -> None:
        self._times: LazyHeap[str] = LazyHeap()

    def put(self, request_id: str, time_s: float) -> None:
        """The request ends at this time."""
        self._times.put(request_id, time_s)

    def discard(self, request_id: str) -> None:
        """The request has ended by itself."""
        self._times.discard(request_id)

    def take_due(self, now_s: float) -> list[str]:
        """The requests whose time has come, earliest first; each is returned once."""
        due: list[str] = []
        while self._times:
            time_s, request_id = self._times.peek()
            if time_s > now_s:
                break
            self._times.discard(request_id)
            due.append(request_id)
        return due
