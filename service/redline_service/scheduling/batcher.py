"""From many requests to full passes through the model. Knows asyncio, but no tensors and no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Coroutine, Hashable, Iterator, Sequence
from typing import Any

from redline_model.encoding.encoder import EncodedItem
from redline_model.scorer import Scorer
from redline_service.scheduling.errors import DeadlineExceededError, OverloadedError
from redline_service.scheduling.job_queue import JobQueue
from redline_service.scheduling.jobs import Job, JobResult
from redline_service.scheduling.thread_pool import ThreadPool
from redline_service.scheduling.throughput import Throughput
from redline_service.scheduling.worker import Worker

logger = logging.getLogger("redline.service")

# Rewrites under way hold keys and values; together at most this many batches' worth of tokens.
_REWRITE_BATCHES = 4
# A rewrite's writing is interrupted for scoring after at least this long.
_LEAST_SLICE_S = 0.02
# The share of its deadline within which a request must be expected to be scored: when it arrives, and when it has been
# tokenised. The second is larger, so that work which was begun is seldom thrown away.
PLANNED_SHARE = 0.6
_LATEST_SHARE = 0.9
# A pass takes this share of the time that callers wait, but is never shorter than the full pass divided by the second
# number.
_PASS_SHARE = 0.25
_SMALLEST_PASS = 8
_DEADLINE_WEIGHT = 0.05
# A shorter one counts as this: nobody shall make everybody's passes small by asking for the impossible.
_LEAST_DEADLINE_S = 0.5

BatchObserver = Callable[[int, int, float], None]  # items, tokens computed, seconds


class Batcher:
    """Queues jobs and feeds them to the model in passes under a token budget.

    While a pass runs, new jobs gather: load makes the passes fuller, and nothing ever waits for a timer. Once
    a full pass is waiting it is formed while the one before it still runs. A job whose callers have gone is
    dropped before it costs anything. Rewriting takes turns with scoring.

    Under overload, work that could not be done by its deadline is refused before it is queued, by the throughput that
    is measured while there is a queue; what was queued and can no longer be finished in time is dropped.

    Args:
        max_passes: passes that are formed at once; None: what suits the device.
    """

    def __init__(
        self,
        scorer: Scorer[Any],
        *,
        max_batch_tokens: int,
        max_queued_tokens: int,
        max_passes: int | None = None,
        on_batch: BatchObserver = lambda items, tokens, seconds: None,
    ) -> None:
        self._scorer = scorer
        self._worker = Worker(scorer)
        self._max_batch_tokens = max_batch_tokens
        self._max_queued_tokens = max_queued_tokens
        self._on_batch = on_batch
        self._waiting = JobQueue(scorer.planner, request_quantum=max_batch_tokens)
        self._rewrites: dict[int, tuple[Job, Any]] = {}
        self._changed = asyncio.Event()
        # on a GPU a pass is launched while the one before it runs; on a CPU a pass formed early only holds up others
        self._passes = max_passes or (1 if scorer.model.device.type == "cpu" else 2)
        self._threads = ThreadPool(self._passes, "redline-worker")
        self._feeding: asyncio.Task[None] | None = None
        self._is_rewriting = self._is_rewriting_next = False
        self._is_stopped = False
        self._slice_s = _LEAST_SLICE_S
        self._throughput = Throughput()
        self._usual_deadline_s = 60.0  # of a request, a moving average
        self._under_way = 0  # tokens of the passes that run
        self._busy_since = 0.0  # when the last pass ended, or when the model was last given work after a pause

    @property
    def queued_items(self) -> int:
        """Items that wait, for the model or for the end of their rewrite."""
        return self._waiting.items + len(self._rewrites)

    @property
    def queued_tokens(self) -> int:
        """Tokens of the items that wait for the model."""
        return self._waiting.tokens

    def start(self) -> None:
        """Start feeding the model; needs a running event loop."""
        self._feeding = asyncio.create_task(self._feed())

    async def stop(self, timeout_s: float = 2.0) -> None:
        """Stop feeding; jobs that still wait are cancelled, and so are those that come later.

        Args:
            timeout_s: how long a pass that runs is waited for.
        """
        self._is_stopped = True
        if self._feeding is not None:
            self._feeding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._feeding
        for job in self._waiting.everything():
            for waiter in job.waiters:
                waiter.cancel()
        if not self._threads.stop(timeout_s):
            logger.error("a forward pass did not end within %g s; the process ends without it", timeout_s)

    async def run(
        self,
        items: Sequence[EncodedItem],
        lengths: Sequence[int],
        *,
        wants_correction: bool = False,
        caller: Hashable = None,
        deadline_s: float = math.inf,
    ) -> list[JobResult]:
        """Put ``items`` through the model, all or none of them queued.

        Args:
            caller: who is asking; callers share the model evenly.
            deadline_s: seconds after which the answer is worth nothing.

        Raises:
            OverloadedError: the queue holds too many tokens or is too long for the deadline; also later, when it turns
                out that the deadline cannot be kept. A request larger than the whole queue is let in when the queue is
                empty.
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
        """``items`` in the queue; who leaves waits no longer, and what nobody waits for is dropped.

        Args:
            request: what they are part of, a request taking its turn with the caller's others; None: a new one.
            deadline: ``perf_counter`` seconds at which nobody waits for them any more.

        Raises:
            CancelledError: the batcher is stopped.
        """
        if self._is_stopped:  # a request that was being tokenised meanwhile: nothing would ever answer it
            raise asyncio.CancelledError
        request = object() if request is None else request
        entries = self._waiting.add(
            items, lengths, wants_correction=wants_correction, caller=caller, request=request, deadline=deadline
        )
        self._changed.set()
        try:
            yield [future for _, future in entries]
        finally:
            for job, future in entries:
                future.cancel()
                self._waiting.abandon(job)

    def admit(
        self, tokens: float, caller: Hashable, deadline_s: float, *, preparing: float = 0, share: float = _LATEST_SHARE
    ) -> None:
        """Let a request of ``tokens`` in, or refuse it. Raises OverloadedError as ``run`` does.

        Args:
            preparing: tokens, about, of requests that were let in and are not in the queue yet.
            share: of ``deadline_s``, within which it must be expected to be scored; the rest is for noise.
        """
        if self.queued_tokens and self.queued_tokens + tokens > self._max_queued_tokens:
            raise OverloadedError("too many tokens are waiting to be scored")
        ahead = preparing + self._under_way + self._waiting.tokens_ahead_of(caller, tokens)
        # with nothing in front it is tried, whatever the estimate: a wrong one can then correct itself
        if ahead and (wait_s := self._throughput.seconds_for(ahead + tokens)) > share * deadline_s:
            raise OverloadedError(
                f"this could be scored in about {wait_s:.1f} s, and it is wanted in {deadline_s:.1f} s",
                wait_s - share * deadline_s,
            )
        if deadline_s < math.inf:
            wanted_s = max(deadline_s, _LEAST_DEADLINE_S)
            self._usual_deadline_s += _DEADLINE_WEIGHT * (wanted_s - self._usual_deadline_s)

    async def _feed(self) -> None:
        lanes: set[asyncio.Task[None]] = set()
        is_idle = True
        try:
            while True:
                work = self._next_work(is_busy=bool(lanes)) if len(lanes) < self._passes else None
                if work is not None:
                    if not lanes:
                        self._busy_since = time.perf_counter() if is_idle else self._busy_since
                    is_idle = False
                    lanes.add(asyncio.create_task(work))
                    continue
                is_idle = is_idle or not lanes
                self._changed.clear()
                arrival = asyncio.create_task(self._changed.wait())
                await asyncio.wait({arrival, *lanes}, return_when=asyncio.FIRST_COMPLETED)
                arrival.cancel()
                lanes = {lane for lane in lanes if not lane.done()}
        finally:
            for lane in lanes:
                lane.cancel()

    def _next_work(self, *, is_busy: bool) -> Coroutine[Any, Any, None] | None:
        """What to do now, None to wait. While the model is busy only a pass that is full is worth forming."""
        self._drop_late()
        is_full = self._waiting.tokens >= self._max_batch_tokens
        can_score = self._waiting.has(wants_correction=False) and (is_full or not is_busy)
        can_rewrite = not self._is_rewriting and (
            bool(self._rewrites) or (self._waiting.has(wants_correction=True) and (is_full or not is_busy))
        )
        if can_rewrite and (self._is_rewriting_next or not can_score):
            self._is_rewriting, self._is_rewriting_next = True, False
            return self._rewrite()
        if can_score:
            self._is_rewriting_next = True
            return self._score(self._waiting.take(self._pass_tokens(), wants_correction=False))
        return None

    def _pass_tokens(self) -> int:
        """Tokens of the next pass: fewer where callers wait for less than some full passes.

        It goes by the deadlines that requests come with. What is left of them would make passes the smaller, and so
        the slower, the more there is to do.
        """
        tokens = self._throughput.tokens_per_s * self._usual_deadline_s * _PASS_SHARE
        least = self._max_batch_tokens // _SMALLEST_PASS
        return min(self._max_batch_tokens, max(least, int(tokens))) if tokens else self._max_batch_tokens

    async def _score(self, jobs: Sequence[Job]) -> None:
        """A pass; more than one where the model has to pad."""
        is_backlogged = self._waiting.items > 0
        under_way = sum(job.length for job in jobs)
        self._under_way += under_way
        try:
            for batch in self._scorer.planner.batches([job.item for job in jobs], self._max_batch_tokens):
                chosen = [jobs[i] for i in batch if jobs[i].is_wanted]
                if not chosen:
                    continue
                items = [job.item for job in chosen]
                forward = await self._threads.run(self._worker.forward, items)
                self._slice_s = forward.seconds
                self._observe(chosen, forward.seconds, is_backlogged=is_backlogged)
                for job, one in zip(chosen, forward.values, strict=True):
                    self._finish(job, one, None, forward.seconds)
        except Exception as error:  # a fault of ours must cost this round only, never the feeding task
            self._fail(jobs, error)
        finally:
            self._under_way -= under_way

    async def _rewrite(self) -> None:
        """Begin the rewrites there is room for, then write for about as long as the last scoring pass took."""
        jobs: list[Job] = []
        is_backlogged = self._waiting.items > 0
        try:
            room = _REWRITE_BATCHES * self._max_batch_tokens - self._worker.rewriting_tokens
            if self._waiting.has(wants_correction=True) and (room > 0 or not self._rewrites):
                jobs = self._waiting.take(self._max_batch_tokens, wants_correction=True, room=room)
                jobs = [job for job in jobs if job.is_wanted]
            for batch in self._scorer.planner.batches([job.item for job in jobs], self._max_batch_tokens):
                chosen = [jobs[i] for i in batch]
                items = [job.item for job in chosen]
                begun = await self._threads.run(self._worker.start_rewrites, items)
                self._observe(chosen, begun.seconds, is_backlogged=is_backlogged)
                for job, one in zip(chosen, begun.values, strict=True):
                    if isinstance(one, Exception):
                        self._finish(job, one, None, begun.seconds)
                    else:
                        self._rewrites[one[0]] = (job, one[1])
            for ticket in [t for t, (job, _) in self._rewrites.items() if not job.is_wanted]:
                del self._rewrites[ticket]
                await self._threads.run(self._worker.drop_rewrite, ticket)
            if self._rewrites:
                await self._write(max(_LEAST_SLICE_S, self._slice_s))
        except Exception as error:
            self._fail(jobs, error)
        finally:
            self._is_rewriting = False

    async def _write(self, seconds: float) -> None:
        written = await self._threads.run(self._worker.advance_rewrites, seconds)
        for ticket, correction in written.values:
            if ticket in self._rewrites:
                job, output = self._rewrites.pop(ticket)
                self._finish(job, output, correction, written.seconds)

    def _drop_late(self) -> None:
        """Refuse what waits and can no longer be finished in time; it would hold up what still can."""
        next_pass_s = self._throughput.seconds_for(min(self._waiting.tokens, self._max_batch_tokens))
        for job in self._waiting.expire(time.perf_counter() + next_pass_s):
            job.fail(DeadlineExceededError("this could not be scored in time: the service has too much to do"))

    def _observe(self, jobs: Sequence[Job], seconds: float, *, is_backlogged: bool) -> None:
        """A pass over ``jobs`` has ended. ``seconds``: for how long it had the model."""
        tokens = sum(job.length for job in jobs)
        self._on_batch(len(jobs), tokens, seconds)
        now = time.perf_counter()
        if is_backlogged or tokens >= self._max_batch_tokens // 2:
            self._throughput.observe(tokens, now - self._busy_since)
        self._busy_since = now

    def _finish(self, job: Job, output: Any, correction: Any, seconds: float) -> None:
        """``seconds``: for how long the model worked on the job's last pass."""
        self._waiting.forget(job)
        job.finish(output, correction, max(0.0, time.perf_counter() - job.queued_at - seconds), seconds)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        logger.error("a round failed", exc_info=error)
        for job in jobs:
            self._finish(job, error, None, 0.0)
