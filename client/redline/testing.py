"""A stand-in for a Redline service, for tests of code that calls one: no server, no model, no network.

    from redline import RewardClient
    from redline.testing import FakeService

    client = RewardClient(transport=FakeService(lambda word: float("sorry" not in word)).transport)

Its rewards are a visible function of the text: one token a word (white space before it included), and the end token.
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
    """Answers ``/v1/score``, ``/v1/correct``, ``/v1/models`` and ``/readyz`` as a service would.

    Args:
        reward: of each word of a response.
        end_reward: of ending there.
        rewrite: of a whole response; by default every response stays as it is.
        digest: what it calls its weights, with or without ``sha256:``; set it anew to play a swapped model.

    ``requests`` and ``corrections`` are what it was asked on the two paths. It aggregates as it is asked, by ``sum`` if
    it is not, calls any mode its own, and its calibration leaves scores as they are.
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
        """For ``RewardClient(transport=...)`` and ``AsyncRewardClient(transport=...)`` alike."""
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
            asked = ScoreRequest.model_validate(json.loads(request.content))
            self.requests.append(asked)
            if asked.options.aggregate not in {None, *_AGGREGATES}:
                return _refusal(422, ErrorCode.UNSUPPORTED, f"the fake has no aggregate {asked.options.aggregate!r}")
            items = [self._score(item, asked.options) for item in asked.items]
            usage.scored_tokens = sum(len(item.rewards) for item in items if isinstance(item, ItemScore))
            options = AppliedOptions(
                mode=asked.options.mode,
                aggregate=asked.options.aggregate or "sum",
                calibrated=asked.options.calibrated,
            )
            answer = ScoreResponse(model=self._model(asked.model), options=options, items=items, usage=usage)
        elif request.url.path == CORRECT_PATH:
            wanted = CorrectRequest.model_validate(json.loads(request.content))
            self.corrections.append(wanted)
            corrected = [self._correct(item, wanted.options) for item in wanted.items]
            options = AppliedOptions(mode=None, aggregate="sum", calibrated=False)
            answer = CorrectResponse(model=self._model(wanted.model), options=options, items=corrected, usage=usage)
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
        score = self._judge(item)
        if not isinstance(score, ItemScore):
            return score
        score.score = _AGGREGATES[options.aggregate or "sum"](score.rewards)
        if options.correction:
            response = item.response or ""
            score.correction, score.correction_complete = self._rewrite(response), True
            score.edits = _edits(response, score.correction)
        return score

    def _correct(self, item: ResponseItem, options: CorrectOptions) -> CorrectionResult:
        before = self._judge(ScoreItem.model_validate(item.payload()))
        if isinstance(before, ItemError):
            return before
        texts = [item.response or ""]
        ended: Ended | None = None
        while ended is None:
            texts.append(self._rewrite(texts[-1]))
            if texts[-1] in texts[:-1]:
                ended = "fixed_point" if texts[-1] == texts[-2] else "cycle"
            elif not texts[-1]:
                ended = "empty"
            elif len(texts) > options.max_rounds:
                ended = "max_rounds"
        first, last = texts[0], texts[-1]
        after = self._judge(ScoreItem(prompt=item.prompt or "", response=last))
        is_told = options.score_after or last in texts[:-1]
        return ItemCorrection(
            id=item.id,
            correction=last,
            ended=ended,
            rounds=len(texts) - 1,
            edits=_edits(first, last),
            score_before=before.score,
            score_after=after.score if isinstance(after, ItemScore) and is_told else None,
        )

    def _judge(self, item: ScoreItem) -> ItemResult:
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
