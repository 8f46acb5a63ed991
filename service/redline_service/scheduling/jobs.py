"""One item on its way through the model, and those who wait for it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from redline_model.encoding.encoder import EncodedItem
from redline_model.inference.prefix_cache import Prefix


@dataclass(frozen=True)
class JobResult:
    """What came of a job: a measurement or an exception, and the correction if it was asked for. In seconds."""

    output: Any
    correction: Any
    queued_s: float
    inference_s: float


@dataclass(frozen=True)
class Timing:
    """Seconds a request spent in each part; those of its slowest item."""

    tokenize_s: float
    queue_s: float
    inference_s: float


@dataclass(eq=False)
class Job:
    """An item to be measured once, for everybody who sent it. Times are ``perf_counter`` seconds.

    ``deadline``: when the last of its callers stops waiting. ``length``: tokens of the item. ``prefix``: what it may
    share with others, None if nothing. ``debt``: tokens computed for it out of turn, to be charged when its turn comes.
    ``waiting``: how many of ``waiters`` have not left; thousands may wait for one job, so it is not counted anew.
    """

    item: EncodedItem
    length: int
    prefix: Prefix | None
    wants_correction: bool
    deadline: float = math.inf
    waiters: list[asyncio.Future[JobResult]] = field(default_factory=list)
    waiting: int = 0
    queued_at: float = field(default_factory=time.perf_counter)
    is_queued: bool = True
    debt: int = 0

    @cached_property
    def key(self) -> Hashable:
        """Equal keys mean equal measurements and corrections."""
        item = self.item
        ids = (item.prefix_ids, item.response_ids, item.instruction_ids, item.target_ids)
        return (*map(tuple, ids), self.wants_correction)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody still waits."""
        return self.waiting > 0

    def join(self, waiter: asyncio.Future[JobResult]) -> None:
        """One more waits."""
        self.waiters.append(waiter)
        self.waiting += 1

    def fail(self, error: Exception) -> None:
        """Raise ``error`` wherever the job is waited for."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(error)

    def finish(self, output: Any, correction: Any, queued_s: float, inference_s: float) -> None:
        """Tell everybody who still waits."""
        result = JobResult(output, correction, queued_s, inference_s)
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(result)
