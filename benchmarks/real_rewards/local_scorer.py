"""A loaded reward model as a scorer of ``redline bench``, without HTTP in between."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from redline.benchmark.scorers import MODES_WITH_THRESHOLD, Scored, Unscored
from redline.messages import Prompt
from redline_model.encoding.items import EncodedItem, Item
from redline_model.errors import ItemError
from redline_model.reward_spec import RewardSpec
from redline_model.scorer import Scorer, outputs_and_corrections


class CachedOutputs:
    """The forward outputs of a scorer and its corrections, computed once for each prompt and response."""

    def __init__(self, scorer: Scorer[Any], max_batch_tokens: int) -> None:
        self.scorer = scorer
        self._max_batch_tokens = max_batch_tokens
        self._known: dict[str, tuple[EncodedItem, Any, Any] | Unscored] = {}

    def of(
        self, items: Sequence[tuple[Prompt, str]], *, with_corrections: bool
    ) -> list[tuple[EncodedItem, Any, Any] | Unscored]:
        """Encoded item, output and correction (None if it was not asked for) of each ``(prompt, response)``."""
        keys = [json.dumps([with_corrections, *item]) for item in items]
        new: dict[str, EncodedItem] = {}
        for key, (prompt, response) in zip(keys, items, strict=True):
            if key not in self._known and key not in new:
                try:
                    new[key] = self.scorer.encoder.encode(Item(prompt, response))
                except ItemError as error:
                    self._known[key] = Unscored(str(error))
        outputs = outputs_and_corrections(
            self.scorer, list(new.values()), self._max_batch_tokens, with_corrections=with_corrections
        )
        for (key, encoded), (output, correction) in zip(new.items(), outputs, strict=True):
            self._known[key] = encoded, output, correction
        return [self._known[key] for key in keys]


class LocalScorer:
    """See ``redline.benchmark.scorers.BenchmarkScorer``."""

    def __init__(self, outputs: CachedOutputs, spec: RewardSpec, has_token_rewards: bool) -> None:
        self.has_token_rewards = has_token_rewards
        self.threshold = 0.0 if spec.mode in MODES_WITH_THRESHOLD else None
        self._outputs = outputs
        self._spec = spec

    def identity(self) -> dict[str, Any]:
        """Kind, mode and aggregate."""
        return {"kind": self._outputs.scorer.kind, "mode": self._spec.mode, "aggregate": self._spec.aggregate}

    def score(self, items: Sequence[tuple[Prompt, str]]) -> list[Scored | Unscored]:
        """The results of ``(prompt, response)`` items, in order."""
        results: list[Scored | Unscored] = []
        for found in self._outputs.of(items, with_corrections=self._spec.needs_correction):
            if isinstance(found, Unscored):
                results.append(found)
            else:
                encoded, output, correction = found
                response = self._outputs.scorer.to_rewards(output, self._spec, correction)
                results.append(Scored(response.score, response.rewards, encoded.offsets))
        return results
