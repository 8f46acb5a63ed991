"""From many requests to full passes through the model. Knows asyncio, but no tensors and no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Coroutine, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from redline.wire import ErrorCode
from redline_model.scorers import Scorer
from redline_model.template import EncodedItem
from redline_service.errors import RequestError
from redline_service.jobs import Job, Outcome
from redline_service.waiting import WaitingRoom
from redline_service.worker import Worker

logger = logging.getLogger("redline.service")

# Rewrites under way hold keys and values; together at most this many batches' worth of tokens.
_REWRITE_BATCHES = 4
# A rewrite's writing is interrupted for scoring after at least this long.
_LEAST_SLICE_S = 0.02

BatchObserver = Callable[[int, int, float], None]  # items, tokens computed, seconds


class Batcher:
    """Queues jobs and feeds them to the model in passes under a token budget.

    While a pass runs, new jobs gather: load makes the passes fuller, and nothing ever waits for a timer. Once
    a full pass is waiting it is formed while the one before it still runs. A job whose callers have gone is
    dropped before it costs anything. Rewriting takes turns with scoring.
    """

    def __init__(
        self,
        scorer: Scorer[Any],
        *,
        max_batch_tokens: int,
        max_queued_tokens: int,
        on_batch: BatchObserver = lambda items, tokens, seconds: None,
    ) -> None:
        self._scorer = scorer
        self._worker = Worker(scorer)
        self._max_batch_tokens = max_batch_tokens
        self._max_queued_tokens = max_queued_tokens
        self._on_batch = on_batch
        self._waiting = WaitingRoom(scorer)
        self._rewrites: dict[int, tuple[Job, Any]] = {}
        self._changed = asyncio.Event()
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="redline-worker")
        self._feeding: asyncio.Task[None] | None = None
        self._is_rewriting = self._is_rewriting_next = False
        self._is_stopped = False
        self._slice_s = _LEAST_SLICE_S
        self._tokens_per_s = self._unobserved_s = 0.0

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

    async def stop(self) -> None:
        """Stop feeding; jobs that still wait are cancelled, and so are those that come later."""
        self._is_stopped = True
        if self._feeding is not None:
            self._feeding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._feeding
        for job in self._waiting.everything():
            for waiter in job.waiters:
                waiter.cancel()
        self._executor.shutdown(wait=True)

    async def run(
        self,
        items: Sequence[EncodedItem],
        lengths: Sequence[int],
        *,
        wants_correction: bool = False,
        caller: Hashable = None,
        deadline_s: float = math.inf,
    ) -> list[Outcome]:
        """Put ``items`` through the model, all or none of them queued.

        Args:
            caller: who is asking; callers share the model evenly.
            deadline_s: seconds after which the answer is worth nothing.

        Raises:
            RequestError: OVERLOADED, the queue holds too many tokens or is too long for the deadline. A request
                larger than the whole queue is let in when the queue is empty.
        """
        self.admit(sum(lengths), caller, deadline_s)
        with self.queued(items, lengths, wants_correction=wants_correction, caller=caller) as futures:
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
    ) -> Iterator[list[asyncio.Future[Outcome]]]:
        """``items`` in the queue; who leaves waits no longer, and what nobody waits for is dropped.

        Args:
            request: what they are part of, a request taking its turn with the caller's others; None: a new one.

        Raises:
            CancelledError: the batcher is stopped.
        """
        if self._is_stopped:  # a request that was being tokenised meanwhile: nothing would ever answer it
            raise asyncio.CancelledError
        request = object() if request is None else request
        entries = self._waiting.add(items, lengths, wants_correction=wants_correction, caller=caller, request=request)
        self._changed.set()
        try:
            yield [future for _, future in entries]
        finally:
            for job, future in entries:
                future.cancel()
                self._waiting.abandon(job)

    def admit(self, tokens: int, caller: Hashable, deadline_s: float) -> None:
        """Let a request of ``tokens`` in, or refuse it. Raises RequestError as ``run`` does."""
        if self.queued_tokens and self.queued_tokens + tokens > self._max_queued_tokens:
            raise RequestError(ErrorCode.OVERLOADED, "too many tokens are waiting to be scored", retry_after_s=1)
        ahead = self._waiting.tokens_ahead_of(caller, tokens)
        # with nothing in front it is tried, whatever the estimate: a wrong one can then correct itself
        if ahead and self._tokens_per_s:
            wait_s = (ahead + tokens) / self._tokens_per_s
            if wait_s > deadline_s:
                raise RequestError(
                    ErrorCode.OVERLOADED,
                    f"this could be scored in about {wait_s:.0f} s, and it is wanted in {deadline_s:.0f} s",
                    retry_after_s=max(1, min(60, math.ceil(wait_s - deadline_s))),
                )

    async def _feed(self) -> None:
        lanes: set[asyncio.Task[None]] = set()
        try:
            while True:
                work = self._next_work(is_busy=bool(lanes)) if len(lanes) < 2 else None
                if work is not None:
                    lanes.add(asyncio.create_task(work))
                    continue
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
            return self._score(self._waiting.take(self._max_batch_tokens, wants_correction=False))
        return None

    async def _score(self, jobs: Sequence[Job]) -> None:
        """A pass; more than one where the model has to pad."""
        loop = asyncio.get_running_loop()
        try:
            for batch in self._scorer.batches([job.item for job in jobs], self._max_batch_tokens):
                chosen = [jobs[i] for i in batch if jobs[i].is_wanted]
                if not chosen:
                    continue
                items = [job.item for job in chosen]
                measured = await loop.run_in_executor(self._executor, self._worker.measure, items)
                self._slice_s = measured.seconds
                self._observe(chosen, measured.seconds)
                for job, one in zip(chosen, measured.values, strict=True):
                    self._finish(job, one, None, measured.seconds)
        except Exception as error:  # a fault of ours must cost this round only, never the feeding task
            self._fail(jobs, error)

    async def _rewrite(self) -> None:
        """Begin the rewrites there is room for, then write for about as long as the last scoring pass took."""
        loop = asyncio.get_running_loop()
        jobs: list[Job] = []
        try:
            room = _REWRITE_BATCHES * self._max_batch_tokens - self._worker.rewriting_tokens
            if self._waiting.has(wants_correction=True) and (room > 0 or not self._rewrites):
                jobs = self._waiting.take(self._max_batch_tokens, wants_correction=True, room=room)
                jobs = [job for job in jobs if job.is_wanted]
            for batch in self._scorer.batches([job.item for job in jobs], self._max_batch_tokens):
                chosen = [jobs[i] for i in batch]
                items = [job.item for job in chosen]
                begun = await loop.run_in_executor(self._executor, self._worker.start_rewrites, items)
                self._observe(chosen, begun.seconds)
                for job, one in zip(chosen, begun.values, strict=True):
                    if isinstance(one, Exception):
                        self._finish(job, one, None, begun.seconds)
                    else:
                        self._rewrites[one[0]] = (job, one[1])
            for ticket in [t for t, (job, _) in self._rewrites.items() if not job.is_wanted]:
                del self._rewrites[ticket]
                await loop.run_in_executor(self._executor, self._worker.drop_rewrite, ticket)
            if self._rewrites:
                await self._write(max(_LEAST_SLICE_S, self._slice_s))
        except Exception as error:
            self._fail(jobs, error)
        finally:
            self._is_rewriting = False

    async def _write(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        written = await loop.run_in_executor(self._executor, self._worker.advance_rewrites, seconds)
        self._unobserved_s += written.seconds
        for ticket, correction in written.values:
            if ticket in self._rewrites:
                job, measured = self._rewrites.pop(ticket)
                self._finish(job, measured, correction, written.seconds)

    def _observe(self, jobs: Sequence[Job], seconds: float) -> None:
        tokens = sum(job.length for job in jobs)
        self._on_batch(len(jobs), tokens, seconds)
        # passes that are far from full say nothing of how fast a queue would shrink
        if tokens >= self._max_batch_tokens // 2 and seconds > 0:
            rate = tokens / (seconds + self._unobserved_s)  # writing takes its turns, too
            self._unobserved_s = 0.0
            self._tokens_per_s = rate if not self._tokens_per_s else 0.8 * self._tokens_per_s + 0.2 * rate

    def _finish(self, job: Job, measured: Any, correction: Any, seconds: float) -> None:
        """``seconds``: for how long the model worked on the job's last pass."""
        self._waiting.forget(job)
        job.finish(measured, correction, max(0.0, time.perf_counter() - job.queued_at - seconds), seconds)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        logger.error("a round failed", exc_info=error)
        for job in jobs:
            self._finish(job, error, None, 0.0)
