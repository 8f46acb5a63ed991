"""The one owner of the model: synchronous, one call at a time, surviving any single bad item."""

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
from redline_model.encoding.encoder import EncodedItem
from redline_model.errors import ItemError, OutOfMemoryError, RedlineModelError
from redline_model.scorer import Scorer

logger = logging.getLogger("redline.service")

R = TypeVar("R", bound=list[Any])


@dataclass(frozen=True)
class Timed(Generic[R]):
    """What a call gave, and the seconds for which it had the model; waiting for its turn is not counted."""

    values: R
    seconds: float

    def concat(self, other: Timed[R]) -> Timed[R]:
        """Both, one after the other."""
        return Timed(self.values + other.values, self.seconds + other.seconds)  # type: ignore[arg-type]


class Worker:
    """Runs batches; a batch that fails is halved until only the items at fault are left with an error.

    Calls may come from several threads: the model is lent to one at a time, and a pass that only waits for its
    device has given it back already.
    """

    def __init__(self, scorer: Scorer[Any]) -> None:
        self._scorer = scorer
        self._model_is_lent = threading.Lock()
        self._rewriter: Rewriter[Any] | None = None

    def forward(self, items: Sequence[EncodedItem]) -> Timed[list[Any]]:
        """The forward output of each item, or the exception in its place."""

        def run(items: Sequence[EncodedItem]) -> Timed[list[Any]]:
            with self._model_is_lent:
                started = time.perf_counter()
                collect = self._scorer.start_forward(items)
            return Timed(collect(), time.perf_counter() - started)

        return self._in_halves(run, items)

    def start_rewrites(self, items: Sequence[EncodedItem]) -> Timed[list[tuple[int, Any] | Exception]]:
        """A ticket and the forward output of each item, or the exception in their place."""

        def run(items: Sequence[EncodedItem]) -> Timed[list[Any]]:
            with self._model_is_lent:
                started = time.perf_counter()
                if self._rewriter is None:
                    self._rewriter = self._scorer.rewriter()
                return Timed(list(self._rewriter.start(items)), time.perf_counter() - started)

        return self._in_halves(run, items)

    def _in_halves(
        self, run: Callable[[Sequence[EncodedItem]], Timed[list[Any]]], items: Sequence[EncodedItem]
    ) -> Timed[list[Any]]:
        """``run`` over ``items``, in halves where it fails, until only the items at fault have their exception."""
        try:
            return run(items)
        except Exception as error:
            if is_out_of_memory(error) and self._free_memory():
                return self._in_halves(run, items)
            if len(items) == 1:
                return Timed([self._told(error)], 0.0)
            self._note(error, len(items))
        middle = len(items) // 2
        return self._in_halves(run, items[:middle]).concat(self._in_halves(run, items[middle:]))

    def advance_rewrites(self, seconds: float) -> Timed[list[tuple[int, Correction | Exception]]]:
        """Write for about ``seconds`` or until a rewrite is done.

        A step that fails is taken again in halves, until only the rewrites at fault are given up.
        """
        with self._model_is_lent:
            started = time.perf_counter()
            while True:
                assert self._rewriter is not None
                done = self._step(self._rewriter, self._rewriter.active())
                spent = time.perf_counter() - started
                if done or spent >= seconds or not self._rewriter.active():
                    return Timed(done, spent)

    def _step(self, rewriter: Rewriter[Any], tickets: Sequence[int]) -> list[tuple[int, Correction | Exception]]:
        try:
            return list(rewriter.advance(tickets))
        except Exception as error:
            if len(tickets) <= 1:
                for ticket in tickets:
                    rewriter.cancel(ticket)
                return [(ticket, self._told(error)) for ticket in tickets]
            self._note(error, len(tickets))
        middle = len(tickets) // 2
        return [*self._step(rewriter, tickets[:middle]), *self._step(rewriter, tickets[middle:])]

    @property
    def rewriting_tokens(self) -> int:
        """Tokens held by rewrites under way; to be asked between its calls, not during one."""
        return 0 if self._rewriter is None else self._rewriter.tokens

    def drop_rewrite(self, ticket: int) -> None:
        """Forget a rewrite that nobody waits for."""
        with self._model_is_lent:
            if self._rewriter is not None:
                self._rewriter.cancel(ticket)

    def _free_memory(self) -> bool:
        """Drop the prefix caches, which only save time; False if they are empty already."""
        with self._model_is_lent:
            caches = [cache for cache in self._scorer.planner.prefix_caches if cache.bytes]
            for cache in caches:
                cache.clear()
        if caches:
            logger.warning("memory is short: the prefix cache was emptied")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return bool(caches)

    def _note(self, error: Exception, items: int) -> None:
        if is_out_of_memory(error) and torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning("a batch of %d failed (%s); retrying in halves", items, type(error).__name__)

    def _told(self, error: Exception) -> Exception:
        if is_out_of_memory(error):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return OutOfMemoryError("the item does not fit into the memory that is free")
        if not isinstance(error, (ItemError, RedlineModelError)):
            logger.error("an item failed", exc_info=error)
        return error
