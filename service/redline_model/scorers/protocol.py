"""What a service, a trainer or an evaluation may ask of any scorer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from redline_model.errors import UnsupportedError
from redline_model.extraction import Extraction, Mode, Reading, choose_aggregate, choose_mode
from redline_model.template import EncodedItem, Encoder

M = TypeVar("M")


class Judgement(NamedTuple):
    """``rewards`` has one number a target token; ``diverged_at`` is the index ``k``, None if there is none."""

    score: float
    rewards: list[float]
    diverged_at: int | None


class Correction(NamedTuple):
    """A scorer's own rewrite; ``is_complete`` is False where it hit its length limit."""

    text: str
    is_complete: bool


class Scorer(Protocol[M]):
    """A loaded reward model. ``encode`` is thread-safe; the rest belongs to one worker.

    Scoring has two halves: ``measure`` runs the model, ``read`` turns what it measured into rewards, so that
    items read in different ways share a forward pass.
    """

    kind: str
    modes: tuple[Mode, ...]
    extraction: Extraction
    encoder: Encoder
    model: Any

    def length(self, item: EncodedItem) -> int:
        """Tokens the model reads for this item."""
        ...

    def measure(self, items: Sequence[EncodedItem]) -> list[M]:
        """One forward pass over a batch."""
        ...

    def read(self, measured: M, reading: Reading) -> Judgement:
        """Rewards of one item; raises NonFiniteError."""
        ...

    def correct(self, item: EncodedItem, measured: M) -> Correction:
        """The model's own rewrite, greedy; raises UnsupportedError where the model does not write."""
        ...


def reading_of(scorer: Scorer[Any], mode: str | None = None, aggregate: str | None = None) -> Reading:
    """The reading meant by a caller's words, the bundle's defaults filled in. Raises UnsupportedError."""
    chosen = choose_aggregate(aggregate, scorer.extraction.aggregate)
    if scorer.modes:
        return Reading(choose_mode(mode, scorer.extraction.mode), chosen)
    if mode is not None:
        raise UnsupportedError(f"a {scorer.kind} model has no extraction modes; leave 'mode' out")
    return Reading(None, chosen)


def unsupported_correction(kind: str) -> UnsupportedError:
    """The error of a scorer that cannot write."""
    return UnsupportedError(f"a {kind} model judges but does not write: it has no correction to offer")
