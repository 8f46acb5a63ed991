"""The one owner of the model: synchronous, on its own thread, surviving any single bad item."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from redline_model.errors import ItemError, OutOfMemoryError, RedlineModelError
from redline_model.loading import is_out_of_memory
from redline_model.scorers import Correction, Scorer
from redline_model.template import EncodedItem

logger = logging.getLogger("redline.service")


class Worker:
    """Runs batches; a batch that fails is halved until only the items at fault are left with an error."""

    def __init__(self, scorer: Scorer[Any]) -> None:
        self._scorer = scorer

    def measure(self, items: Sequence[EncodedItem]) -> list[Any]:
        """A measurement, or the exception in its place, for each item."""
        try:
            return self._scorer.measure(items)
        except Exception as error:
            is_memory = is_out_of_memory(error)
            if is_memory and torch.cuda.is_available():
                torch.cuda.empty_cache()
            if len(items) == 1:
                return [self._told(error, is_memory)]
            logger.warning("a batch of %d failed (%s); retrying in halves", len(items), type(error).__name__)
        middle = len(items) // 2
        return [*self.measure(items[:middle]), *self.measure(items[middle:])]

    def correct(self, item: EncodedItem, measured: Any) -> Correction | Exception:
        """The model's rewrite, or the exception in its place."""
        try:
            return self._scorer.correct(item, measured)
        except Exception as error:
            return self._told(error, is_out_of_memory(error))

    def _told(self, error: Exception, is_memory: bool) -> Exception:
        if is_memory:
            return OutOfMemoryError("the item does not fit into the memory that is free")
        if not isinstance(error, (ItemError, RedlineModelError)):
            logger.error("an item failed", exc_info=error)
        return error
