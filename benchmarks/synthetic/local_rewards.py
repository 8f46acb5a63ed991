"""A loaded scorer as the PPO loop's reward source, without the wire between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from redline.ppo import Rollout, Scored, Scores
from redline.text.alignment import align_rewards
from redline_model.encoding.encoder import Item
from redline_model.reward_spec import RewardSpec
from redline_model.scorer import ScoredResponse, Scorer, forward_all

# how a response's rewards are laid on its tokens: as read; divided by its length; or their sum on the last token
Placing = Literal["tokens", "mean", "last"]
PLACINGS: tuple[Placing, ...] = get_args(Placing)
_PASS_TOKENS = 4096


def score_texts(
    scorer: Scorer[Any], items: Sequence[Item], spec: RewardSpec
) -> list[tuple[ScoredResponse, list[tuple[int, int]]]]:
    """Judgements of ``items`` and the spans of the tokens they are about."""
    encoded = [scorer.encoder.encode(item) for item in items]
    outputs = forward_all(scorer, encoded, _PASS_TOKENS)
    return [(scorer.to_rewards(m, spec), list(e.offsets)) for m, e in zip(outputs, encoded, strict=True)]


class LocalRewards:
    """What ``RemoteRewards`` gives against a service of the same bundle: a test holds them to be equal."""

    def __init__(self, scorer: Scorer[Any], spec: RewardSpec, placing: Placing = "tokens") -> None:
        self._scorer = scorer
        self._reading = spec
        self._placing = placing

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Raises as the scorer does: a failure is never a zero."""
        items = [Item(r.prompt, r.text, r.is_finished, has_only_end=not r.text and r.is_finished) for r in rollouts]
        scored = []
        for rollout, (scored, spans) in zip(rollouts, score_texts(self._scorer, items, self._reading), strict=True):
            rewards = align_rewards(scored.rewards, spans, list(rollout.spans))
            if self._placing == "mean":
                rewards = [r / len(rewards) for r in rewards]
            elif self._placing == "last":
                rewards = [0.0] * (len(rewards) - 1) + [sum(rewards)]
            scored.append(Scored(scored.score, rewards))
        return Scores(scored, None)
