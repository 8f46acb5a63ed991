"""The jobs that wait: fair between callers, a prompt's responses together, and each item once."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from typing import Any

from redline_model.prefixes import Prefix
from redline_model.scorers import Scorer
from redline_model.template import EncodedItem
from redline_service.fair_queue import FairQueue
from redline_service.jobs import Job, Outcome


class WaitingRoom:
    """Jobs between admission and the model. Lives on the event loop.

    A job taken out of turn (its prompt was at hand) stays in the queue's books as a shell, and is charged when its
    turn comes; an abandoned one costs nobody anything. A job that several callers wait for stands in the queue
    of each, and whose turn comes first takes it.
    """

    def __init__(self, scorer: Scorer[Any]) -> None:
        self._scorer = scorer
        self._queues: dict[bool, FairQueue[Job]] = {False: FairQueue(), True: FairQueue()}
        self._siblings: dict[tuple[bool, Prefix], dict[Job, None]] = {}
        self._unfinished: dict[Hashable, Job] = {}
        self._tokens_of: dict[Hashable, int] = {}
        self._callers: dict[Job, Hashable] = {}
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
    ) -> list[tuple[Job, asyncio.Future[Outcome]]]:
        """Queue ``items`` of one request; an item that is on its way already is joined, not queued again."""
        loop = asyncio.get_running_loop()
        added = []
        for item, length in zip(items, lengths, strict=True):
            job = Job(item, length, self._scorer.prefix(item), wants_correction)
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
            job.waiters.append(loop.create_future())
            added.append((job, job.waiters[-1]))
        return added

    def has(self, *, wants_correction: bool) -> bool:
        """Whether a job of that kind waits."""
        queue = self._queues[wants_correction]
        while queue and not queue.peek().is_queued:
            shell = queue.peek()
            debt, shell.debt = shell.debt, 0
            queue.pop(debt)
        return bool(queue)

    def tokens_ahead_of(self, caller: Hashable, tokens: int) -> int:
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

        def fits(job: Job) -> bool:
            if not taken:
                return True
            is_room = room is None or length + job.length <= room
            return is_room and cost + self._scorer.cost(job.item, beside) <= max_tokens

        while self.has(wants_correction=wants_correction) and fits(self._queues[wants_correction].peek()):
            first = self._queues[wants_correction].peek()
            self._queues[wants_correction].pop(self._scorer.cost(first.item, beside))
            # its prompt is at hand now: the other responses to it come cheap
            siblings = () if first.prefix is None else tuple(self._siblings[wants_correction, first.prefix])
            for job in (first, *siblings):
                if not job.is_queued:
                    continue
                if not fits(job):
                    break
                taken.append(job)
                own_cost = self._scorer.cost(job.item, beside)
                job.debt = 0 if job is first else own_cost
                cost += own_cost
                length += job.length
                if job.prefix is not None:
                    beside.add(job.prefix)
                self._leave(job)
        return taken

    def abandon(self, job: Job) -> None:
        """Somebody who waited has gone; if nobody is left the job leaves the queue, and others may come in."""
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
