"""Runs the model's forward passes and rewrites; splits a batch that fails so that only the items at fault fail."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from redline_model.bundle.loading import is_out_of_memory
from redline_model.correction.rewriter import Correction, Rewriter
from redline_model.encoding.items import EncodedItem
from redline_model.errors import ItemError, OutOfMemoryError, RedlineModelError
from redline_model.scorer import Scorer

logger = logging.getLogger("redline.service")

R = TypeVar("R", bound=list[Any])


@dataclass(frozen=True)
class Timed(Generic[R]):
    """Results of a call, and the seconds for which it used the model, without the time that it waited for the model."""

    values: R
    seconds: float

    def concat(self, other: Timed[R]) -> Timed[R]:
        """The results of both calls, and the sum of their seconds."""
        return Timed(self.values + other.values, self.seconds + other.seconds)  # type: ignore[arg-type]


class Worker:
    """The only user of the model. Its methods block, so call them in a thread.

    Several threads may call them: a lock lets one at a time use the model. A forward pass releases the lock before it
    waits for its device, so that the next pass can be launched meanwhile.
    """

    def __init__(self, scorer: Scorer[Any]) -> None:
        self._scorer = scorer
        self._model_lock = threading.Lock()
        self._rewriter: Rewriter[Any] | None = None

    def forward(self, items: Sequence[EncodedItem]) -> Timed[list[Any]]:
        """The forward output of each item, or an exception in its place."""

        def run(items: Sequence[EncodedItem]) -> Timed[list[Any]]:
            with self._model_lock:
                started = time.perf_counter()
                collect = self._scorer.start_forward(items)
            return Timed(collect(), time.perf_counter() - started)

        return self._run_with_splitting(run, items)

    def start_rewrites(self, items: Sequence[EncodedItem]) -> Timed[list[tuple[int, Any] | Exception]]:
        """The rewrite id and the forward output of each item, or an exception in their place."""

        def run(items: Sequence[EncodedItem]) -> Timed[list[Any]]:
            with self._model_lock:
                started = time.perf_counter()
                if self._rewriter is None:
                    self._rewriter = self._scorer.rewriter()
                return Timed(list(self._rewriter.start(items)), time.perf_counter() - started)

        return self._run_with_splitting(run, items)

    def _run_with_splitting(
        self, run: Callable[[Sequence[EncodedItem]], Timed[list[Any]]], items: Sequence[EncodedItem]
    ) -> Timed[list[Any]]:
        """Call ``run`` with ``items``; if it fails, call it with each half, down to single items.

        An item that fails alone has its exception as its result.
        """
        try:
            return run(items)
        except Exception as error:
            if is_out_of_memory(error) and self._clear_prefix_caches():
                return self._run_with_splitting(run, items)
            if len(items) == 1:
                return Timed([self._error_to_report(error)], 0.0)
            self._log_split(error, len(items))
        middle = len(items) // 2
        first_half = self._run_with_splitting(run, items[:middle])
        return first_half.concat(self._run_with_splitting(run, items[middle:]))

    def advance_rewrites(self, seconds: float) -> Timed[list[tuple[int, Correction | Exception]]]:
        """Continue all rewrites for about ``seconds``, or until one of them is finished.

        Returns:
            Ids and results of the rewrites that finished or failed. If a step fails it is repeated in halves, so that
            only the rewrites at fault fail.
        """
        with self._model_lock:
            started = time.perf_counter()
            while True:
                assert self._rewriter is not None
                finished = self._advance_with_splitting(self._rewriter, self._rewriter.active())
                elapsed_s = time.perf_counter() - started
                if finished or elapsed_s >= seconds or not self._rewriter.active():
                    return Timed(finished, elapsed_s)

    def _advance_with_splitting(
        self, rewriter: Rewriter[Any], rewrite_ids: Sequence[int]
    ) -> list[tuple[int, Correction | Exception]]:
        try:
            return list(rewriter.advance(rewrite_ids))
        except Exception as error:
            if len(rewrite_ids) <= 1:
                for rewrite_id in rewrite_ids:
                    rewriter.cancel(rewrite_id)
                return [(rewrite_id, self._error_to_report(error)) for rewrite_id in rewrite_ids]
            self._log_split(error, len(rewrite_ids))
        middle = len(rewrite_ids) // 2
        first_half = self._advance_with_splitting(rewriter, rewrite_ids[:middle])
        return [*first_half, *self._advance_with_splitting(rewriter, rewrite_ids[middle:])]

    @property
    def rewriting_tokens(self) -> int:
        """Tokens held by unfinished rewrites. Read it between calls of the rewrite methods, not during one."""
        return 0 if self._rewriter is None else self._rewriter.tokens

    def drop_rewrite(self, rewrite_id: int) -> None:
        """Discard a rewrite for which no caller waits any more."""
        with self._model_lock:
            if self._rewriter is not None:
                self._rewriter.cancel(rewrite_id)

    def _clear_prefix_caches(self) -> bool:
        """Free the memory of the prefix caches, which only save time; False if they were empty already."""
        with self._model_lock:
            caches = [cache for cache in self._scorer.planner.prefix_caches if cache.bytes]
            for cache in caches:
                cache.clear()
        if caches:
            logger.warning("out of memory: the prefix cache was cleared")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return bool(caches)

    def _log_split(self, error: Exception, items: int) -> None:
        if is_out_of_memory(error) and torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning("a batch of %d items failed (%s); retrying in halves", items, type(error).__name__)

    def _error_to_report(self, error: Exception) -> Exception:
        """The error for an item that fails alone. Unexpected errors are logged."""
        if is_out_of_memory(error):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return OutOfMemoryError("the item does not fit into the free memory of the device")
        if not isinstance(error, (ItemError, RedlineModelError)):
            logger.error("an item failed", exc_info=error)
        return error
