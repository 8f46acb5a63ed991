"""The one owner of the model: synchronous, one call at a time, surviving any single bad item."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from redline_model.errors import ItemError, OutOfMemoryError, RedlineModelError
from redline_model.loading import is_out_of_memory
from redline_model.scorers import Correction, Rewriter, Scorer
from redline_model.template import EncodedItem

logger = logging.getLogger("redline.service")

R = TypeVar("R", bound=list[Any])


@dataclass(frozen=True)
class Timed(Generic[R]):
    """What a call gave, and the seconds for which it had the model; waiting for its turn is not counted."""

    values: R
    seconds: float

    def and_then(self, other: Timed[R]) -> Timed[R]:
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

    def measure(self, items: Sequence[EncodedItem]) -> Timed[list[Any]]:
        """A measurement, or the exception in its place, for each item."""
        try:
            with self._model_is_lent:
                started = time.perf_counter()
                collect = self._scorer.launch(items)
            return Timed(collect(), time.perf_counter() - started)
        except Exception as error:
            if len(items) == 1:
                return Timed([self._told(error)], 0.0)
            self._note(error, len(items))
        middle = len(items) // 2
        return self.measure(items[:middle]).and_then(self.measure(items[middle:]))

    def start_rewrites(self, items: Sequence[EncodedItem]) -> Timed[list[tuple[int, Any] | Exception]]:
        """A ticket and a measurement, or the exception in their place, for each item."""
        try:
            with self._model_is_lent:
                started = time.perf_counter()
                if self._rewriter is None:
                    self._rewriter = self._scorer.rewriter()
                return Timed(list(self._rewriter.start(items)), time.perf_counter() - started)
        except Exception as error:
            if len(items) == 1:
                return Timed([self._told(error)], 0.0)
            self._note(error, len(items))
        middle = len(items) // 2
        return self.start_rewrites(items[:middle]).and_then(self.start_rewrites(items[middle:]))

    def advance_rewrites(self, seconds: float) -> Timed[list[tuple[int, Correction]]]:
        """Write for about ``seconds`` or until a rewrite is done.

        Raises:
            Exception: writing failed, and all rewrites under way are lost; it says what an item is to be told.
        """
        assert self._rewriter is not None
        with self._model_is_lent:
            started = time.perf_counter()
            try:
                while True:
                    done = self._rewriter.advance()
                    spent = time.perf_counter() - started
                    if done or spent >= seconds:
                        return Timed(done, spent)
            except Exception as error:
                self._rewriter = None
                raise self._told(error) from error

    def drop_rewrite(self, ticket: int) -> None:
        """Forget a rewrite that nobody waits for."""
        with self._model_is_lent:
            if self._rewriter is not None:
                self._rewriter.drop(ticket)

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
