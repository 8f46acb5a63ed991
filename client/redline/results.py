"""The results that the clients return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from redline.errors import ItemsFailedError
from redline.wire import AppliedOptions, ErrorBody, ItemError, ItemScore, ModelRef
from redline.wire.correction import ItemCorrection

T = TypeVar("T")


@dataclass(frozen=True)
class Result(Generic[T]):
    """Results in the order of the items.

    ``digests``: digests of all bundles that answered; more than one means that the model changed during the call.
    """

    items: Sequence[T | ItemError]
    model: ModelRef | None
    options: AppliedOptions | None
    digests: tuple[str, ...]

    @property
    def failures(self) -> list[tuple[int, ErrorBody]]:
        """Position and error of every item that failed."""
        return [(n, item.error) for n, item in enumerate(self.items) if isinstance(item, ItemError)]

    def _without_failures(self) -> list[T]:
        if self.failures:
            raise ItemsFailedError(self.failures)
        return [item for item in self.items if not isinstance(item, ItemError)]


@dataclass(frozen=True)
class ScoreResult(Result[ItemScore]):
    """The result of ``score``."""

    def scored(self) -> list[ItemScore]:
        """Every item's score. Raises ItemsFailedError if an item failed."""
        return self._without_failures()


@dataclass(frozen=True)
class CorrectResult(Result[ItemCorrection]):
    """The result of ``correct``."""

    def corrected(self) -> list[ItemCorrection]:
        """Every item's correction. Raises ItemsFailedError if an item failed."""
        return self._without_failures()
