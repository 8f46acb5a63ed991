"""A request in the wire's words -> an answer in the wire's words, around one loaded bundle."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from redline.text.alignment import align_rewards
from redline.wire import (
    AppliedOptions,
    Calibration,
    CPUSpeeds,
    EditsBy,
    ErrorCode,
    ItemError,
    ItemResult,
    ItemScore,
    ModelInfo,
    ModelLimits,
    ModelRef,
    OnTooLong,
    ScoreItem,
    ScoreOptions,
    ScoreRequest,
    ScoreResponse,
    Usage,
)
from redline.wire.correction import CorrectRequest, CorrectResponse
from redline_model.bundle.bundle import Bundle
from redline_model.encoding.encoder import EncodedItem, Encoder
from redline_model.errors import RedlineModelError, UnsupportedError
from redline_model.options import AGGREGATES
from redline_model.reward_spec import RewardSpec, reward_spec, spec_key
from redline_service.correction.service import CorrectionService
from redline_service.correction.wire_edits import readable, wire_edits
from redline_service.errors import RequestError, item_error
from redline_service.item_encoding import encoded
from redline_service.scheduling.batcher import PLANNED_SHARE, Batcher, BatchObserver
from redline_service.scheduling.jobs import JobResult, Timing
from redline_service.scheduling.thread_pool import ThreadPool

logger = logging.getLogger("redline.service")
# Characters that are tokenised before another request's turn comes; an item counts as this many at least.
_SLICE_CHARS = 40_000
_ITEM_CHARS = 200


# of each request in the average size of all
_USUAL_WEIGHT = 0.02


@dataclass(frozen=True)
class _Plan:
    """The options of a request after the bundle's defaults were filled in."""

    spec: RewardSpec
    calibration: Calibration | None
    wants_correction: bool
    edits: EditsBy | None


def _slices(items: Sequence[ScoreItem]) -> Iterator[Sequence[ScoreItem]]:
    """``items`` in runs that take a few milliseconds to tokenise each, at least one item a run."""
    start = size = 0
    for end, item in enumerate(items, 1):
        texts = [item.prompt, item.response] if isinstance(item.prompt, str) else [item.response]
        if isinstance(item.prompt, list):
            texts += [message.content for message in item.prompt]
        size += _ITEM_CHARS + sum(len(text or "") for text in texts)
        if size >= _SLICE_CHARS or end == len(items):
            yield items[start:end]
            start, size = end, 0


def default_batch_tokens(device: str) -> int:
    """Tokens of one pass that keep a device busy; more only adds memory and waiting (docs/results/performance.md)."""
    return 2048 if device == "cpu" else 16384


class Engine:
    """Scores requests. ``start`` before use, ``stop`` after; both need a running event loop.

    Args:
        max_batch_tokens: tokens of one pass; None takes what suits the device.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        name: str = "default",
        max_items: int = 1024,
        max_batch_tokens: int | None = None,
        max_queued_tokens: int = 2_000_000,
        on_batch: BatchObserver = lambda items, tokens, seconds: None,
    ) -> None:
        self.bundle = bundle
        self.name = name
        self.max_items = max_items
        self.fingerprint = bundle.tokenizer_fingerprint
        self.has_scored = False
        self._usual_tokens = 0.0  # of a request, a moving average
        self._scorer = bundle.scorer
        self.batcher = Batcher(
            self._scorer,
            max_batch_tokens=max_batch_tokens or default_batch_tokens(self._scorer.model.device.type),
            max_queued_tokens=max_queued_tokens,
            on_batch=on_batch,
        )
        self.threads = ThreadPool(min(4, os.cpu_count() or 1), "redline-text")
        self._corrector = CorrectionService(self._scorer, self.batcher, self.threads, self.fingerprint)

    @property
    def encoder(self) -> Encoder:
        """What makes ids of text."""
        return self._scorer.encoder

    @property
    def prefix_cache_bytes(self) -> int:
        """Memory of the keys and values of prompts that are kept between passes."""
        return sum(cache.bytes for cache in self._scorer.planner.prefix_caches)

    @property
    def end_text(self) -> str | None:
        """The text of the model's own end token."""
        return self._scorer.encoder.tokenizer.eos_token  # type: ignore[no-any-return]

    async def start(self) -> None:
        """Start the worker and score one item, so that readiness means that scoring works.

        Raises:
            RequestError: the model cannot score even that.
        """
        self.batcher.start()
        items = [ScoreItem(prompt="Hello", response="Hi")]
        response, _ = await self.score(ScoreRequest(model=self.name, items=items))
        if isinstance(response.items[0], ItemError):
            raise RequestError(ErrorCode.NOT_READY, f"the model cannot score: {response.items[0].error.message}")
        self.has_scored = True

    async def stop(self, timeout_s: float = 2.0) -> None:
        """Stop the worker. ``timeout_s``: how long work that cannot be interrupted is waited for."""
        await self.batcher.stop(timeout_s)
        if not self.threads.stop(timeout_s):
            logger.error("a text did not end within %g s of being read; the process ends without it", timeout_s)

    def check_load(self, caller: Hashable, deadline_s: float) -> None:
        """Refuse a request of usual size that could not be answered in time; of what it asks nothing is known yet.

        Raises:
            OverloadedError: see ``Batcher.run``.
        """
        preparing = self.threads.pending * self._usual_tokens
        self.batcher.admit(self._usual_tokens, caller, deadline_s, preparing=preparing, share=PLANNED_SHARE)

    def knows(self, name: str) -> bool:
        """Whether ``name`` means this model."""
        return name in {"default", self.name}

    def info(self) -> ModelInfo:
        """What a caller may know about the model."""
        manifest, scorer = self.bundle.manifest, self._scorer
        default = reward_spec(scorer)
        load_options = self.bundle.load_options
        cpu_speeds = load_options.cpu_precision
        return ModelInfo(
            name=self.name,
            digest=self.bundle.digest,
            kind=scorer.kind,
            base_model=manifest.base_model,
            tokenizer_fingerprint=self.fingerprint,
            limits=ModelLimits(max_tokens=scorer.encoder.max_tokens or 0, max_items=self.max_items),
            default_mode=default.mode,
            default_aggregate=default.aggregate,
            modes=list(scorer.modes),
            aggregates=list(AGGREGATES),
            calibration={k: Calibration(**fit.model_dump()) for k, fit in manifest.calibration.items()},
            dtype=str(scorer.model.dtype).removeprefix("torch."),
            device=str(scorer.model.device),
            quantization=load_options.quantization,
            cpu_precision=None if cpu_speeds is None else CPUSpeeds(**cpu_speeds._asdict()),
        )

    async def score(
        self, request: ScoreRequest, *, caller: Hashable = None, deadline_s: float = math.inf
    ) -> tuple[ScoreResponse, Timing]:
        """Answer a request; items that cannot be scored carry their own error.

        Args:
            caller: who is asking; callers share the model evenly.
            deadline_s: seconds from now after which the answer is worth nothing.

        Raises:
            RequestError: the request as a whole is refused.
            OverloadedError: it cannot be answered in time.
        """
        plan = self._plan(request)
        started = time.perf_counter()
        ready: list[EncodedItem | Exception] = []
        for part in _slices(request.items):  # others' texts come in between
            ready += await self.threads.run(self._encode_all, part, request.options.on_too_long)
        tokenized = time.perf_counter()
        good = [one for one in ready if isinstance(one, EncodedItem)]
        lengths = [self._scorer.planner.length(item) for item in good]
        self._usual_tokens += _USUAL_WEIGHT * (sum(lengths) - self._usual_tokens)
        results = await self.batcher.run(
            good,
            lengths,
            wants_correction=plan.wants_correction,
            caller=caller,
            deadline_s=deadline_s - (tokenized - started),
        )
        items = await self.threads.run(self._answer_all, request, plan, ready, results)
        response = ScoreResponse(
            model=self._ref(),
            options=AppliedOptions(
                mode=plan.spec.mode,
                aggregate=plan.spec.aggregate,
                calibrated=plan.calibration is not None,
            ),
            items=items,
            usage=Usage(scored_tokens=sum(len(i.target_ids) for i in good), batch_tokens=sum(lengths)),
        )
        queue_s = max((o.queued_s for o in results), default=0.0)
        inference_s = max((o.inference_s for o in results), default=0.0)
        return response, Timing(tokenized - started, queue_s, inference_s)

    async def correct(
        self, request: CorrectRequest, *, caller: Hashable = None, deadline_s: float = math.inf
    ) -> tuple[CorrectResponse, Timing]:
        """Rewrite the items of a request; arguments and errors as in ``score``."""
        spec = self._plan(request).spec
        items, usage, timing = await self._corrector.run(request, spec, caller=caller, deadline_s=deadline_s)
        options = AppliedOptions(mode=spec.mode, aggregate=spec.aggregate, calibrated=False)
        return CorrectResponse(model=self._ref(), options=options, items=items, usage=usage), timing

    def _ref(self) -> ModelRef:
        return ModelRef(name=self.name, digest=self.bundle.digest, kind=self._scorer.kind)

    def _plan(self, request: ScoreRequest | CorrectRequest) -> _Plan:
        options = ScoreOptions(correction=True) if isinstance(request, CorrectRequest) else request.options
        if not self.knows(request.model):
            raise RequestError(
                ErrorCode.MODEL_NOT_FOUND,
                f"no model {request.model!r} is served here; there is {self.name!r}",
            )
        if len(request.items) > self.max_items:
            raise RequestError(
                ErrorCode.REQUEST_TOO_LARGE,
                f"{len(request.items)} items; a request may hold {self.max_items}",
            )
        try:
            spec = reward_spec(self._scorer, options.mode, options.aggregate)
            if options.correction and not self._scorer.can_correct:
                raise UnsupportedError(f"a {self._scorer.kind} model writes no correction")
        except UnsupportedError as error:
            raise RequestError(ErrorCode.UNSUPPORTED, str(error)) from error
        calibration = None
        if options.calibrated:
            key = spec_key(self._scorer, spec)
            fit = self.bundle.manifest.calibration.get(key)
            if fit is None:
                raise RequestError(ErrorCode.UNSUPPORTED, f"this bundle was not calibrated for {key}")
            calibration = Calibration(**fit.model_dump())
        return _Plan(spec, calibration, options.correction, options.edits)

    def _encode_all(self, items: Sequence[ScoreItem], on_too_long: OnTooLong) -> list[EncodedItem | Exception]:
        return [encoded(item, on_too_long, self._scorer.encoder, self.fingerprint) for item in items]

    def _answer_all(
        self,
        request: ScoreRequest,
        plan: _Plan,
        ready: list[EncodedItem | Exception],
        results: list[JobResult],
    ) -> list[ItemResult]:
        rest = iter(results)
        return [
            ItemError(id=item.id, error=item_error(one))
            if isinstance(one, Exception)
            else self._answer(item, plan, one, next(rest))
            for item, one in zip(request.items, ready, strict=True)
        ]

    def _answer(self, item: ScoreItem, plan: _Plan, ready: EncodedItem, result: JobResult) -> ItemResult:
        def failed(error: Exception) -> ItemError:
            return ItemError(id=item.id, error=item_error(error))

        if isinstance(result.output, Exception):
            return failed(result.output)
        if isinstance(result.correction, Exception):
            return failed(result.correction)
        try:
            scored = self._scorer.to_rewards(result.output, plan.spec)
        except RedlineModelError as error:
            return failed(error)
        score, rewards, offsets = scored.score, scored.rewards, ready.offsets
        if item.token_offsets is not None:
            rewards, offsets = align_rewards(rewards, offsets, item.token_offsets), item.token_offsets
        if plan.calibration is not None:
            scale = plan.calibration.temperature
            score, rewards = (score - plan.calibration.mean) / scale, [r / scale for r in rewards]
        item_score = ItemScore(
            id=item.id,
            score=score,
            rewards=rewards,
            offsets=offsets,
            diverged_at=scored.diverged_at,
            truncated=ready.is_truncated,
        )
        if result.correction is None:
            return item_score
        is_complete = result.correction.is_complete
        correction = readable(result.correction.text, is_complete=is_complete)
        return item_score.model_copy(
            update={
                "correction": correction,
                "correction_complete": is_complete,
                "edits": wire_edits(ready.text, correction, by=plan.edits),
            }
        )
