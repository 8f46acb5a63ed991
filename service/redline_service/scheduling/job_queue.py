"""The queue of jobs: fair between callers, responses to one prompt together, equal items only once."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable, Hashable, Sequence
from itertools import count

from redline_model.encoding.items import EncodedItem
from redline_model.inference.planner import Planner
from redline_model.inference.prefix_cache import Prefix
from redline_service.scheduling.fair_queue import FairQueue
from redline_service.scheduling.jobs import Job, JobResult

# This share of a pass's token budget is filled in turn, however long the jobs are.
_FREE_SHARE = 16
# Beyond that share, another caller's job may make a pass at most this many times as long.
_MAX_GROWTH = 3


class JobQueue:
    """Jobs that wait for the model. Not thread-safe: it belongs to the event loop.

    A job may be batched out of turn, because its prompt is already part of the batch. Its entry then stays in the fair
    queue as a placeholder, and its caller is charged when the placeholder's turn comes. Nobody is charged for a job
    that was removed because no caller waited for it any more. A job that several callers wait for has an entry for each
    of them and is batched at the first one's turn.

    Among the callers whose turn comes within one pass, the one with the shortest job goes first, and a much longer job
    of another caller is not added to its batch: no caller waits for a pass many times as long as its own work. Every
    caller is still charged for its jobs, so that the shares are even over several passes.
    """

    def __init__(self, planner: Planner, request_quantum: float = 0.0) -> None:
        self._planner = planner
        self._queues: dict[bool, FairQueue[Job]] = {
            wants_correction: FairQueue(request_quantum) for wants_correction in (False, True)
        }
        self._jobs_of_prefix: dict[tuple[bool, Prefix], dict[Job, None]] = {}
        self._unfinished: dict[Hashable, Job] = {}  # by key
        self._queued_tokens_of: dict[Hashable, int] = {}  # by caller
        self._caller_of: dict[Job, Hashable] = {}
        self._deadlines: list[tuple[float, int]] = []  # a heap of deadlines and their ids
        self._job_of_deadline_id: dict[int, Job] = {}  # an id that is missing here is outdated
        self._deadline_id_of: dict[Job, int] = {}  # of each queued job
        self._deadline_ids = count()
        self.tokens = 0
        self.items = 0

    def add(
        self,
        items: Sequence[EncodedItem],
        lengths: Sequence[int],
        *,
        wants_correction: bool,
        caller: Hashable,
        request: Hashable,
        deadline: float,
    ) -> list[tuple[Job, asyncio.Future[JobResult]]]:
        """Queue the items of one request; an item equal to that of an unfinished job joins that job."""
        loop = asyncio.get_running_loop()
        added = []
        for item, length in zip(items, lengths, strict=True):
            job = Job(item, length, self._planner.prefix(item), wants_correction)
            existing = self._unfinished.get(job.key)
            if existing is not None and existing.has_waiters:
                job = existing
            else:
                self._unfinished[job.key] = job
                if job.prefix is not None:
                    self._jobs_of_prefix.setdefault((wants_correction, job.prefix), {})[job] = None
                self._caller_of[job] = caller
                self._queued_tokens_of[caller] = self._queued_tokens_of.get(caller, 0) + length
                self.tokens += length
                self.items += 1
            if job.is_queued:
                self._queues[wants_correction].push(job, caller=caller, request=request)
            if job.is_queued and (not job.waiters or deadline > job.deadline):
                self._set_deadline(job, deadline)
            job.add_waiter(loop.create_future())
            added.append((job, job.waiters[-1]))
        return added

    def has_job(self, *, wants_correction: bool) -> bool:
        """Whether a job of this kind is queued. Placeholders whose turn has come are charged first."""
        queue = self._queues[wants_correction]
        self._charge_due_placeholders(queue)
        return bool(queue)

    def tokens_ahead_of(self, caller: Hashable, tokens: float) -> float:
        """Tokens that would be scored before ``tokens`` more of ``caller``'s, if all callers get an even share."""
        own = self._queued_tokens_of.get(caller, 0)
        others = (queued for other, queued in self._queued_tokens_of.items() if other != caller)
        return own + sum(min(queued, own + tokens) for queued in others)

    def next_batch(self, max_tokens: int, *, wants_correction: bool, max_length: int | None = None) -> list[Job]:
        """Remove the next jobs to be run together, at least one.

        Args:
            max_tokens: for the whole batch, each prefix counted once.
            max_length: upper bound for the sum of the jobs' ``length``; the first job may exceed it.
        """
        batch: list[Job] = []
        prefixes: set[Prefix] = set()  # of the jobs in the batch
        cost = length = 0
        leader: tuple[Hashable] | None = None  # the caller of the first job, in a tuple because it may be None

        def fits(job: Job) -> bool:
            if not batch:
                return True
            if max_length is not None and length + job.length > max_length:
                return False
            new_cost = cost + self._planner.cost(job.item, prefixes)
            is_short = leader == (self._caller_of[job],) or new_cost <= max(
                _MAX_GROWTH * cost, max_tokens // _FREE_SHARE
            )
            return is_short and new_cost <= max_tokens

        queue = self._queues[wants_correction]
        while (
            caller := self._next_caller(queue, fits) if leader else self._first_caller(queue, max_tokens)
        ) is not None:
            first = queue.peek(caller[0])
            leader = leader or caller
            queue.pop(self._planner.cost(first.item, prefixes), caller[0])
            # the batch computes its prompt now, so other responses to that prompt cost little more
            same_prompt = () if first.prefix is None else tuple(self._jobs_of_prefix[wants_correction, first.prefix])
            for job in (first, *same_prompt):
                if not job.is_queued:
                    continue
                if not fits(job):
                    break
                batch.append(job)
                added_cost = self._planner.cost(job.item, prefixes)
                job.deferred_cost = 0 if job is first else added_cost
                cost += added_cost
                length += job.length
                if job.prefix is not None:
                    prefixes.add(job.prefix)
                self._mark_dequeued(job)
        return batch

    def remove_expired(self, before: float) -> list[Job]:
        """Remove and return every queued job whose deadline is before ``before`` (``perf_counter`` seconds)."""
        expired: list[Job] = []
        while self._deadlines and self._deadlines[0][0] < before:
            job = self._job_of_deadline_id.get(heapq.heappop(self._deadlines)[1])
            if job is not None:
                self._mark_dequeued(job)
                self.mark_finished(job)
                expired.append(job)
        return expired

    def _set_deadline(self, job: Job, deadline: float) -> None:
        job.deadline = deadline
        self._clear_deadline(job)
        if deadline < math.inf:
            self._deadline_id_of[job] = deadline_id = next(self._deadline_ids)
            self._job_of_deadline_id[deadline_id] = job
            heapq.heappush(self._deadlines, (deadline, deadline_id))

    def _clear_deadline(self, job: Job) -> None:
        if job in self._deadline_id_of:
            del self._job_of_deadline_id[self._deadline_id_of.pop(job)]

    def _first_caller(self, queue: FairQueue[Job], max_tokens: int) -> tuple[Hashable] | None:
        """The caller whose job begins a pass of ``max_tokens``; None if no job is queued."""
        self._charge_due_placeholders(queue)
        if not queue:
            return None
        first = next(queue.callers())
        lengths = {first: queue.peek(first).length}
        for caller in queue.callers_due(max_tokens):
            if (job := queue.peek(caller)).is_queued:
                lengths[caller] = job.length
        shortest = min(lengths, key=lambda caller: lengths[caller])
        return (shortest if lengths[shortest] * _MAX_GROWTH <= lengths[first] else first,)

    def _next_caller(self, queue: FairQueue[Job], fits: Callable[[Job], bool]) -> tuple[Hashable] | None:
        """The first caller in turn whose next job fits; None if there is none."""
        self._charge_due_placeholders(queue)
        if not queue:
            return None
        first = next(queue.callers())
        if fits(queue.peek(first)):
            return (first,)
        for caller in list(queue.callers()):
            while caller in queue and not queue.peek(caller).is_queued:
                self._charge_placeholder(queue, caller)
            if caller in queue and fits(queue.peek(caller)):
                return (caller,)
        return None

    def _charge_due_placeholders(self, queue: FairQueue[Job]) -> None:
        """Remove and charge placeholders until a queued job is next in turn, or the queue is empty."""
        while queue and not queue.peek().is_queued:
            self._charge_placeholder(queue, next(queue.callers()))

    def _charge_placeholder(self, queue: FairQueue[Job], caller: Hashable) -> None:
        """Remove the next entry of ``caller``, a job that is queued no longer, and charge its deferred cost once."""
        job = queue.peek(caller)
        cost, job.deferred_cost = job.deferred_cost, 0
        queue.pop(cost, caller)

    def remove_waiter(self, job: Job) -> None:
        """A caller waits no longer. If it was the last one, the job is removed and frees its place in the queue."""
        job.active_waiters -= 1
        if not job.has_waiters:
            if job.is_queued:
                self._mark_dequeued(job)
            self.mark_finished(job)

    def mark_finished(self, job: Job) -> None:
        """An equal item that is added from now on becomes a new job."""
        if self._unfinished.get(job.key) is job:
            del self._unfinished[job.key]

    def unfinished_jobs(self) -> list[Job]:
        """All jobs that are queued or running."""
        return list(self._unfinished.values())

    def _mark_dequeued(self, job: Job) -> None:
        """Count ``job`` as queued no longer. Its entries in the fair queue stay as placeholders."""
        job.is_queued = False
        self._clear_deadline(job)
        self.tokens -= job.length
        self.items -= 1
        caller = self._caller_of.pop(job)
        self._queued_tokens_of[caller] -= job.length
        if not self._queued_tokens_of[caller]:
            del self._queued_tokens_of[caller]
        if job.prefix is not None:
            same_prompt = self._jobs_of_prefix[job.wants_correction, job.prefix]
            del same_prompt[job]
            if not same_prompt:
                del self._jobs_of_prefix[job.wants_correction, job.prefix]
