"""Where rewards come from: a service, a Python function, or a weighted sum of either."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from redline.client import RewardClient
from redline.errors import ProtocolError
from redline.ppo.protocols import Prompt, RewardSource, Rollout, Scored, Scores
from redline.wire import ErrorCode, ItemError, ScoreItem, ScoreOptions


class RemoteRewards:
    """A Redline service's token rewards on the policy's own tokens.

    The policy's token spans go along, so the two tokenizers need not be related. A response that was cut off is
    sent as unfinished and scored without its end token.

    Args:
        client: its retry policy decides how long an absent service is waited for.
    """

    def __init__(self, client: RewardClient, *, model: str = "default", options: ScoreOptions | None = None) -> None:
        self._client = client
        self._model = model
        self._options = options or ScoreOptions()

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Raises ItemsFailedError where an item cannot be scored: a failure is never a zero."""
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
        return Scores(scored, "+".join(result.digests) or None)

    def refusals(self, prompts: Sequence[Prompt]) -> list[str | None]:
        """Why the service takes no response to each prompt, None where it does: too long, or refused by its template.

        A response of one letter is scored. A prompt that leaves room for it may still be too long with a longer one.
        Raises what ``RewardClient.score`` raises.
        """
        items = [ScoreItem.model_validate({"prompt": prompt, "response": "a"}) for prompt in prompts]
        answers = self._client.score(items, model=self._model, options=self._options).items
        codes = (ErrorCode.TOO_LONG, ErrorCode.INVALID_PROMPT)
        return [
            f"the reward model refuses the prompt: {answer.error.message}"
            if isinstance(answer, ItemError) and answer.error.code in codes
            else None
            for answer in answers
        ]


class FunctionRewards:
    """A plain function ``(rollout) -> reward`` of the whole response, or one number for each response id."""

    def __init__(self, function: Callable[[Rollout], float | Sequence[float]]) -> None:
        self._function = function

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """A scalar is put on the last token."""
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
        return Scores(items, None)


class WeightedRewards:
    """``sum_i w_i r_i``, token by token: competing objectives such as helpfulness and harmlessness."""

    def __init__(self, parts: Sequence[tuple[float, RewardSource]]) -> None:
        if not parts:
            raise ValueError("a weighted sum needs at least one part")
        self._parts = list(parts)

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Raises as its parts do."""
        answers = [(weight, part.score(rollouts)) for weight, part in self._parts]
        items = []
        for n in range(len(rollouts)):
            columns = zip(*([weight * r for r in scores.items[n].rewards] for weight, scores in answers), strict=True)
            score = sum(weight * scores.items[n].score for weight, scores in answers)
            items.append(Scored(score, [sum(column) for column in columns]))
        digests = [scores.digest for _, scores in answers if scores.digest is not None]
        return Scores(items, "|".join(digests) or None)
