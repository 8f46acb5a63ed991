"""What a caller gets back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redline.errors import ItemsFailedError
from redline.wire import AppliedOptions, ErrorBody, ItemError, ItemResult, ItemScore, ModelRef


@dataclass(frozen=True)
class ScoreResult:
    """Answers in the order of the items asked about.

    ``digests``: every bundle digest that answered; more than one says that the model was swapped meanwhile.
    """

    items: Sequence[ItemResult]
    model: ModelRef | None
    options: AppliedOptions | None
    digests: tuple[str, ...]

    @property
    def failures(self) -> list[tuple[int, ErrorBody]]:
        """Position and error of every item that could not be scored."""
        return [(n, item.error) for n, item in enumerate(self.items) if isinstance(item, ItemError)]

    def scored(self) -> list[ItemScore]:
        """Every item's score. Raises ItemsFailedError if any has none."""
        if self.failures:
            raise ItemsFailedError(self.failures)
        return [item for item in self.items if isinstance(item, ItemScore)]
