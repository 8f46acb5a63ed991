"""Dividing items into forward passes: what an item costs, what it shares with others, which items go together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from redline_model.encoding.items import EncodedItem
from redline_model.inference.causal_forward import CausalForward, PrefixedSequence
from redline_model.inference.padding import pack_by_length
from redline_model.inference.prefix_cache import Prefix, PrefixCache


class Planner(Protocol):
    """Plans the passes of one scorer. Thread-safe, except for ``prefix_caches``.

    ``prefix_caches``: those of all models of the scorer; clear them between passes only. ``shares_prefixes``: whether
    items with the same prompt share its computation.
    """

    prefix_caches: tuple[PrefixCache, ...]
    shares_prefixes: bool

    def length(self, item: EncodedItem) -> int:
        """Tokens that the model reads for this item."""
        ...

    def prefix(self, item: EncodedItem) -> Prefix | None:
        """The leading tokens whose computation other items can share; None if nothing can be shared."""
        ...

    def cost(self, item: EncodedItem, present: set[Prefix]) -> int:
        """Tokens that ``item`` adds to a pass that already has the prefixes ``present``."""
        ...

    def batches(self, items: Sequence[EncodedItem], max_tokens: int) -> Iterator[list[int]]:
        """Indices of ``items`` for each pass; a pass has at most ``max_tokens``, or one item."""
        ...


class CausalPlanner:
    """Planner of a decoder-only model: items with the same prompt share its computation if passes are packed.

    Args:
        forward: the model's forward pass.
        make_sequence: the sequence that the model reads for an item.
        length: tokens that it reads for an item; by default those of the sequence.
        prefix_caches: by default that of ``forward``.
    """

    def __init__(
        self,
        forward: CausalForward,
        make_sequence: Callable[[EncodedItem], PrefixedSequence],
        length: Callable[[EncodedItem], int] | None = None,
        prefix_caches: tuple[PrefixCache, ...] | None = None,
    ) -> None:
        self._forward = forward
        self._make_sequence = make_sequence
        self._length = length
        self.prefix_caches = (forward.cache,) if prefix_caches is None else prefix_caches
        self.shares_prefixes = forward.is_packed

    def length(self, item: EncodedItem) -> int:
        """See ``Planner``."""
        return self._make_sequence(item).tokens if self._length is None else self._length(item)

    def prefix(self, item: EncodedItem) -> Prefix | None:
        """The sequence's prefix if passes are packed."""
        return self._make_sequence(item).prefix if self.shares_prefixes else None

    def cost(self, item: EncodedItem, present: set[Prefix]) -> int:
        """See ``Planner``."""
        return self._forward.cost(self._make_sequence(item), present)

    def batches(self, items: Sequence[EncodedItem], max_tokens: int) -> Iterator[list[int]]:
        """See ``Planner``."""
        return self._forward.batches([self._make_sequence(item) for item in items], max_tokens)


class PaddedPlanner:
    """Planner of a model whose passes share nothing: items of similar length together, padded to the longest.

    Args:
        length: tokens that the model reads for an item.
        cost: tokens that an item takes in a pass; by default its length.
        prefix_caches: caches of the scorer's models, so that they can be cleared and reported.
    """

    shares_prefixes = False

    def __init__(
        self,
        length: Callable[[EncodedItem], int],
        cost: Callable[[EncodedItem], int] | None = None,
        prefix_caches: tuple[PrefixCache, ...] = (),
    ) -> None:
        self.prefix_caches = prefix_caches
        self._length = length
        self._cost = length if cost is None else cost

    def length(self, item: EncodedItem) -> int:
        """See ``Planner``."""
        return self._length(item)

    def prefix(self, item: EncodedItem) -> Prefix | None:
        """None: nothing is shared."""
        return None

    def cost(self, item: EncodedItem, present: set[Prefix]) -> int:
        """See ``Planner``."""
        return self._cost(item)

    def batches(self, items: Sequence[EncodedItem], max_tokens: int) -> Iterator[list[int]]:
        """See ``Planner``."""
        return pack_by_length(items, self._cost, max_tokens)


def causal_planner(
    forward: CausalForward | None,
    make_sequence: Callable[[EncodedItem], PrefixedSequence],
    length: Callable[[EncodedItem], int],
    prefix_caches: tuple[PrefixCache, ...] | None = None,
) -> Planner:
    """The planner of a decoder-only model: ``CausalPlanner``, or ``PaddedPlanner`` if ``forward`` is None.

    Args:
        forward: the model's forward pass; None if its full logits have to be computed.
        make_sequence: the sequence that the model reads for an item.
        length: tokens that it reads for an item.
        prefix_caches: by default that of ``forward``.
    """
    if forward is None:
        return PaddedPlanner(length, lambda item: make_sequence(item).tokens, prefix_caches or ())
    return CausalPlanner(forward, make_sequence, length, prefix_caches)
