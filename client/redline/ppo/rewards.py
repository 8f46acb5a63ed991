"""Reward sources: a Redline service, a Python function, or a weighted sum of sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from redline.client import RewardClient
from redline.errors import ProtocolError
from redline.ppo.protocols import Prompt, RewardSource, Rollout, Scored, Scores
from redline.wire import ErrorCode, ItemError, ScoreItem, ScoreOptions


class RemoteRewards:
    """Token rewards of a Redline service, one per token of the policy.

    Requests contain the policy's token spans, so policy and reward model may have different tokenizers. A response that
    was cut at the token limit is sent as unfinished and scored without an end token.

    Args:
        client: its retry policy decides how long to wait for a service that cannot be reached.
    """

    def __init__(self, client: RewardClient, *, model: str = "default", options: ScoreOptions | None = None) -> None:
        self._client = client
        self._model = model
        self._options = options or ScoreOptions()

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Score every rollout. Raises ItemsFailedError if one cannot be scored; it does not get a score of 0."""
        items = [
            ScoreItem.model_validate(
                {
                    "prompt": rollout.prompt,
                    "response": rollout.text,
                    "finished": rollout.is_finished,
                    "token_offsets": list(rollout.spans),
                }
            )
            for rollout in rollouts
        ]
        result = self._client.score(items, model=self._model, options=self._options)
        scored = [Scored(item.score, item.rewards) for item in result.scored()]
        return Scores(scored, tuple(result.digests))

    def refusals(self, prompts: Sequence[Prompt]) -> list[str | None]:
        """For each prompt the reason why the service cannot score responses to it, None if it can.

        The prompt is too long, or the chat template of the reward model rejects it. This scores a response of one
        letter, so the prompt may still be too long for a longer response. Raises what ``RewardClient.score`` raises.
        """
        items = [ScoreItem.model_validate({"prompt": prompt, "response": "a"}) for prompt in prompts]
        results = self._client.score(items, model=self._model, options=self._options).items
        codes = (ErrorCode.TOO_LONG, ErrorCode.INVALID_PROMPT)
        return [
            f"the reward model refuses the prompt: {result.error.message}"
            if isinstance(result, ItemError) and result.error.code in codes
            else None
            for result in results
        ]


class FunctionRewards:
    """Rewards from a Python function ``(rollout) -> reward``: one number, or one number per response token."""

    def __init__(self, function: Callable[[Rollout], float | Sequence[float]]) -> None:
        self._function = function

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Score every rollout. A single number becomes the reward of the last token."""
        items = []
        for rollout in rollouts:
            value = self._function(rollout)
            if isinstance(value, (int, float)):
                rewards = [0.0] * (len(rollout.response_ids) - 1) + [float(value)]
            else:
                rewards = [float(v) for v in value]
            if len(rewards) != len(rollout.response_ids):
                raise ProtocolError(f"{len(rewards)} rewards for {len(rollout.response_ids)} response ids")
            items.append(Scored(sum(rewards), rewards))
        return Scores(items)


class WeightedRewards:
    """``sum_i w_i r_i``, token by token, for competing objectives such as helpfulness and harmlessness."""

    def __init__(self, parts: Sequence[tuple[float, RewardSource]]) -> None:
        if not parts:
            raise ValueError("a weighted sum needs at least one part")
        self._parts = list(parts)

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Score every rollout. Raises the errors of the parts."""
        weighted = [(weight, part.score(rollouts)) for weight, part in self._parts]
        items = []
        for n in range(len(rollouts)):
            columns = zip(*([weight * r for r in scores.items[n].rewards] for weight, scores in weighted), strict=True)
            score = sum(weight * scores.items[n].score for weight, scores in weighted)
            items.append(Scored(score, [sum(column) for column in columns]))
        return Scores(items, _joined_digests([scores.digests for _, scores in weighted if scores.digests]))


def _joined_digests(parts: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """One identity of all parts together, "|" between them; several if a part's model was replaced while it scored."""
    steps = max(map(len, parts), default=0)
    return tuple("|".join(digests[min(n, len(digests) - 1)] for digests in parts) for n in range(steps))
