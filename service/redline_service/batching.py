"""Items of many callers, one queue, batches under a token budget. Knows asyncio, but no tensors and no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from redline.wire import ErrorCode
from redline_model.batches import pack_by_length
from redline_model.template import EncodedItem
from redline_service.errors import RequestError
from redline_service.worker import Worker

logger = logging.getLogger("redline.service")


@dataclass(eq=False)
class Job:
    """One item on its way through the model. Times are ``perf_counter`` seconds."""

    item: EncodedItem
    length: int
    wants_correction: bool
    done: asyncio.Future[Outcome]
    queued_at: float = field(default_factory=time.perf_counter)
    is_queued: bool = True


@dataclass(frozen=True)
class Outcome:
    """What came of a job: a measurement or an exception, and the correction if it was asked for."""

    measured: Any
    correction: Any
    queued_s: float
    inference_s: float


BatchObserver = Callable[[int, int, float], None]  # items, tokens with padding, seconds


class Batcher:
    """Queues jobs and feeds them to the worker, oldest first, in batches of like length.

    While a batch runs, new jobs gather: load makes the batches larger, and nothing ever waits for a timer.
    A job whose caller has gone is dropped before it costs anything.
    """

    def __init__(
        self,
        worker: Worker,
        *,
        max_batch_tokens: int,
        max_queued_tokens: int,
        on_batch: BatchObserver = lambda items, tokens, seconds: None,
    ) -> None:
        self._worker = worker
        self._max_batch_tokens = max_batch_tokens
        self._max_queued_tokens = max_queued_tokens
        self._on_batch = on_batch
        self._pending: deque[Job] = deque()
        self._corrections: deque[tuple[Job, Any, float, float]] = deque()
        self._arrived = asyncio.Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="redline-worker")
        self._loop_task: asyncio.Task[None] | None = None
        self.queued_tokens = 0

    @property
    def queued_items(self) -> int:
        """Items that wait."""
        return len(self._pending) + len(self._corrections)

    def start(self) -> None:
        """Start feeding the worker; needs a running event loop."""
        self._loop_task = asyncio.create_task(self._feed())

    async def stop(self) -> None:
        """Stop feeding; jobs that still wait are cancelled."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop_task
        for job in [*self._pending, *(entry[0] for entry in self._corrections)]:
            job.done.cancel()
        self._executor.shutdown(wait=True)

    async def run(self, items: Sequence[EncodedItem], lengths: Sequence[int], wants_correction: bool) -> list[Outcome]:
        """Put ``items`` through the model, all or none of them queued.

        Raises:
            RequestError: OVERLOADED, the queue holds too many tokens. A request larger than the whole queue is
                let in when the queue is empty.
        """
        total = sum(lengths)
        if self.queued_tokens and self.queued_tokens + total > self._max_queued_tokens:
            raise RequestError(ErrorCode.OVERLOADED, "too many tokens are waiting to be scored", retry_after_s=1)
        loop = asyncio.get_running_loop()
        jobs = [
            Job(item, length, wants_correction, loop.create_future())
            for item, length in zip(items, lengths, strict=True)
        ]
        self._pending.extend(jobs)
        self.queued_tokens += total
        self._arrived.set()
        try:
            return list(await asyncio.gather(*(job.done for job in jobs)))  # cancelled, it cancels them all
        finally:
            for job in jobs:
                self._leave_queue(job)  # callers that have gone must not keep others out

    def _leave_queue(self, job: Job) -> None:
        if job.is_queued:
            job.is_queued = False
            self.queued_tokens -= job.length

    async def _feed(self) -> None:
        while True:
            if not self._pending and not self._corrections:
                self._arrived.clear()
                await self._arrived.wait()
            await self._score_round()
            await self._correct_one()

    def _take(self) -> list[Job]:
        """The oldest jobs, up to one budget of tokens."""
        taken: list[Job] = []
        tokens = 0
        while self._pending and (not taken or tokens + self._pending[0].length <= self._max_batch_tokens):
            job = self._pending.popleft()
            self._leave_queue(job)
            if not job.done.done():
                taken.append(job)
                tokens += job.length
        return taken

    async def _score_round(self) -> None:
        jobs = self._take()
        try:
            await self._score(jobs)
        except Exception as error:  # a fault of ours must cost this round only, never the feeding task
            logger.error("a round failed", exc_info=error)
            for job in jobs:
                self._finish(job, Outcome(error, None, 0.0, 0.0))

    async def _score(self, jobs: Sequence[Job]) -> None:
        loop = asyncio.get_running_loop()
        for batch in pack_by_length(jobs, lambda job: job.length, self._max_batch_tokens):
            chosen = [job for job in (jobs[i] for i in batch) if not job.done.done()]
            if not chosen:
                continue
            started = time.perf_counter()
            measured = await loop.run_in_executor(self._executor, self._worker.measure, [j.item for j in chosen])
            seconds = time.perf_counter() - started
            tokens = len(chosen) * max(job.length for job in chosen)
            self._on_batch(len(chosen), tokens, seconds)
            for job, one in zip(chosen, measured, strict=True):
                queued = started - job.queued_at
                if job.wants_correction and not isinstance(one, Exception):
                    self._corrections.append((job, one, queued, seconds))
                else:
                    self._finish(job, Outcome(one, None, queued, seconds))

    async def _correct_one(self) -> None:
        """One rewrite between two rounds, so that slow writing never holds up quick judging for long."""
        while self._corrections:
            job, measured, queued, seconds = self._corrections.popleft()
            if job.done.done():
                continue
            started = time.perf_counter()
            loop = asyncio.get_running_loop()
            correction = await loop.run_in_executor(self._executor, self._worker.correct, job.item, measured)
            seconds += time.perf_counter() - started
            self._finish(job, Outcome(measured, correction, queued, seconds))
            return

    def _finish(self, job: Job, outcome: Outcome) -> None:
        if not job.done.done():
            job.done.set_result(outcome)
