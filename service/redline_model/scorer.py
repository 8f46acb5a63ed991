"""The interface of all reward models, for services, training and evaluation: a scorer with a planner."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from redline_model.errors import UnsupportedError
from redline_model.options import Extraction, Mode
from redline_model.reward_spec import RewardSpec

if TYPE_CHECKING:
    from redline_model.correction.rewriter import Correction, Rewriter
    from redline_model.encoding.encoder import Encoder
    from redline_model.encoding.items import EncodedItem
    from redline_model.inference.planner import Planner

M = TypeVar("M")


class ScoredResponse(NamedTuple):
    """``rewards`` has one number per target token; ``diverged_at`` is the index ``k``, None if there is none."""

    score: float
    rewards: list[float]
    diverged_at: int | None


class Scorer(Protocol[M]):
    """A loaded reward model. ``encoder`` and ``planner`` are thread-safe; the rest belongs to one worker.

    Scoring has two steps: the forward pass (``start_forward``) returns outputs, and ``to_rewards`` turns an output into
    rewards. So items with different reward specifications can share a forward pass.
    ``models``: all transformers models of the scorer; ``model``: the first, whose device and dtype are reported.
    ``can_correct``: whether ``rewriter`` returns one.
    """

    kind: str
    modes: tuple[Mode, ...]
    extraction: Extraction
    encoder: Encoder
    planner: Planner
    model: Any
    models: tuple[Any, ...]
    can_correct: bool

    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[M]]:
        """Start one forward pass over a batch; calling the result waits for the device and returns the outputs.

        Once this has returned, another pass can be started, from any thread, but by one thread at a time.
        """
        ...

    def forward(self, items: Sequence[EncodedItem]) -> list[M]:
        """One forward pass over a batch; waits for its outputs."""
        ...

    def to_rewards(self, output: M, spec: RewardSpec, correction: Correction | None = None) -> ScoredResponse:
        """The rewards of one item.

        Args:
            correction: the model's correction of the response; only for specifications that need one.

        Raises:
            NonFiniteError: the output holds NaN or infinity.
            UnsupportedError: the specification needs a correction, and there is none.
        """
        ...

    def rewriter(self) -> Rewriter[M]:
        """A new rewriter of responses. Raises UnsupportedError if the model cannot write."""
        ...


class ScoreOnly(ABC, Generic[M]):
    """Base of scorers that cannot write: ``forward`` uses ``start_forward``, and ``rewriter`` raises an error."""

    kind: str
    can_correct = False

    @abstractmethod
    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[M]]:
        """See ``Scorer``."""

    def forward(self, items: Sequence[EncodedItem]) -> list[M]:
        """See ``Scorer``."""
        return self.start_forward(items)()

    def rewriter(self) -> Rewriter[M]:
        """Always raises UnsupportedError."""
        raise UnsupportedError(f"a {self.kind} model scores but does not write: it has no correction to offer")


def forward_all(scorer: Scorer[M], items: Sequence[EncodedItem], max_batch_tokens: int) -> list[M]:
    """Forward outputs of ``items``, in their order, in as many passes as needed."""
    outputs: dict[int, M] = {}
    for batch in scorer.planner.batches(items, max_batch_tokens):
        outputs |= zip(batch, scorer.forward([items[i] for i in batch]), strict=True)
    return [outputs[i] for i in range(len(items))]


def correct_all(scorer: Scorer[M], items: Sequence[EncodedItem]) -> list[tuple[M, Correction]]:
    """Forward outputs and corrections of ``items``, all rewritten together. Raises UnsupportedError."""
    rewriter = scorer.rewriter()
    started = rewriter.start(items)
    written: dict[int, Correction] = {}
    while len(written) < len(started):
        written |= rewriter.advance(rewriter.active())
    return [(output, written[rewrite_id]) for rewrite_id, output in started]


def outputs_and_corrections(
    scorer: Scorer[M], items: Sequence[EncodedItem], max_batch_tokens: int, *, with_corrections: bool
) -> list[tuple[M, Correction | None]]:
    """Forward outputs of ``items``, each with its correction if ``with_corrections``; as many passes as needed."""
    if not with_corrections:
        return [(output, None) for output in forward_all(scorer, items, max_batch_tokens)]
    results: dict[int, tuple[M, Correction | None]] = {}
    for batch in scorer.planner.batches(items, max_batch_tokens):
        results |= zip(batch, correct_all(scorer, [items[i] for i in batch]), strict=True)
    return [results[i] for i in range(len(items))]
