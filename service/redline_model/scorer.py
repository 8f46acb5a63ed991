"""What a service, a trainer or an evaluation may ask of any scorer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from redline_model.correction.rewriter import Correction, Rewriter
from redline_model.encoding.encoder import EncodedItem, Encoder
from redline_model.errors import UnsupportedError
from redline_model.extraction import AGGREGATES, Extraction, Mode, RewardSpec, choose_aggregate, choose_mode
from redline_model.inference.prefix_cache import Prefix, PrefixCache

M = TypeVar("M")


class ScoredResponse(NamedTuple):
    """``rewards`` has one number a target token; ``diverged_at`` is the index ``k``, None if there is none."""

    score: float
    rewards: list[float]
    diverged_at: int | None


class Scorer(Protocol[M]):
    """A loaded reward model. ``encode`` is thread-safe; the rest belongs to one worker.

    Scoring has two halves: ``measure`` runs the model, ``read`` turns what it measured into rewards, so that
    items read in different ways share a forward pass. ``models`` are all transformers models inside, ``model`` the
    first of them, whose device and dtype are told. ``can_correct``: ``rewriter`` gives one.
    """

    kind: str
    modes: tuple[Mode, ...]
    extraction: Extraction
    encoder: Encoder
    model: Any
    models: tuple[Any, ...]
    can_correct: bool

    @property
    def prefix_caches(self) -> tuple[PrefixCache, ...]:
        """The prefix caches of all models inside; to be cleared between passes only."""
        ...

    def length(self, item: EncodedItem) -> int:
        """Tokens the model reads for this item."""
        ...

    def prefix(self, item: EncodedItem) -> Prefix | None:
        """What items may share the computation of; None where nothing can be shared."""
        ...

    def cost(self, item: EncodedItem, beside: set[Prefix]) -> int:
        """Tokens that ``item`` adds to a pass that has the prefixes ``beside`` in it; safe in any thread."""
        ...

    def batches(self, items: Sequence[EncodedItem], max_tokens: int) -> Iterator[list[int]]:
        """Indices of ``items``, pass by pass, each at most ``max_tokens`` (or one item)."""
        ...

    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[M]]:
        """Begin one forward pass over a batch; calling the result waits for the device and gives the measurements.

        Once this has returned another pass may be launched, from any thread but by one at a time.
        """
        ...

    def forward(self, items: Sequence[EncodedItem]) -> list[M]:
        """One forward pass over a batch, launched and waited for."""
        ...

    def to_rewards(self, output: M, spec: RewardSpec) -> ScoredResponse:
        """Rewards of one item; raises NonFiniteError."""
        ...

    def rewriter(self) -> Rewriter[M]:
        """A fresh writer of corrections; raises UnsupportedError where the model does not write."""
        ...


def reward_spec(scorer: Scorer[Any], mode: str | None = None, aggregate: str | None = None) -> RewardSpec:
    """The reading meant by a caller's words, the bundle's defaults filled in. Raises UnsupportedError."""
    chosen = choose_aggregate(aggregate, scorer.extraction.aggregate)
    if scorer.modes:
        return RewardSpec(choose_mode(mode, scorer.extraction.mode, scorer.modes), chosen)
    if mode is not None:
        raise UnsupportedError(f"a {scorer.kind} model has no extraction modes; leave 'mode' out")
    return RewardSpec(None, chosen)


def spec_key(scorer: Scorer[Any], spec: RewardSpec) -> str:
    """``mode/aggregate``, the key of calibrations and accuracies; a kind without modes stands in for the mode."""
    return f"{spec.mode or scorer.kind}/{spec.aggregate}"


def all_reward_specs(scorer: Scorer[Any]) -> list[RewardSpec]:
    """Every way to read this scorer, its default first."""
    default = reward_spec(scorer)
    rest = [RewardSpec(mode, aggregate) for mode in scorer.modes or (None,) for aggregate in AGGREGATES]
    return [default, *(spec for spec in rest if spec != default)]


def unsupported_correction(kind: str) -> UnsupportedError:
    """The error of a scorer that cannot write."""
    return UnsupportedError(f"a {kind} model judges but does not write: it has no correction to offer")


def forward_all(scorer: Scorer[M], items: Sequence[EncodedItem], max_batch_tokens: int) -> list[M]:
    """Measurements in the order of ``items``, pass by pass."""
    outputs: dict[int, M] = {}
    for batch in scorer.batches(items, max_batch_tokens):
        outputs |= zip(batch, scorer.forward([items[i] for i in batch]), strict=True)
    return [outputs[i] for i in range(len(items))]


def correct_all(scorer: Scorer[M], items: Sequence[EncodedItem]) -> list[tuple[M, Correction]]:
    """Measurements and corrections of ``items``, written together. Raises UnsupportedError."""
    rewriter = scorer.rewriter()
    started = rewriter.start(items)
    written: dict[int, Correction] = {}
    while len(written) < len(started):
        written |= rewriter.advance(rewriter.active())
    return [(outputs, written[ticket]) for ticket, outputs in started]
