"""A loaded scorer as the reward source of the PPO loop, without HTTP in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from redline.ppo import Rollout, Scored, Scores
from redline.text.alignment import align_rewards
from redline_model.encoding.items import Item
from redline_model.reward_spec import RewardSpec
from redline_model.scorer import ScoredResponse, Scorer, outputs_and_corrections

# The token rewards of a response: unchanged; divided by its length; or their sum on its last token.
Placement = Literal["tokens", "mean", "last"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)
_MAX_BATCH_TOKENS = 4096


def score_texts(
    scorer: Scorer[Any], items: Sequence[Item], spec: RewardSpec
) -> list[tuple[ScoredResponse, list[tuple[int, int]]]]:
    """The scored response of each item, and the character spans of the tokens that its rewards belong to."""
    encoded = [scorer.encoder.encode(item) for item in items]
    outputs = outputs_and_corrections(scorer, encoded, _MAX_BATCH_TOKENS, with_corrections=spec.needs_correction)
    return [
        (scorer.to_rewards(output, spec, correction), list(item.offsets))
        for (output, correction), item in zip(outputs, encoded, strict=True)
    ]


class LocalRewards:
    """A ``RewardSource`` with the rewards that ``RemoteRewards`` gets from a service of the same bundle.

    A test holds the two to be equal.
    """

    def __init__(self, scorer: Scorer[Any], spec: RewardSpec, placement: Placement = "tokens") -> None:
        self._scorer = scorer
        self._spec = spec
        self._placement = placement

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Score and token rewards of each rollout. Raises whatever the scorer raises: a failure is never a zero."""
        items = [Item(r.prompt, r.text, r.is_finished, has_only_end=not r.text and r.is_finished) for r in rollouts]
        scored: list[Scored] = []
        for rollout, (response, spans) in zip(rollouts, score_texts(self._scorer, items, self._spec), strict=True):
            rewards = align_rewards(response.rewards, spans, list(rollout.spans))
            if self._placement == "mean":
                rewards = [r / len(rewards) for r in rewards]
            elif self._placement == "last":
                rewards = [0.0] * (len(rewards) - 1) + [sum(rewards)]
            scored.append(Scored(response.score, rewards))
        return Scores(scored)
