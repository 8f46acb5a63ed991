"""What a caller gets back."""

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
    """Answers in the order of the items asked about.

    ``digests``: every bundle digest that answered; more than one says that the model was swapped meanwhile.
    """

    items: Sequence[T | ItemError]
    model: ModelRef | None
    options: AppliedOptions | None
    digests: tuple[str, ...]

    @property
    def failures(self) -> list[tuple[int, ErrorBody]]:
        """Position and error of every item that could not be answered."""
        return [(n, item.error) for n, item in enumerate(self.items) if isinstance(item, ItemError)]

    def _answered(self) -> list[T]:
        if self.failures:
            raise ItemsFailedError(self.failures)
        return [item for item in self.items if not isinstance(item, ItemError)]


@dataclass(frozen=True)
class ScoreResult(Result[ItemScore]):
    """What ``score`` gives."""

    def scored(self) -> list[ItemScore]:
        """Every item's score. Raises ItemsFailedError if any has none."""
        return self._answered()


@dataclass(frozen=True)
class CorrectResult(Result[ItemCorrection]):
    """What ``correct`` gives."""

    def corrected(self) -> list[ItemCorrection]:
        """Every item's correction. Raises ItemsFailedError if any has none."""
        return self._answered()
