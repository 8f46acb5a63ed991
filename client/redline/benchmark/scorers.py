"""What the benchmark asks of a scorer, and the scorer behind a Redline service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from redline.client import RewardClient
from redline.errors import ModelChangedError
from redline.messages import Prompt
from redline.spans import Span
from redline.wire import ItemError, ScoreItem, ScoreOptions

# of these modes a reward below zero is a report of an error; other rewards have no such threshold
MODES_WITH_THRESHOLD = {"paper", "margin", "edits"}


class Scored(NamedTuple):
    """The score of a response, and its token rewards with their spans if the scorer has them."""

    score: float
    rewards: Sequence[float] | None = None
    offsets: Sequence[Span] | None = None


class Unscored(NamedTuple):
    """A response that the scorer refused, and the reason."""

    reason: str


class BenchmarkScorer(Protocol):
    """Scores responses.

    ``has_token_rewards``: whether ``Scored`` has rewards. ``threshold``: the error score (negated reward) above which a
    word is reported as an error; None if the scorer has none. It is known once ``identity`` was called.
    """

    has_token_rewards: bool
    threshold: float | None

    def identity(self) -> dict[str, Any]:
        """What distinguishes the results of this scorer from those of others, as JSON; raises RedlineError."""
        ...

    def score(self, items: Sequence[tuple[Prompt, str]]) -> list[Scored | Unscored]:
        """The results of ``(prompt, response)`` items, in order.

        Raises:
            RedlineError: the scorer cannot be reached, or does not answer as its kind does.
        """
        ...


class RedlineScorer:
    """The token rewards and scores of a Redline service.

    Args:
        threshold: see ``BenchmarkScorer``; by default 0 for modes whose negative rewards report an error.
    """

    has_token_rewards = True

    def __init__(
        self, client: RewardClient, *, model: str = "default", options: ScoreOptions, threshold: float | None = None
    ) -> None:
        self.threshold = threshold
        self._client = client
        self._model = model
        self._options = options
        self._digest: str | None = None

    def identity(self) -> dict[str, Any]:
        """Digest and kind of the bundle, and the applied options; raises as ``BenchmarkScorer`` says."""
        info = self._client.model(self._model)
        self._digest = info.digest
        mode = self._options.mode or info.default_mode
        if self.threshold is None and mode in MODES_WITH_THRESHOLD:
            self.threshold = 0.0
        applied = {"mode": mode, "aggregate": self._options.aggregate or info.default_aggregate}
        options = {"calibrated": self._options.calibrated, "on_too_long": self._options.on_too_long}
        return {"kind": "redline", "model": info.digest, "model_kind": info.kind, **applied, **options}

    def score(self, items: Sequence[tuple[Prompt, str]]) -> list[Scored | Unscored]:
        """Raises as ``BenchmarkScorer`` says, and ModelChangedError if the service changes its model."""
        rows = [ScoreItem.model_validate({"prompt": prompt, "response": response}) for prompt, response in items]
        result = self._client.score(rows, model=self._model, options=self._options)
        if self._digest is not None and set(result.digests) - {self._digest}:
            raise ModelChangedError("the service changed its model during the run")
        return [
            Unscored(item.error.message)
            if isinstance(item, ItemError)
            else Scored(item.score, item.rewards, item.offsets)
            for item in result.items
        ]
