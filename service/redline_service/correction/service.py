"""Runs ``/v1/correct``: every item of a request is rewritten in rounds of its own, all as parts of one request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from typing import Any

from redline.wire import ItemError, ResponseItem, Usage
from redline.wire.correction import CorrectionResult, CorrectRequest
from redline_model.correction.rewriter import Correction
from redline_model.encoding.items import EncodedItem
from redline_model.reward_spec import RewardSpec
from redline_model.scorer import Scorer
from redline_service.correction.state import CorrectionState
from redline_service.errors import item_error
from redline_service.item_encoding import encode_item
from redline_service.scheduling.batcher import Batcher
from redline_service.scheduling.jobs import JobResult, Timing
from redline_service.scheduling.thread_pool import ThreadPool


class CorrectionService:
    """Rewrites each item until its text stays the same, ``max_rounds`` is reached, or it cannot be rewritten again.

    Args:
        threads: for work that would block the event loop.
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
        """One result per item, in order.

        The first rounds of all items are accepted together or not at all. Later rounds are not checked again.

        Raises:
            OverloadedError: see ``Batcher.run``.
        """
        started = time.perf_counter()
        deadline = started + deadline_s
        states = await self._threads.run(self._start_states, request, spec)
        tokenize_s = time.perf_counter() - started
        valid_states = [state for state in states if isinstance(state, CorrectionState)]
        first_items = [state.next_item for state in valid_states if state.next_item is not None]
        lengths = [self._scorer.planner.length(item) for item in first_items]
        request_key = object()

        async def run_rounds(state: CorrectionState, future: asyncio.Future[JobResult]) -> None:
            await self._threads.run(state.add_result, await future)
            while (item := state.next_item) is not None:
                with self._batcher.queued(
                    [item],
                    [self._scorer.planner.length(item)],
                    wants_correction=state.wants_rewrite or spec.needs_correction,
                    caller=caller,
                    request=request_key,
                    deadline=deadline,
                ) as [next_round]:
                    result = await next_round
                await self._threads.run(state.add_result, result)

        self._batcher.admit(sum(lengths), caller, deadline_s - tokenize_s)
        with self._batcher.queued(
            first_items, lengths, wants_correction=True, caller=caller, request=request_key, deadline=deadline
        ) as futures:
            try:
                async with asyncio.TaskGroup() as group:
                    for state, future in zip(valid_states, futures, strict=True):
                        group.create_task(run_rounds(state, future))
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
        if any(state.next_item is not None and state.failure is None for state in valid_states):
            # the batcher was stopped; the task group does not report that its tasks were cancelled
            raise asyncio.CancelledError
        results = await self._threads.run(self._results, request, states)
        items_run = [item for state in valid_states for item in state.items_run]
        usage = Usage(
            scored_tokens=sum(len(item.target_ids) for item in items_run),
            batch_tokens=sum(map(self._scorer.planner.length, items_run)),
        )
        queue_s = max((state.queued_s for state in valid_states), default=0.0)
        inference_s = max((state.inference_s for state in valid_states), default=0.0)
        return results, usage, Timing(tokenize_s, queue_s, inference_s)

    def _start_states(self, request: CorrectRequest, spec: RewardSpec) -> list[CorrectionState | Exception]:
        """The state of each item, or its error."""

        def score(output: Any, correction: Correction | None) -> float:
            return self._scorer.to_rewards(output, spec, correction).score

        states: list[CorrectionState | Exception] = []
        for item in request.items:
            first_item = self._encode(item, request)
            if isinstance(first_item, EncodedItem):
                encode = self._encoder_of(item, request)
                states.append(CorrectionState(first_item, request.options, encode=encode, score=score))
            else:
                states.append(first_item)
        return states

    def _encode(self, item: ResponseItem, request: CorrectRequest) -> EncodedItem | Exception:
        return encode_item(item, request.options.on_too_long, self._scorer.encoder, self._fingerprint)

    def _encoder_of(
        self, item: ResponseItem, request: CorrectRequest
    ) -> Callable[[str, bool], EncodedItem | Exception]:
        """A function that encodes other responses to the prompt of ``item``."""

        def encode(text: str, is_finished: bool) -> EncodedItem | Exception:
            rewritten = item.model_copy(update={"response": text, "response_ids": None, "finished": is_finished})
            return self._encode(rewritten, request)

        return encode

    def _results(self, request: CorrectRequest, states: list[CorrectionState | Exception]) -> list[CorrectionResult]:
        def result(id: str | None, state: CorrectionState | Exception) -> CorrectionResult:
            if isinstance(state, Exception):
                return ItemError(id=id, error=item_error(state))
            if state.failure is not None:
                return ItemError(id=id, error=item_error(state.failure))
            return state.to_wire(id)

        return [result(item.id, state) for item, state in zip(request.items, states, strict=True)]
