"""The items of a request through their rewrites: each at its own pace, all in the name of the one request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from typing import Any

from redline.wire import ItemError, ResponseItem, Usage
from redline.wire.correction import CorrectionResult, CorrectRequest
from redline_model.encoding.encoder import EncodedItem
from redline_model.reward_spec import RewardSpec
from redline_model.scorer import Scorer
from redline_service.correction.state import CorrectionState
from redline_service.errors import item_error
from redline_service.item_encoding import encoded
from redline_service.scheduling.batcher import Batcher
from redline_service.scheduling.jobs import JobResult, Timing
from redline_service.scheduling.thread_pool import ThreadPool


class CorrectionService:
    """Rewrites until every item's text stays the same, its rounds are used up, or nothing can follow.

    Args:
        threads: for what must not hold up the event loop.
        fingerprint: of the scorer's tokenizer.
    """

    def __init__(self, scorer: Scorer[Any], batcher: Batcher, threads: ThreadPool, fingerprint: str) -> None:
        self._scorer = scorer
        self._batcher = batcher
        self._threads = threads
        self._fingerprint = fingerprint

    async def run(
        self, request: CorrectRequest, spec: RewardSpec, *, caller: Hashable, deadline_s: float
    ) -> tuple[list[CorrectionResult], Usage, Timing]:
        """An answer an item.

        All first rounds are let in together or none is; the rounds that follow were let in with them.

        Raises:
            OverloadedError: see ``Batcher.run``.
        """
        started = time.perf_counter()
        deadline = started + deadline_s
        begun = await self._threads.run(self._begin_all, request, spec)
        tokenize_s = time.perf_counter() - started
        good = [one for one in begun if isinstance(one, CorrectionState)]
        firsts = [one.item for one in good if one.item is not None]
        lengths = [self._scorer.planner.length(item) for item in firsts]
        name = object()

        async def revise(revision: CorrectionState, future: asyncio.Future[JobResult]) -> None:
            await self._threads.run(revision.take, await future)
            while (item := revision.item) is not None:
                with self._batcher.queued(
                    [item],
                    [self._scorer.planner.length(item)],
                    wants_correction=revision.wants_rewrite,
                    caller=caller,
                    request=name,
                    deadline=deadline,
                ) as [next_round]:
                    result = await next_round
                await self._threads.run(revision.take, result)

        self._batcher.admit(sum(lengths), caller, deadline_s - tokenize_s)
        with self._batcher.queued(
            firsts, lengths, wants_correction=True, caller=caller, request=name, deadline=deadline
        ) as futures:
            try:
                async with asyncio.TaskGroup() as group:
                    for revision, future in zip(good, futures, strict=True):
                        group.create_task(revise(revision, future))
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
        if any(revision.item is not None and revision.failure is None for revision in good):
            raise asyncio.CancelledError  # the batcher was stopped: the group takes its tasks' cancellation for an end
        answers = await self._threads.run(self._answer_all, request, begun)
        passes = [item for revision in good for item in revision.passes]
        usage = Usage(
            scored_tokens=sum(len(item.target_ids) for item in passes),
            batch_tokens=sum(map(self._scorer.planner.length, passes)),
        )
        queue_s = max((revision.queued_s for revision in good), default=0.0)
        inference_s = max((revision.inference_s for revision in good), default=0.0)
        return answers, usage, Timing(tokenize_s, queue_s, inference_s)

    def _begin_all(self, request: CorrectRequest, spec: RewardSpec) -> list[CorrectionState | Exception]:
        def score(output: Any) -> float:
            return self._scorer.to_rewards(output, spec).score

        begun: list[CorrectionState | Exception] = []
        for item in request.items:
            first = self._encode(item, request)
            if isinstance(first, EncodedItem):
                encode = self._encoder_of(item, request)
                begun.append(CorrectionState(first, request.options, encode=encode, score=score))
            else:
                begun.append(first)
        return begun

    def _encode(self, item: ResponseItem, request: CorrectRequest) -> EncodedItem | Exception:
        return encoded(item, request.options.on_too_long, self._scorer.encoder, self._fingerprint)

    def _encoder_of(
        self, item: ResponseItem, request: CorrectRequest
    ) -> Callable[[str, bool], EncodedItem | Exception]:
        """Other responses to the prompt of ``item``."""

        def encode(text: str, is_finished: bool) -> EncodedItem | Exception:
            other = item.model_copy(update={"response": text, "response_ids": None, "finished": is_finished})
            return self._encode(other, request)

        return encode

    def _answer_all(self, request: CorrectRequest, begun: list[CorrectionState | Exception]) -> list[CorrectionResult]:
        def answer(id: str | None, one: CorrectionState | Exception) -> CorrectionResult:
            if isinstance(one, Exception):
                return ItemError(id=id, error=item_error(one))
            return one.answer(id) if one.failure is None else ItemError(id=id, error=item_error(one.failure))

        return [answer(item.id, one) for item, one in zip(request.items, begun, strict=True)]
