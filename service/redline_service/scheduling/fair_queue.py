"""A fair queue: callers share the model evenly, and so do the requests of one caller, however much each sends."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable, Iterator
from itertools import count
from typing import Generic, TypeVar

J = TypeVar("J")
_ticks = count()
_NEXT = object()  # the caller that is next in turn


class _Turns:
    """Start-time fair queueing (Goyal, Vin and Cheng, 1996): the flow that was served least goes first.

    Virtual time is the service that every flow would have received with even shares. Serving a flow at a cost advances
    it by the cost divided by the number of flows, also if only new flows are served. A new flow starts with the current
    virtual time as its tag, so a flow earns no credit by being idle or by leaving and joining again.

    Args:
        quantum: a flow keeps its turn until it was served at this cost.
    """

    def __init__(self, quantum: float = 0.0) -> None:
        self._quantum = quantum
        self._served: dict[Hashable, float] = {}  # cost in the current turn, of flows that keep their turn
        self._heap: list[tuple[float, int, Hashable]] = []
        self._tags: dict[Hashable, tuple[float, int, Hashable]] = {}  # the heap entry that counts for each flow
        self._virtual_time = 0.0

    def join(self, flow: Hashable) -> None:
        self._push(flow, self._virtual_time)

    def _push(self, flow: Hashable, tag: float) -> None:
        self._tags[flow] = (tag, next(_ticks), flow)
        heapq.heappush(self._heap, self._tags[flow])

    def next(self) -> Hashable:
        while self._tags.get(self._heap[0][2]) is not self._heap[0]:
            heapq.heappop(self._heap)
        return self._heap[0][2]

    def in_order(self) -> Iterator[Hashable]:
        """All flows, the next one first; the others are sorted only if the iteration goes on."""
        first = self.next()
        yield first
        for _, _, flow in sorted(self._tags.values()):
            if flow != first:
                yield flow

    def due(self, within: float) -> list[Hashable]:
        """The flows whose tags exceed the next flow's tag by at most ``within``."""
        latest = self._tags[self.next()][0] + within
        return [flow for tag, _, flow in self._tags.values() if tag <= latest]

    def charge(self, flow: Hashable, cost: float, *, is_last: bool) -> None:
        """Record that ``flow`` was served at ``cost``; ``is_last``: it has nothing more to serve and leaves."""
        self._virtual_time += cost / len(self._tags)
        served = self._served.pop(flow, 0.0) + cost
        if is_last:
            del self._tags[flow]
        elif served < self._quantum:
            self._served[flow] = served
        else:
            self._push(flow, self._tags[flow][0] + served)


class FairQueue(Generic[J]):
    """Jobs by caller and request; first in, first out within a request. Not thread-safe.

    Args:
        request_quantum: cost at which a request is served before it is another request's turn, of the same caller.
            Requests that cost less are finished in the order in which they arrived: if all were started at once, all
            would be late.
    """

    def __init__(self, request_quantum: float = 0.0) -> None:
        self._request_quantum = request_quantum
        self._turns = _Turns()
        self._callers: dict[Hashable, tuple[_Turns, dict[Hashable, deque[J]]]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, job: J, *, caller: Hashable, request: Hashable) -> None:
        """Add a job at the end of its request."""
        if caller not in self._callers:
            self._callers[caller] = (_Turns(self._request_quantum), {})
            self._turns.join(caller)
        turns, requests = self._callers[caller]
        if request not in requests:
            requests[request] = deque()
            turns.join(request)
        requests[request].append(job)
        self._size += 1

    def peek(self, caller: Hashable = _NEXT) -> J:
        """The next job, or the next of ``caller``. Raises IndexError if there is no job, KeyError if it has none."""
        if not self._size:
            raise IndexError("the queue is empty")
        turns, requests = self._callers[self._turns.next() if caller is _NEXT else caller]
        return requests[turns.next()][0]

    def callers(self) -> Iterator[Hashable]:
        """Callers with jobs, the next in turn first. Do not change the queue during the iteration."""
        return self._turns.in_order() if self._size else iter(())

    def callers_due(self, within: float) -> list[Hashable]:
        """Callers that would be next after the callers ahead of them were served at a further cost of ``within``."""
        return self._turns.due(within) if self._size else []

    def __contains__(self, caller: Hashable) -> bool:
        return caller in self._callers

    def pop(self, cost: float, caller: Hashable = _NEXT) -> J:
        """Remove the next job, or the next of ``caller``, and charge caller and request. Raises as ``peek`` does."""
        job = self.peek(caller)
        caller = self._turns.next() if caller is _NEXT else caller
        turns, requests = self._callers[caller]
        request = turns.next()
        requests[request].popleft()
        self._size -= 1
        turns.charge(request, cost, is_last=not requests[request])
        if not requests[request]:
            del requests[request]
        self._turns.charge(caller, cost, is_last=not requests)
        if not requests:
            del self._callers[caller]
        return job
