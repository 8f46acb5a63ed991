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
    """Fair queueing with start tags (Goyal, Vin and Cheng, 1996): the flow that was given least goes first.

    Virtual time is how far an even share has come: what is given to one flow moves it on by that over the number
    of flows, also while nothing but newcomers is served. A newcomer starts from there, so neither idling nor
    asking anew earns credit.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Hashable]] = []
        self._now = 0.0

    def join(self, flow: Hashable) -> None:
        heapq.heappush(self._heap, (self._now, next(_ticks), flow))

    def next(self) -> Hashable:
        return self._heap[0][2]

    def charge(self, cost: float, *, is_last: bool) -> None:
        """The next flow was given ``cost``; ``is_last`` if it has nothing more."""
        tag, _, flow = self._heap[0]
        self._now += cost / len(self._heap)
        if is_last:
            heapq.heappop(self._heap)
        else:
            heapq.heapreplace(self._heap, (tag + cost, next(_ticks), flow))


class FairQueue(Generic[J]):
    """Jobs by caller and request, first in first out within a request. Not thread-safe."""

    def __init__(self) -> None:
        self._turns = _Turns()
        self._callers: dict[Hashable, tuple[_Turns, dict[Hashable, deque[J]]]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, job: J, *, caller: Hashable, request: Hashable) -> None:
        """Queue a job."""
        if caller not in self._callers:
            self._callers[caller] = (_Turns(), {})
            self._turns.join(caller)
        turns, requests = self._callers[caller]
        if request not in requests:
            requests[request] = deque()
            turns.join(request)
        requests[request].append(job)
        self._size += 1

    def peek(self) -> J:
        """The next job. Raises IndexError on an empty queue."""
        if not self._size:
            raise IndexError("the queue is empty")
        turns, requests = self._callers[self._turns.next()]
        return requests[turns.next()][0]

    def pop(self, cost: float) -> J:
        """Take the next job; its caller and its request are charged ``cost``. Raises IndexError on an empty queue."""
        job = self.peek()
        caller = self._turns.next()
        turns, requests = self._callers[caller]
        request = turns.next()
        requests[request].popleft()
        self._size -= 1
        turns.charge(cost, is_last=not requests[request])
        if not requests[request]:
            del requests[request]
        self._turns.charge(cost, is_last=not requests)
        if not requests:
            del self._callers[caller]
        return job
