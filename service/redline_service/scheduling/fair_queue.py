"""Who is next: callers share the model evenly, and within a caller its requests do, however much each of them sends."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable, Iterator
from itertools import count
from typing import Generic, TypeVar

J = TypeVar("J")
_ticks = count()
_NEXT = object()  # whoever is next


class _Turns:
    """Fair queueing with start tags (Goyal, Vin and Cheng, 1996): the flow that was given least goes first.

    Virtual time is how far an even share has come: what is given to one flow moves it on by that over the number
    of flows, also while nothing but newcomers is served. A newcomer starts from there, so neither idling nor
    asking anew earns credit.

    Args:
        quantum: a flow whose turn it is keeps it until it was given so much.
    """

    def __init__(self, quantum: float = 0.0) -> None:
        self._quantum = quantum
        self._given: dict[Hashable, float] = {}  # to flows that keep their turn
        self._heap: list[tuple[float, int, Hashable]] = []
        self._tags: dict[Hashable, tuple[float, int, Hashable]] = {}  # the entry of each flow that still counts
        self._now = 0.0

    def join(self, flow: Hashable) -> None:
        self._enter(flow, self._now)

    def _enter(self, flow: Hashable, tag: float) -> None:
        self._tags[flow] = (tag, next(_ticks), flow)
        heapq.heappush(self._heap, self._tags[flow])

    def next(self) -> Hashable:
        while self._tags.get(self._heap[0][2]) is not self._heap[0]:
            heapq.heappop(self._heap)
        return self._heap[0][2]

    def in_order(self) -> Iterator[Hashable]:
        """All flows, the next one first; the others are sorted only if they are asked for."""
        first = self.next()
        yield first
        for _, _, flow in sorted(self._tags.values()):
            if flow != first:
                yield flow

    def due(self, within: float) -> list[Hashable]:
        """The flows whose tags are at most ``within`` beyond the next one's."""
        latest = self._tags[self.next()][0] + within
        return [flow for tag, _, flow in self._tags.values() if tag <= latest]

    def charge(self, flow: Hashable, cost: float, *, is_last: bool) -> None:
        """``flow`` was given ``cost``; ``is_last`` if it has nothing more."""
        self._now += cost / len(self._tags)
        given = self._given.pop(flow, 0.0) + cost
        if is_last:
            del self._tags[flow]
        elif given < self._quantum:
            self._given[flow] = given
        else:
            self._enter(flow, self._tags[flow][0] + given)


class FairQueue(Generic[J]):
    """Jobs by caller and request, first in first out within a request. Not thread-safe.

    Args:
        request_quantum: cost of a request that is taken before another request of the same caller has a turn. Requests
            that cost less are finished in the order in which they came: if all were begun at once, all would be late
            together.
    """

    def __init__(self, request_quantum: float = 0.0) -> None:
        self._request_quantum = request_quantum
        self._turns = _Turns()
        self._callers: dict[Hashable, tuple[_Turns, dict[Hashable, deque[J]]]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, job: J, *, caller: Hashable, request: Hashable) -> None:
        """Queue a job."""
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
        """The next job, or the next of ``caller``. Raises IndexError on an empty queue, KeyError if it has none."""
        if not self._size:
            raise IndexError("the queue is empty")
        turns, requests = self._callers[self._turns.next() if caller is _NEXT else caller]
        return requests[turns.next()][0]

    def callers(self) -> Iterator[Hashable]:
        """Who has jobs here, the next in turn first; the queue may not change meanwhile."""
        return self._turns.in_order() if self._size else iter(())

    def callers_due(self, within: float) -> list[Hashable]:
        """Who would be next if up to ``within`` more of cost had been given to those before them."""
        return self._turns.due(within) if self._size else []

    def __contains__(self, caller: Hashable) -> bool:
        return caller in self._callers

    def pop(self, cost: float, caller: Hashable = _NEXT) -> J:
        """Take the next job, or the next of ``caller``; caller and request are charged ``cost``. Raises as ``peek``."""
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
