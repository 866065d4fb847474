"""The order in which waiting requests go: by class, then by organisation, then by key, each fair to its like.

Stride scheduling: at every level the child that has had least for its weight goes next, so no child starves, not even
the lowest class. A child that was idle begins where its like are now: it saves up no turns. A request that cannot
go, because its engines are full, lets those pass that can.
"""

import enum
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar


class Priority(enum.StrEnum):
    """Classes, the most urgent first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


SHARES = {Priority.HIGH: 16.0, Priority.NORMAL: 4.0, Priority.LOW: 1.0}
"""Turns of each class while all have somebody waiting."""

Item = TypeVar("Item")


@dataclass(slots=True, eq=False)
class Waiter(Generic[Item]):
    """One waiting request. `route` is what it waits for: those of one route can all go, or none can."""

    item: Item
    priority: Priority
    org: str
    key: str
    route: str
    since_s: float
    deadline_s: float


@dataclass(slots=True)
class _Child(Generic[Item]):
    """A node with whatever has waiters below it; a leaf (a key) has waiters."""

    weight: float = 1.0
    passed: float = 0.0
    now: float = 0.0
    children: dict[str, "_Child[Item]"] = field(default_factory=dict[str, "_Child[Item]"])
    waiters: "OrderedDict[int, Waiter[Item]]" = field(default_factory=OrderedDict[int, "Waiter[Item]"])

    def child(self, name: str, weight: float) -> "_Child[Item]":
        found = self.children.get(name)
        if found is None:
            # A whole turn behind: one that comes and goes, or many that come once, get no more than those that stay.
            found = self.children[name] = _Child(weight, self.now + 1 / weight)
        return found

    @property
    def is_empty(self) -> bool:
        return not self.children and not self.waiters


class FairQueue(Generic[Item]):
    """At most `capacity` waiters."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._root: _Child[Item] = _Child()
        self._size = 0
        self._lengths = dict.fromkeys(Priority, 0)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Waiter[Item]]:
        for level in self._root.children.values():
            for org in level.children.values():
                for key in org.children.values():
                    yield from key.waiters.values()

    @property
    def is_full(self) -> bool:
        """Whether there is no place."""
        return self._size >= self.capacity

    def length(self, priority: Priority) -> int:
        """Waiters of one class."""
        return self._lengths[priority]

    def push(self, waiter: Waiter[Item]) -> None:
        """Add a waiter; the caller has seen that there is a place."""
        assert not self.is_full
        level = self._root.child(waiter.priority, SHARES[waiter.priority])
        leaf = level.child(waiter.org, 1.0).child(waiter.key, 1.0)
        leaf.waiters[id(waiter)] = waiter
        self._count(waiter, 1)

    def pop(self, can_go: Callable[[Waiter[Item]], bool]) -> Waiter[Item] | None:
        """Take the next waiter that can go; None if none can. Each route is asked about once."""
        blocked: set[str] = set()
        found = self._search(self._root, blocked, can_go)
        if found is not None:
            self._count(found, -1)
        return found

    def remove(self, waiter: Waiter[Item]) -> bool:
        """Take out a waiter that gave up; False if it is not there."""
        path = [self._root]
        for name in (waiter.priority, waiter.org, waiter.key):
            below = path[-1].children.get(name)
            if below is None:
                return False
            path.append(below)
        if path[-1].waiters.pop(id(waiter), None) is None:
            return False
        for parent, name in zip(reversed(path[:-1]), (waiter.key, waiter.org, waiter.priority), strict=True):
            if parent.children[name].is_empty:
                del parent.children[name]
        self._count(waiter, -1)
        return True

    def late(self, now_s: float) -> list[Waiter[Item]]:
        """Take out all whose deadline is over."""
        late = [waiter for waiter in self if waiter.deadline_s <= now_s]
        for waiter in late:
            self.remove(waiter)
        return late

    def clear(self) -> list[Waiter[Item]]:
        """Take out all."""
        everyone = list(self)
        for waiter in everyone:
            self.remove(waiter)
        return everyone

    def _search(
        self, node: _Child[Item], blocked: set[str], can_go: Callable[[Waiter[Item]], bool]
    ) -> Waiter[Item] | None:
        for waiter in node.waiters.values():
            if waiter.route in blocked:
                continue
            if can_go(waiter):
                del node.waiters[id(waiter)]
                return waiter
            blocked.add(waiter.route)
        for name, child in sorted(node.children.items(), key=lambda pair: pair[1].passed):
            found = self._search(child, blocked, can_go)
            if found is not None:
                # One that could not go for a while has lost its turns: `now` never falls behind.
                node.now = max(node.now, child.passed)
                child.passed = node.now + 1 / child.weight
                if child.is_empty:
                    del node.children[name]
                return found
        return None

    def _count(self, waiter: Waiter[Item], change: int) -> None:
        self._size += change
        self._lengths[waiter.priority] += change
