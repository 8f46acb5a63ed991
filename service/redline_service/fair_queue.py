"""Who is next: callers share the model evenly, and within a caller its requests do, however much each of them sends."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable
from itertools import count
from typing import Generic, TypeVar

J = TypeVar("J")
_ticks = count()


class _Turns:
    """Start-time fair queueing (Goyal, Vin and Cheng, 1996): the flow that was given least goes first.

    A flow that joins starts from where the others are now, so idling earns no credit.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Hashable]] = []
        self._now = 0.0

    def join(self, flow: Hashable) -> None:
        heapq.heappush(self._heap, (self._now, next(_ticks), flow))

    def next(self) -> Hashable:
        return self._heap[0][2]

    def charge(self, cost: float) -> None:
        """The next flow was given ``cost``."""
        tag, _, flow = self._heap[0]
        self._now = tag
        heapq.heapreplace(self._heap, (tag + cost, next(_ticks), flow))

    def leave(self) -> None:
        """The next flow has nothing more."""
        self._now = heapq.heappop(self._heap)[0]


class FairQueue(Generic[J]):
    """Jobs by caller and request, first in first out within a request. Not thread-safe."""

    def __init__(self) -> None:
        self._turns = _Turns()
        self._callers: dict[Hashable, tuple[_Turns, dict[Hashable, deque[tuple[J, float]]]]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, job: J, *, caller: Hashable, request: Hashable, cost: float) -> None:
        """Queue a job; ``cost`` is what its caller and its request are charged when it is popped."""
        if caller not in self._callers:
            self._callers[caller] = (_Turns(), {})
            self._turns.join(caller)
        turns, requests = self._callers[caller]
        if request not in requests:
            requests[request] = deque()
            turns.join(request)
        requests[request].append((job, cost))
        self._size += 1

    def pop(self, *, is_free: bool = False) -> J:
        """The next job; ``is_free`` charges nobody. Raises IndexError on an empty queue."""
        if not self._size:
            raise IndexError("the queue is empty")
        caller = self._turns.next()
        turns, requests = self._callers[caller]
        request = turns.next()
        job, cost = requests[request].popleft()
        self._size -= 1
        cost = 0.0 if is_free else cost
        if requests[request]:
            turns.charge(cost)
        else:
            turns.leave()
            del requests[request]
        if requests:
            self._turns.charge(cost)
        else:
            self._turns.leave()
            del self._callers[caller]
        return job

    def peek(self) -> J:
        """What ``pop`` would give. Raises IndexError on an empty queue."""
        if not self._size:
            raise IndexError("the queue is empty")
        turns, requests = self._callers[self._turns.next()]
        return requests[turns.next()][0][0]
