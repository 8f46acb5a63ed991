"""The jobs that wait: fair between callers, a prompt's responses together, and each item once."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable, Hashable, Sequence
from itertools import count

from redline_model.encoding.encoder import EncodedItem
from redline_model.inference.planner import Planner
from redline_model.inference.prefix_cache import Prefix
from redline_service.scheduling.fair_queue import FairQueue
from redline_service.scheduling.jobs import Job, JobResult

# Of a pass's budget: as many tokens are taken from whoever is next in turn.
_FREE_SHARE = 16
# Beyond them another caller's job may make a pass this many times as long.
_GROWTH = 3


class JobQueue:
    """Jobs between admission and the model. Lives on the event loop.

    A job taken out of turn (its prompt was at hand) stays in the queue's books as a shell, and is charged when its
    turn comes; an abandoned one costs nobody anything. A job that several callers wait for stands in the queue
    of each, and whose turn comes first takes it.

    Among the callers whose turn comes within a pass the one with the shortest job goes first, and another caller's much
    longer job is not taken along: nobody's answer waits for a pass many times as long as its own work. Everybody is
    still charged, so that over some passes the shares are even.
    """

    def __init__(self, planner: Planner, request_quantum: float = 0.0) -> None:
        self._planner = planner
        self._queues: dict[bool, FairQueue[Job]] = {
            wants_correction: FairQueue(request_quantum) for wants_correction in (False, True)
        }
        self._siblings: dict[tuple[bool, Prefix], dict[Job, None]] = {}
        self._unfinished: dict[Hashable, Job] = {}
        self._tokens_of: dict[Hashable, int] = {}
        self._callers: dict[Job, Hashable] = {}
        self._deadlines: list[tuple[float, int]] = []  # a heap of deadlines and the numbers of their entries
        self._expiring: dict[int, Job] = {}  # entries that still count; of each queued job the last
        self._entry_of: dict[Job, int] = {}
        self._ticks = count()
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
        """Queue ``items`` of one request; an item that is on its way already is joined, not queued again."""
        loop = asyncio.get_running_loop()
        added = []
        for item, length in zip(items, lengths, strict=True):
            job = Job(item, length, self._planner.prefix(item), wants_correction)
            known = self._unfinished.get(job.key)
            if known is not None and known.is_wanted:
                job = known
            else:
                self._unfinished[job.key] = job
                if job.prefix is not None:
                    self._siblings.setdefault((wants_correction, job.prefix), {})[job] = None
                self._callers[job] = caller
                self._tokens_of[caller] = self._tokens_of.get(caller, 0) + length
                self.tokens += length
                self.items += 1
            if job.is_queued:
                self._queues[wants_correction].push(job, caller=caller, request=request)
            if job.is_queued and (not job.waiters or deadline > job.deadline):
                self._set_deadline(job, deadline)
            job.join(loop.create_future())
            added.append((job, job.waiters[-1]))
        return added

    def has(self, *, wants_correction: bool) -> bool:
        """Whether a job of that kind waits."""
        return self._has_job(self._queues[wants_correction])

    def tokens_ahead_of(self, caller: Hashable, tokens: float) -> float:
        """Tokens that would be scored before ``tokens`` more of ``caller``'s, everybody getting an even share."""
        own = self._tokens_of.get(caller, 0)
        return own + sum(min(theirs, own + tokens) for other, theirs in self._tokens_of.items() if other != caller)

    def take(self, max_tokens: int, *, wants_correction: bool, room: int | None = None) -> list[Job]:
        """The next jobs to go through the model together, counted with each prefix once; at least one.

        Args:
            room: what the jobs' ``length`` may add up to, beyond the first.
        """
        taken: list[Job] = []
        beside: set[Prefix] = set()
        cost = length = 0
        leader: tuple[Hashable] | None = None  # the caller whose turn it is

        def fits(job: Job) -> bool:
            if not taken:
                return True
            if room is not None and length + job.length > room:
                return False
            together = cost + self._planner.cost(job.item, beside)
            is_short = leader == (self._callers[job],) or together <= max(_GROWTH * cost, max_tokens // _FREE_SHARE)
            return is_short and together <= max_tokens

        queue = self._queues[wants_correction]
        while (caller := self._next_caller(queue, fits) if leader else self._leader(queue, max_tokens)) is not None:
            first = queue.peek(caller[0])
            leader = leader or caller
            queue.pop(self._planner.cost(first.item, beside), caller[0])
            # its prompt is at hand now: the other responses to it come cheap
            siblings = () if first.prefix is None else tuple(self._siblings[wants_correction, first.prefix])
            for job in (first, *siblings):
                if not job.is_queued:
                    continue
                if not fits(job):
                    break
                taken.append(job)
                own_cost = self._planner.cost(job.item, beside)
                job.debt = 0 if job is first else own_cost
                cost += own_cost
                length += job.length
                if job.prefix is not None:
                    beside.add(job.prefix)
                self._leave(job)
        return taken

    def expire(self, before: float) -> list[Job]:
        """Take out every queued job that nobody waits for any more at ``before`` (``perf_counter`` seconds)."""
        expired: list[Job] = []
        while self._deadlines and self._deadlines[0][0] < before:
            job = self._expiring.get(heapq.heappop(self._deadlines)[1])
            if job is not None:
                self._leave(job)
                self.forget(job)
                expired.append(job)
        return expired

    def _set_deadline(self, job: Job, deadline: float) -> None:
        job.deadline = deadline
        self._drop_deadline(job)
        if deadline < math.inf:
            self._entry_of[job] = entry = next(self._ticks)
            self._expiring[entry] = job
            heapq.heappush(self._deadlines, (deadline, entry))

    def _drop_deadline(self, job: Job) -> None:
        if job in self._entry_of:
            del self._expiring[self._entry_of.pop(job)]

    def _leader(self, queue: FairQueue[Job], max_tokens: int) -> tuple[Hashable] | None:
        """Whose job a pass of ``max_tokens`` begins with; None if nothing waits."""
        if not self._has_job(queue):
            return None
        first = next(queue.callers())
        lengths = {first: queue.peek(first).length}
        for caller in queue.callers_due(max_tokens):
            if (job := queue.peek(caller)).is_queued:
                lengths[caller] = job.length
        shortest = min(lengths, key=lambda caller: lengths[caller])
        return (shortest if lengths[shortest] * _GROWTH <= lengths[first] else first,)

    def _next_caller(self, queue: FairQueue[Job], fits: Callable[[Job], bool]) -> tuple[Hashable] | None:
        """The first caller in turn whose next job fits; None if there is none."""
        if not self._has_job(queue):
            return None
        first = next(queue.callers())
        if fits(queue.peek(first)):
            return (first,)
        for caller in list(queue.callers()):
            while caller in queue and not queue.peek(caller).is_queued:
                self._pop_shell(queue, caller)
            if caller in queue and fits(queue.peek(caller)):
                return (caller,)
        return None

    def _has_job(self, queue: FairQueue[Job]) -> bool:
        """Whether a job waits in ``queue``; afterwards one stands first in turn."""
        while queue and not queue.peek().is_queued:
            self._pop_shell(queue, next(queue.callers()))
        return bool(queue)

    def _pop_shell(self, queue: FairQueue[Job], caller: Hashable) -> None:
        """Charge a job that was taken out of turn, now that its turn has come."""
        shell = queue.peek(caller)
        debt, shell.debt = shell.debt, 0
        queue.pop(debt, caller)

    def abandon(self, job: Job) -> None:
        """Somebody who waited has gone; if nobody is left the job leaves the queue, and others may come in."""
        job.waiting -= 1
        if not job.is_wanted:
            if job.is_queued:
                self._leave(job)
            self.forget(job)

    def forget(self, job: Job) -> None:
        """The job is finished: an equal item that comes now is a new one."""
        if self._unfinished.get(job.key) is job:
            del self._unfinished[job.key]

    def everything(self) -> list[Job]:
        """All that is unfinished."""
        return list(self._unfinished.values())

    def _leave(self, job: Job) -> None:
        job.is_queued = False
        self._drop_deadline(job)
        self.tokens -= job.length
        self.items -= 1
        caller = self._callers.pop(job)
        self._tokens_of[caller] -= job.length
        if not self._tokens_of[caller]:
            del self._tokens_of[caller]
        if job.prefix is not None:
            siblings = self._siblings[job.wants_correction, job.prefix]
            del siblings[job]
            if not siblings:
                del self._siblings[job.wants_correction, job.prefix]
