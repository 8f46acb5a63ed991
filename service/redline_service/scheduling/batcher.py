"""Combines many requests into full forward passes and refuses work under overload. No tensors, no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Coroutine, Hashable, Iterator, Sequence
from typing import Any

from redline_model.encoding.items import EncodedItem
from redline_model.scorer import Scorer
from redline_service.scheduling.errors import DeadlineExceededError, OverloadedError
from redline_service.scheduling.job_queue import JobQueue
from redline_service.scheduling.jobs import Job, JobResult
from redline_service.scheduling.thread_pool import ThreadPool
from redline_service.scheduling.throughput import Throughput
from redline_service.scheduling.worker import Worker

logger = logging.getLogger("redline.service")

# Unfinished rewrites keep their keys and values in memory; together they hold at most this many batches' tokens.
_MAX_REWRITE_BATCHES = 4
# Rewriting continues for at least this long before the next scoring pass.
_MIN_REWRITE_S = 0.02
# A request is accepted if it is expected to be scored within this share of its deadline: on arrival, when its length is
# not known yet, and after tokenisation. The second share is larger, so that requests are seldom refused after they
# were tokenised.
ARRIVAL_DEADLINE_SHARE = 0.6
_QUEUE_DEADLINE_SHARE = 0.9
# A pass takes this share of the mean deadline, but is never smaller than a full pass divided by the second number.
_PASS_DEADLINE_SHARE = 0.25
_MAX_PASS_DIVISOR = 8
_MEAN_DEADLINE_WEIGHT = 0.05
# Shorter deadlines count as this one in the mean: a caller with an impossible deadline must not make the passes of
# all callers small.
_MIN_DEADLINE_S = 0.5

BatchObserver = Callable[[int, int, float], None]  # items, tokens computed, seconds


class Batcher:
    """Queues jobs and runs them on the model in passes under a token budget.

    New jobs are queued while a pass runs, so load makes the passes fuller, and no job waits for a timer. If a full pass
    is queued it is formed while the previous one still runs. A job is dropped, at no cost, if its callers have
    disconnected. Rewriting and scoring take turns.

    Under overload, work that could not be done before its deadline is refused before it is queued. The estimate uses
    the throughput measured while requests were queued. Queued work that can no longer be finished in time is dropped.

    Args:
        max_batch_tokens: tokens of one pass.
        max_queued_tokens: further requests are refused beyond this number.
        max_running_passes: passes that are launched before the first of them ends; None: chosen for the device.
        on_batch: called after each pass with its items, its tokens and its seconds.
    """

    def __init__(
        self,
        scorer: Scorer[Any],
        *,
        max_batch_tokens: int,
        max_queued_tokens: int,
        max_running_passes: int | None = None,
        on_batch: BatchObserver = lambda items, tokens, seconds: None,
    ) -> None:
        self._scorer = scorer
        self._worker = Worker(scorer)
        self._max_batch_tokens = max_batch_tokens
        self._max_queued_tokens = max_queued_tokens
        self._on_batch = on_batch
        self._queue = JobQueue(scorer.planner, request_quantum=max_batch_tokens)
        self._rewrites: dict[int, tuple[Job, Any]] = {}  # by rewrite id: the job and its forward output
        self._jobs_added = asyncio.Event()
        # On a GPU a pass is launched while the previous one runs. On a CPU this would only delay other jobs.
        self._max_running_passes = max_running_passes or (1 if scorer.model.device.type == "cpu" else 2)
        self._threads = ThreadPool(self._max_running_passes, "redline-worker")
        self._feed_task: asyncio.Task[None] | None = None
        self._is_rewriting = self._is_rewrite_next = False
        self._is_stopped = False
        self._last_pass_s = _MIN_REWRITE_S
        self._throughput = Throughput()
        self._mean_deadline_s = 60.0  # of requests, a moving average
        self._running_tokens = 0  # of the passes that run
        self._busy_since = 0.0  # end of the last pass, or start of the first pass after the model was idle

    @property
    def queued_items(self) -> int:
        """Items that wait for the model, and items whose rewrite is not finished."""
        return self._queue.items + len(self._rewrites)

    @property
    def queued_tokens(self) -> int:
        """Tokens of the items that wait for the model."""
        return self._queue.tokens

    def start(self) -> None:
        """Start running queued jobs; needs a running event loop."""
        self._feed_task = asyncio.create_task(self._feed_model())

    async def stop(self, timeout_s: float = 2.0) -> None:
        """Stop; cancels unfinished jobs and jobs that are queued later.

        Args:
            timeout_s: how long to wait for a running pass to end.
        """
        self._is_stopped = True
        if self._feed_task is not None:
            self._feed_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._feed_task
        for job in self._queue.unfinished_jobs():
            for waiter in job.waiters:
                waiter.cancel()
        if not self._threads.stop(timeout_s):
            logger.error("a forward pass did not end within %g s; the process exits without waiting for it", timeout_s)

    async def run(
        self,
        items: Sequence[EncodedItem],
        lengths: Sequence[int],
        *,
        wants_correction: bool = False,
        caller: Hashable = None,
        deadline_s: float = math.inf,
    ) -> list[JobResult]:
        """Score ``items``; either all of them are queued or none.

        Args:
            lengths: tokens of each item.
            caller: who sent the items; callers share the model evenly.
            deadline_s: seconds after which the caller no longer needs the results.

        Raises:
            OverloadedError: the queue holds too many tokens, or is too long for the deadline. It is also raised later,
                if it turns out that the deadline cannot be met. A request larger than the whole queue is accepted if
                the queue is empty.
        """
        self.admit(sum(lengths), caller, deadline_s)
        deadline = time.perf_counter() + deadline_s
        with self.queued(
            items, lengths, wants_correction=wants_correction, caller=caller, deadline=deadline
        ) as futures:
            return list(await asyncio.gather(*futures))

    @contextlib.contextmanager
    def queued(
        self,
        items: Sequence[EncodedItem],
        lengths: Sequence[int],
        *,
        wants_correction: bool,
        caller: Hashable,
        request: Hashable = None,
        deadline: float = math.inf,
    ) -> Iterator[list[asyncio.Future[JobResult]]]:
        """Queue ``items`` and yield a future for each. On exit, jobs that no other caller waits for are dropped.

        Args:
            request: key of the request that the items belong to; requests of a caller take turns. None: a new request.
            deadline: ``perf_counter`` seconds after which the caller no longer needs the results.

        Raises:
            CancelledError: the batcher is stopped.
        """
        if self._is_stopped:  # the request was being tokenised when the batcher stopped; it would wait forever
            raise asyncio.CancelledError
        request = object() if request is None else request
        entries = self._queue.add(
            items, lengths, wants_correction=wants_correction, caller=caller, request=request, deadline=deadline
        )
        self._jobs_added.set()
        try:
            yield [future for _, future in entries]
        finally:
            for job, future in entries:
                future.cancel()
                self._queue.remove_waiter(job)

    def admit(
        self,
        tokens: float,
        caller: Hashable,
        deadline_s: float,
        *,
        preparing_tokens: float = 0,
        deadline_share: float = _QUEUE_DEADLINE_SHARE,
    ) -> None:
        """Accept or refuse a request of ``tokens``. Raises OverloadedError as ``run`` does.

        Args:
            preparing_tokens: estimated tokens of requests that were accepted and are not queued yet.
            deadline_share: the request must be expected to be scored within this share of ``deadline_s``. The rest is a
                margin for the error of the estimate.
        """
        if self.queued_tokens and self.queued_tokens + tokens > self._max_queued_tokens:
            raise OverloadedError("too many tokens are waiting to be scored")
        tokens_ahead = preparing_tokens + self._running_tokens + self._queue.tokens_ahead_of(caller, tokens)
        # If nothing is ahead the request is accepted whatever the estimate says: a wrong estimate can correct itself.
        if tokens_ahead:
            wait_s = self._throughput.seconds_for(tokens_ahead + tokens)
            if wait_s > deadline_share * deadline_s:
                raise OverloadedError(
                    f"the request would be scored in about {wait_s:.1f} s, "
                    f"which is too late for its deadline of {deadline_s:.1f} s",
                    wait_s - deadline_share * deadline_s,
                )
        if deadline_s < math.inf:
            counted_s = max(deadline_s, _MIN_DEADLINE_S)
            self._mean_deadline_s += _MEAN_DEADLINE_WEIGHT * (counted_s - self._mean_deadline_s)

    async def _feed_model(self) -> None:
        """Start passes and rewrites as jobs are queued and as the model becomes free."""
        running: set[asyncio.Task[None]] = set()
        is_idle = True
        try:
            while True:
                work = self._next_work(is_busy=bool(running)) if len(running) < self._max_running_passes else None
                if work is not None:
                    if not running:
                        self._busy_since = time.perf_counter() if is_idle else self._busy_since
                    is_idle = False
                    running.add(asyncio.create_task(work))
                    continue
                is_idle = is_idle or not running
                self._jobs_added.clear()
                arrival = asyncio.create_task(self._jobs_added.wait())
                await asyncio.wait({arrival, *running}, return_when=asyncio.FIRST_COMPLETED)
                arrival.cancel()
                running = {task for task in running if not task.done()}
        finally:
            for task in running:
                task.cancel()

    def _next_work(self, *, is_busy: bool) -> Coroutine[Any, Any, None] | None:
        """The work to start now, None to wait. While the model is busy, only a full pass is worth forming."""
        self._fail_expired_jobs()
        is_full = self._queue.tokens >= self._max_batch_tokens
        can_score = self._queue.has_job(wants_correction=False) and (is_full or not is_busy)
        can_rewrite = not self._is_rewriting and (
            bool(self._rewrites) or (self._queue.has_job(wants_correction=True) and (is_full or not is_busy))
        )
        if can_rewrite and (self._is_rewrite_next or not can_score):
            self._is_rewriting, self._is_rewrite_next = True, False
            return self._rewrite_turn()
        if can_score:
            self._is_rewrite_next = True
            return self._score(self._queue.next_batch(self._pass_tokens(), wants_correction=False))
        return None

    def _pass_tokens(self) -> int:
        """Tokens of the next pass: fewer if the mean deadline is shorter than a few full passes.

        It depends on the deadlines that requests arrive with, not on the time that is left of them. The time left would
        make the passes smaller, and so slower, the more work is queued.
        """
        tokens = self._throughput.tokens_per_s * self._mean_deadline_s * _PASS_DEADLINE_SHARE
        min_tokens = self._max_batch_tokens // _MAX_PASS_DIVISOR
        return min(self._max_batch_tokens, max(min_tokens, int(tokens))) if tokens else self._max_batch_tokens

    async def _score(self, jobs: Sequence[Job]) -> None:
        """Run one pass over ``jobs``; several passes if the model has to pad."""
        is_backlogged = self._queue.items > 0
        tokens = sum(job.length for job in jobs)
        self._running_tokens += tokens
        try:
            for indices in self._scorer.planner.batches([job.item for job in jobs], self._max_batch_tokens):
                batch = [jobs[i] for i in indices if jobs[i].has_waiters]
                if not batch:
                    continue
                forward = await self._threads.run(self._worker.forward, [job.item for job in batch])
                self._last_pass_s = forward.seconds
                self._record_pass(batch, forward.seconds, is_backlogged=is_backlogged)
                for job, output in zip(batch, forward.values, strict=True):
                    self._finish(job, output, None, forward.seconds)
        except Exception as error:  # an unexpected error must fail these jobs only and never end the feed task
            self._fail(jobs, error)
        finally:
            self._running_tokens -= tokens

    async def _rewrite_turn(self) -> None:
        """Start the rewrites that fit into memory, then continue all for about as long as the last scoring pass."""
        jobs: list[Job] = []
        is_backlogged = self._queue.items > 0
        try:
            free_tokens = _MAX_REWRITE_BATCHES * self._max_batch_tokens - self._worker.rewriting_tokens
            if self._queue.has_job(wants_correction=True) and (free_tokens > 0 or not self._rewrites):
                jobs = self._queue.next_batch(self._max_batch_tokens, wants_correction=True, max_length=free_tokens)
                jobs = [job for job in jobs if job.has_waiters]
            for indices in self._scorer.planner.batches([job.item for job in jobs], self._max_batch_tokens):
                batch = [jobs[i] for i in indices]
                started = await self._threads.run(self._worker.start_rewrites, [job.item for job in batch])
                self._record_pass(batch, started.seconds, is_backlogged=is_backlogged)
                for job, result in zip(batch, started.values, strict=True):
                    if isinstance(result, Exception):
                        self._finish(job, result, None, started.seconds)
                    else:
                        rewrite_id, output = result
                        self._rewrites[rewrite_id] = (job, output)
            for rewrite_id in [key for key, (job, _) in self._rewrites.items() if not job.has_waiters]:
                del self._rewrites[rewrite_id]
                await self._threads.run(self._worker.drop_rewrite, rewrite_id)
            if self._rewrites:
                await self._advance_rewrites(max(_MIN_REWRITE_S, self._last_pass_s))
        except Exception as error:
            self._fail(jobs, error)
        finally:
            self._is_rewriting = False

    async def _advance_rewrites(self, seconds: float) -> None:
        finished = await self._threads.run(self._worker.advance_rewrites, seconds)
        for rewrite_id, correction in finished.values:
            if rewrite_id in self._rewrites:
                job, output = self._rewrites.pop(rewrite_id)
                self._finish(job, output, correction, finished.seconds)

    def _fail_expired_jobs(self) -> None:
        """Drop queued jobs that can no longer be finished in time; they would delay jobs that can."""
        next_pass_s = self._throughput.seconds_for(min(self._queue.tokens, self._max_batch_tokens))
        for job in self._queue.remove_expired(time.perf_counter() + next_pass_s):
            job.fail(DeadlineExceededError("the service is overloaded: the item could not be scored in time"))

    def _record_pass(self, jobs: Sequence[Job], seconds: float, *, is_backlogged: bool) -> None:
        """Update the throughput after a pass over ``jobs`` that used the model for ``seconds``."""
        tokens = sum(job.length for job in jobs)
        self._on_batch(len(jobs), tokens, seconds)
        now = time.perf_counter()
        if is_backlogged or tokens >= self._max_batch_tokens // 2:
            self._throughput.observe(tokens, now - self._busy_since)
        self._busy_since = now

    def _finish(self, job: Job, output: Any, correction: Any, seconds: float) -> None:
        """Pass the result to the job's callers. ``seconds``: for which the job's last pass used the model."""
        self._queue.mark_finished(job)
        job.finish(output, correction, max(0.0, time.perf_counter() - job.queued_at - seconds), seconds)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        logger.error("a batch failed", exc_info=error)
        for job in jobs:
            self._finish(job, error, None, 0.0)
