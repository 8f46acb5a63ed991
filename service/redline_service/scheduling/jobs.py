"""One item to be scored, and the callers that wait for its result."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from redline_model.encoding.items import EncodedItem
from redline_model.inference.prefix_cache import Prefix


@dataclass(frozen=True)
class JobResult:
    """Result of a job.

    ``output``: the scorer's forward output, or the exception that occurred. ``correction``: the rewrite or an
    exception; None if none was requested. ``queued_s`` and ``inference_s``: seconds in the queue and in the model.
    """

    output: Any
    correction: Any
    queued_s: float
    inference_s: float


@dataclass(frozen=True)
class Timing:
    """Seconds that a request spent in each stage; for a stage of several items, those of the slowest item."""

    tokenize_s: float
    queue_s: float
    inference_s: float


@dataclass(eq=False)
class Job:
    """An item that is scored once for all callers that sent it. Times are ``perf_counter`` seconds.

    ``length``: tokens of the item. ``prefix``: leading tokens that it may share with other items, None if there are
    none. ``deadline``: the latest deadline of its callers. ``waiters``: a future for each caller;
    ``active_waiters`` of them still wait (a counter, because thousands of callers may wait for one job).
    ``is_queued``: whether the job is still in the queue. ``deferred_cost``: tokens that were computed for it out of
    turn; its caller is charged for them when the job's turn comes.
    """

    item: EncodedItem
    length: int
    prefix: Prefix | None
    wants_correction: bool
    deadline: float = math.inf
    waiters: list[asyncio.Future[JobResult]] = field(default_factory=list)
    active_waiters: int = 0
    queued_at: float = field(default_factory=time.perf_counter)
    is_queued: bool = True
    deferred_cost: int = 0

    @cached_property
    def key(self) -> Hashable:
        """Jobs with equal keys have equal results."""
        item = self.item
        ids = (item.prefix_ids, item.response_ids, item.instruction_ids, item.target_ids)
        return (*map(tuple, ids), self.wants_correction)

    @property
    def has_waiters(self) -> bool:
        """Whether a caller still waits for the result."""
        return self.active_waiters > 0

    def add_waiter(self, waiter: asyncio.Future[JobResult]) -> None:
        """Add the future of a caller."""
        self.waiters.append(waiter)
        self.active_waiters += 1

    def fail(self, error: Exception) -> None:
        """Raise ``error`` in every caller that still waits."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(error)

    def finish(self, output: Any, correction: Any, queued_s: float, inference_s: float) -> None:
        """Pass the result to every caller that still waits."""
        result = JobResult(output, correction, queued_s, inference_s)
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(result)
