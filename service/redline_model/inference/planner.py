"""How items are cut into forward passes: what an item costs, what it shares with others, which items go together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from redline_model.encoding.encoder import EncodedItem
from redline_model.inference.causal_forward import CausalForward, PrefixedSequence
from redline_model.inference.padding import pack_by_length
from redline_model.inference.prefix_cache import Prefix, PrefixCache


class Planner(Protocol):
    """Plans the passes of one scorer. Safe in any thread, but for ``prefix_caches``.

    ``prefix_caches``: those of all models inside; to be cleared between passes only. ``shares_prefixes``: whether
    items of one prompt share its computation.
    """

    prefix_caches: tuple[PrefixCache, ...]
    shares_prefixes: bool

    def length(self, item: EncodedItem) -> int:
        """Tokens that the model reads for this item."""
        ...

    def prefix(self, item: EncodedItem) -> Prefix | None:
        """The leading tokens whose computation items may share; None if nothing can be shared."""
        ...

    def cost(self, item: EncodedItem, present: set[Prefix]) -> int:
        """Tokens that ``item`` adds to a pass that holds the prefixes ``present`` already."""
        ...

    def batches(self, items: Sequence[EncodedItem], max_tokens: int) -> Iterator[list[int]]:
        """Indices of ``items``, pass by pass, each pass at most ``max_tokens`` (or one item)."""
        ...


class CausalPlanner:
    """Planner of a decoder-only model: items of one prompt share its computation if passes are packed.

    Args:
        forward: the model's forward pass.
        sequence_of: the sequence that the model reads for an item.
        length: tokens that it reads for an item; by default those of the sequence.
        prefix_caches: by default that of ``forward``.
    """

    def __init__(
        self,
        forward: CausalForward,
        sequence_of: Callable[[EncodedItem], PrefixedSequence],
        length: Callable[[EncodedItem], int] | None = None,
        prefix_caches: tuple[PrefixCache, ...] | None = None,
    ) -> None:
        self._forward = forward
        self._sequence_of = sequence_of
        self._length = length
        self.prefix_caches = (forward.cache,) if prefix_caches is None else prefix_caches
        self.shares_prefixes = forward.is_packed

    def length(self, item: EncodedItem) -> int:
        """See ``Planner``."""
        return self._sequence_of(item).tokens if self._length is None else self._length(item)

    def prefix(self, item: EncodedItem) -> Prefix | None:
        """The sequence's prefix if passes are packed."""
        return self._sequence_of(item).prefix if self.shares_prefixes else None

    def cost(self, item: EncodedItem, present: set[Prefix]) -> int:
        """See ``Planner``."""
        return self._forward.cost(self._sequence_of(item), present)

    def batches(self, items: Sequence[EncodedItem], max_tokens: int) -> Iterator[list[int]]:
        """See ``Planner``."""
        return self._forward.batches([self._sequence_of(item) for item in items], max_tokens)


class PaddedPlanner:
    """Planner of a model whose passes share nothing: items of like length together, padded to the longest.

    Args:
        length: tokens that the model reads for an item.
        cost: tokens that an item takes in a pass; by default its length.
        prefix_caches: of models inside that could share, for what they hold.
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
