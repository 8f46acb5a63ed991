"""The interface of training objectives: a loss that is summed over the training sequences of encoded pairs.

Because it is a sum, the microbatches of a step add up exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from redline_trainer.encode_pairs import EncodedPair

Example = TypeVar("Example")


class Objective(Protocol[Example]):
    """A loss over examples (training sequences). A step divides it by the sum of the sizes of its examples."""

    def examples(self, pair: EncodedPair) -> list[Example]:
        """The examples of one pair."""
        ...

    def batches(self, examples: Sequence[Example], max_tokens: int) -> Iterator[list[int]]:
        """Indices of ``examples`` for each forward pass of at most ``max_tokens`` tokens, or of one longer example."""
        ...

    def size(self, example: Example) -> int:
        """The number by which the summed loss is divided."""
        ...

    def tokens(self, example: Example) -> int:
        """Tokens of the example's sequences, for throughput figures. Shared prefixes are counted for each sequence."""
        ...

    def loss(self, examples: Sequence[Example]) -> Tensor:
        """The summed loss, a scalar."""
        ...

    def parameters(self) -> list[nn.Parameter]:
        """Additional trained weights that are not part of the model and are not served."""
        return []

    def state(self) -> dict[str, Any]:
        """Trained state for checkpoints, on the CPU."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore ``state`` in place."""
        return
