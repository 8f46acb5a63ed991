"""A fake Redline service for tests of code that calls one: no server, no model, no network.

    from redline import RewardClient
    from redline.testing import FakeService

    client = RewardClient(transport=FakeService(lambda word: float("sorry" not in word)).transport)

Its rewards are a simple function of the text: one token per word (with the white space before it), and the end token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from statistics import fmean

import httpx

from redline.text.alignment import align_rewards, check_offsets
from redline.wire import (
    CORRECT_PATH,
    MODELS_PATH,
    READY_PATH,
    SCORE_PATH,
    AppliedOptions,
    Edit,
    ErrorBody,
    ErrorCode,
    ErrorResponse,
    ItemError,
    ItemResult,
    ItemScore,
    ModelInfo,
    ModelLimits,
    ModelList,
    ModelRef,
    ResponseItem,
    ScoreItem,
    ScoreOptions,
    ScoreRequest,
    ScoreResponse,
    Usage,
)
from redline.wire.correction import (
    CorrectionResult,
    CorrectOptions,
    CorrectRequest,
    CorrectResponse,
    Ended,
    ItemCorrection,
)

_AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "sum": sum,
    "mean": fmean,
    "last": lambda rewards: rewards[-1],
}


class FakeService:
    """Answers ``/v1/score``, ``/v1/correct``, ``/v1/models`` and ``/readyz`` like a service.

    Args:
        reward: function from a word of the response to its reward.
        end_reward: reward of the end token.
        rewrite: function from a response to its correction; by default the response itself.
        digest: digest of its weights, with or without ``sha256:``; assign another one to simulate a changed model.

    ``requests`` and ``corrections`` are the requests received by the two endpoints. The default aggregate is ``sum``;
    every mode is accepted and gives the same rewards, and calibration changes nothing.
    """

    def __init__(
        self,
        reward: Callable[[str], float],
        *,
        end_reward: float = 0.0,
        rewrite: Callable[[str], str] = lambda response: response,
        digest: str = "sha256:fake",
    ) -> None:
        self._reward = reward
        self._end_reward = end_reward
        self._rewrite = rewrite
        self.digest = digest
        self.requests: list[ScoreRequest] = []
        self.corrections: list[CorrectRequest] = []

    @property
    def transport(self) -> httpx.MockTransport:
        """For ``RewardClient(transport=...)`` and ``AsyncRewardClient(transport=...)`` ."""
        return httpx.MockTransport(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == READY_PATH:
            return httpx.Response(200, json={"status": "ready"})
        if request.url.path == MODELS_PATH:
            return httpx.Response(200, json=ModelList(models=[self._info("default")]).model_dump(mode="json"))
        if request.url.path.startswith(f"{MODELS_PATH}/"):
            name = request.url.path.removeprefix(f"{MODELS_PATH}/")
            return httpx.Response(200, json=self._info(name).model_dump(mode="json"))
        answer: ScoreResponse | CorrectResponse
        usage = Usage(scored_tokens=0, batch_tokens=0)
        if request.url.path == SCORE_PATH:
            score_request = ScoreRequest.model_validate(json.loads(request.content))
            self.requests.append(score_request)
            if score_request.options.aggregate not in {None, *_AGGREGATES}:
                return _refusal(
                    422, ErrorCode.UNSUPPORTED, f"the fake has no aggregate {score_request.options.aggregate!r}"
                )
            items = [self._score(item, score_request.options) for item in score_request.items]
            usage.scored_tokens = sum(len(item.rewards) for item in items if isinstance(item, ItemScore))
            options = AppliedOptions(
                mode=score_request.options.mode,
                aggregate=score_request.options.aggregate or "sum",
                calibrated=score_request.options.calibrated,
            )
            answer = ScoreResponse(model=self._model(score_request.model), options=options, items=items, usage=usage)
        elif request.url.path == CORRECT_PATH:
            correct_request = CorrectRequest.model_validate(json.loads(request.content))
            self.corrections.append(correct_request)
            corrected = [self._correct(item, correct_request.options) for item in correct_request.items]
            options = AppliedOptions(mode=None, aggregate="sum", calibrated=False)
            answer = CorrectResponse(
                model=self._model(correct_request.model), options=options, items=corrected, usage=usage
            )
        else:
            return _refusal(404, ErrorCode.NOT_FOUND, "the fake has no such endpoint")
        return httpx.Response(200, json=answer.model_dump(mode="json", exclude_none=True))

    def _info(self, name: str) -> ModelInfo:
        return ModelInfo(
            name=name,
            digest=self._digest(),
            kind="seq2seq",
            base_model="fake",
            tokenizer_fingerprint="sha256:words",
            limits=ModelLimits(max_tokens=0, max_items=1024),
            default_aggregate="sum",
            modes=[],
            aggregates=list(_AGGREGATES),
            calibration={},
            dtype="float32",
            device="cpu",
        )

    def _model(self, name: str) -> ModelRef:
        return ModelRef(name=name, digest=self._digest(), kind="seq2seq")

    def _digest(self) -> str:
        return self.digest if self.digest.startswith("sha256:") else f"sha256:{self.digest}"

    def _score(self, item: ScoreItem, options: ScoreOptions) -> ItemResult:
        score = self._score_response(item)
        if not isinstance(score, ItemScore):
            return score
        score.score = _AGGREGATES[options.aggregate or "sum"](score.rewards)
        if options.correction:
            response = item.response or ""
            score.correction, score.correction_complete = self._rewrite(response), True
            score.edits = _edits(response, score.correction)
        return score

    def _correct(self, item: ResponseItem, options: CorrectOptions) -> CorrectionResult:
        before = self._score_response(ScoreItem.model_validate(item.payload()))
        if isinstance(before, ItemError):
            return before
        rewrites = [item.response or ""]
        ended: Ended | None = None
        while ended is None:
            rewrites.append(self._rewrite(rewrites[-1]))
            if rewrites[-1] in rewrites[:-1]:
                ended = "fixed_point" if rewrites[-1] == rewrites[-2] else "cycle"
            elif not rewrites[-1]:
                ended = "empty"
            elif len(rewrites) > options.max_rounds:
                ended = "max_rounds"
        first, last = rewrites[0], rewrites[-1]
        after = self._score_response(ScoreItem(prompt=item.prompt or "", response=last))
        has_score_after = options.score_after or last in rewrites[:-1]
        return ItemCorrection(
            id=item.id,
            correction=last,
            ended=ended,
            rounds=len(rewrites) - 1,
            edits=_edits(first, last),
            score_before=before.score,
            score_after=after.score if isinstance(after, ItemScore) and has_score_after else None,
        )

    def _score_response(self, item: ScoreItem) -> ItemResult:
        text = item.response or ""
        if not text and not item.token_offsets:
            return ItemError(id=item.id, error=ErrorBody.of(ErrorCode.EMPTY_RESPONSE, "the response is empty"))
        spans = [match.span() for match in re.finditer(r"\s*\S+", text)]
        rewards = [self._reward(text[start:end].strip()) for start, end in spans]
        if item.finished:
            spans.append((len(text), len(text)))
            rewards.append(self._end_reward)
        if not spans and item.token_offsets is None:
            return ItemError(id=item.id, error=ErrorBody.of(ErrorCode.EMPTY_RESPONSE, "the response has no words"))
        if item.token_offsets is not None:
            problem = check_offsets(item.token_offsets, text) if text else None
            if problem is not None:
                return ItemError(id=item.id, error=ErrorBody.of(ErrorCode.BAD_OFFSETS, problem))
            rewards, spans = align_rewards(rewards, spans, item.token_offsets), list(item.token_offsets)
        return ItemScore(id=item.id, score=sum(rewards), rewards=rewards, offsets=spans)


def _edits(before: str, after: str) -> list[Edit]:
    return [] if before == after else [Edit(op="replace", start=0, end=len(before), text=after)]


def _refusal(status: int, code: ErrorCode, message: str) -> httpx.Response:
    return httpx.Response(status, json=ErrorResponse(error=ErrorBody.of(code, message)).model_dump())
