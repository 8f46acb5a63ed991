"""What objectives over comparisons share: both responses of a pair are in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from redline_model.encoding.items import EncodedItem
from redline_model.inference.causal_forward import CausalForward, PrefixedSequence
from redline_model.inference.padding import pack_by_length
from redline_trainer.encode_pairs import EncodedPair
from redline_trainer.objectives.base import Objective


class PairObjective(Objective[EncodedPair]):
    """Base of objectives whose examples are comparisons.

    Args:
        causal: the forward pass of the trained model; None if its full logits have to be computed.
        make_sequence: the sequence that it reads for one side of a pair.
    """

    def __init__(self, causal: CausalForward | None, make_sequence: Callable[[EncodedItem], PrefixedSequence]) -> None:
        self._causal = causal
        self._make_sequence = make_sequence

    def examples(self, pair: EncodedPair) -> list[EncodedPair]:
        """The pair itself, and its chosen against its mismatched response. Both sides of a pair are in one batch."""
        return [pair] if pair.mismatched is None else [pair, pair._replace(rejected=pair.mismatched)]

    def batches(self, examples: Sequence[EncodedPair], max_tokens: int) -> Iterator[list[int]]:
        """Pairs of one prompt are in one batch if its computation can be shared; otherwise pairs of similar length."""
        if self._causal is None or not self._causal.is_packed:
            return pack_by_length(
                examples, lambda example: 2 * max(map(_length, (example.chosen, example.rejected))), max_tokens
            )
        # both sides of a comparison are packed as one sequence, so that they are in one forward pass
        pairs = []
        for example in examples:
            chosen, rejected = (self._make_sequence(side) for side in (example.chosen, example.rejected))
            pairs.append(PrefixedSequence(chosen.prefix, [*chosen.suffix, *rejected.suffix]))
        return self._causal.batches(pairs, max_tokens)

    def size(self, example: EncodedPair) -> int:
        """1: an example is one comparison."""
        return 1

    def tokens(self, example: EncodedPair) -> int:
        """Tokens of both sides. Passes of a reference model are not counted."""
        return _length(example.chosen) + _length(example.rejected)


def both_sides(examples: Sequence[EncodedPair]) -> list[EncodedItem]:
    """The chosen sides of all examples, then the rejected ones."""
    return [example.chosen for example in examples] + [example.rejected for example in examples]


def _length(side: EncodedItem) -> int:
    return len(side.prefix_ids) + len(side.target_ids)
