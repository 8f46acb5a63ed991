"""What an objective is: a loss over encoded pairs, summed so that the microbatches of a step add up exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from redline_trainer.encode_pairs import EncodedPair

Example = TypeVar("U")


class Objective(Protocol[Example]):
    """A loss over units (training sequences), divided by the sum of their sizes over a whole step."""

    def examples(self, pair: EncodedPair) -> list[Example]:
        """The training sequences of one pair."""
        ...

    def batches(self, examples: Sequence[Example], max_tokens: int) -> Iterator[list[int]]:
        """Indices of ``examples``, forward pass by forward pass, each at most ``max_tokens`` (or one unit)."""
        ...

    def size(self, example: Example) -> int:
        """What the summed loss is to be divided by."""
        ...

    def tokens(self, example: Example) -> int:
        """Tokens of its sequences, for the throughput shown; what they share is counted for each."""
        ...

    def loss(self, examples: Sequence[Example]) -> Tensor:
        """The summed loss, a scalar."""
        ...

    def parameters(self) -> list[nn.Parameter]:
        """Weights of its own that learn beside the model's and are not served."""
        return []

    def state(self) -> dict[str, Any]:
        """What it has learned, on the CPU: a checkpoint keeps it."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Put ``state`` back, in place."""
        return
