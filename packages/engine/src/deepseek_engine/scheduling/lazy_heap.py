"""A priority queue out of whose middle items can be taken."""

import heapq
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")

_SLACK = 16


class LazyHeap(Generic[Item]):
    """Smallest key first. `put` and `discard` cost O(log n), amortised; an item is in it once.

    A discarded entry stays in the heap until it comes up, or until such entries are the majority and are swept out: a
    caller who submits and cancels without end therefore holds no more memory than what is really there.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Any, int, Item]] = []
        self._tickets: dict[Item, int] = {}
        self._num_tickets = 0

    def __len__(self) -> int:
        return len(self._tickets)

    def __contains__(self, item: Item) -> bool:
        return item in self._tickets

    def __iter__(self) -> Iterator[Item]:
        """All items, in no particular order."""
        return iter(self._tickets)

    def put(self, item: Item, key: Any) -> None:
        """Add an item, or move the one that is there; keys must compare with each other."""
        self._num_tickets += 1
        self._tickets[item] = self._num_tickets  # any earlier entry of the item is now a stale one
        heapq.heappush(self._heap, (key, self._num_tickets, item))
        self._sweep()

    def discard(self, item: Item) -> None:
        """Take an item out, if it is there."""
        if self._tickets.pop(item, None) is not None:
            self._sweep()

    def peek(self) -> tuple[Any, Item]:
        """The smallest key and its item; the heap must not be empty."""
        assert self._tickets, "peek() of an empty heap"
        while True:
            key, ticket, item = self._heap[0]
            if self._tickets.get(item) == ticket:
                return key, item
            heapq.heappop(self._heap)

    def _sweep(self) -> None:
        if len(self._heap) > 2 * len(self._tickets) + _SLACK:
            self._heap = [entry for entry in self._heap if self._tickets.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)
