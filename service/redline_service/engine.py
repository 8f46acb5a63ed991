"""The scoring engine: answers requests of the wire with one loaded bundle. No HTTP."""

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
from redline_model.encoding.encoder import Encoder
from redline_model.encoding.items import EncodedItem
from redline_model.errors import RedlineModelError, UnsupportedError
from redline_model.options import AGGREGATES
from redline_model.reward_spec import RewardSpec, reward_spec, spec_key
from redline_service.correction.service import CorrectionService
from redline_service.correction.wire_edits import wire_edits, without_cut_character
from redline_service.errors import RequestError, item_error
from redline_service.item_encoding import encode_item
from redline_service.scheduling.batcher import ARRIVAL_DEADLINE_SHARE, Batcher, BatchObserver
from redline_service.scheduling.jobs import JobResult, Timing
from redline_service.scheduling.thread_pool import ThreadPool

logger = logging.getLogger("redline.service")
# A request is tokenised in slices of this many characters, so that other requests have a turn in between. Each item
# counts for its texts and this many characters more.
_SLICE_CHARS = 40_000
_ITEM_CHARS = 200
# Weight of a request in the moving average of request sizes.
_MEAN_TOKENS_WEIGHT = 0.02


@dataclass(frozen=True)
class _ResolvedOptions:
    """The options of a request, with the bundle's defaults for those that it does not set."""

    spec: RewardSpec
    calibration: Calibration | None
    wants_correction: bool
    edits: EditsBy | None


def _tokenisation_slices(items: Sequence[ScoreItem]) -> Iterator[Sequence[ScoreItem]]:
    """``items`` in slices that take a few milliseconds to tokenise, at least one item per slice."""
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
    """Tokens of one pass that keep a device busy. More only costs memory and latency (docs/results/performance.md)."""
    return 2048 if device == "cpu" else 16384


class Engine:
    """Scores and corrects requests. Call ``start`` before use and ``stop`` after it, both in a running event loop.

    Args:
        name: under which the model is served; requests may also name it "default".
        max_items: items of one request.
        max_batch_tokens: tokens of one pass; None: chosen for the device.
        max_queued_tokens: further requests are refused beyond this number.
        on_batch: called after each pass with its items, its tokens and its seconds.

    ``has_scored``: whether the model has scored an item, so that it is ready.
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
        self._mean_request_tokens = 0.0  # a moving average
        self._scorer = bundle.scorer
        self.batcher = Batcher(
            self._scorer,
            max_batch_tokens=max_batch_tokens or default_batch_tokens(self._scorer.model.device.type),
            max_queued_tokens=max_queued_tokens,
            on_batch=on_batch,
        )
        self.threads = ThreadPool(min(4, os.cpu_count() or 1), "redline-text")
        self._correction_service = CorrectionService(self._scorer, self.batcher, self.threads, self.fingerprint)

    @property
    def encoder(self) -> Encoder:
        """Encodes prompts and responses as token ids."""
        return self._scorer.encoder

    @property
    def prefix_cache_bytes(self) -> int:
        """Memory of the prefix caches: keys and values of prompts that are kept between passes."""
        return sum(cache.bytes for cache in self._scorer.planner.prefix_caches)

    @property
    def end_text(self) -> str | None:
        """The text of the model's own end token."""
        return self._scorer.encoder.tokenizer.eos_token  # type: ignore[no-any-return]

    async def start(self) -> None:
        """Start the batcher and score one item, so that the service is ready only if scoring works.

        Raises:
            RequestError: NOT_READY, the model cannot score that item.
        """
        self.batcher.start()
        items = [ScoreItem(prompt="Hello", response="Hi")]
        response, _ = await self.score(ScoreRequest(model=self.name, items=items))
        if isinstance(response.items[0], ItemError):
            raise RequestError(ErrorCode.NOT_READY, f"the model cannot score: {response.items[0].error.message}")
        self.has_scored = True

    async def stop(self, timeout_s: float = 2.0) -> None:
        """Stop the batcher and the threads. ``timeout_s``: how long to wait for work that cannot be interrupted."""
        await self.batcher.stop(timeout_s)
        if not self.threads.stop(timeout_s):
            logger.error(
                "tokenising a text did not end within %g s; the process exits without waiting for it", timeout_s
            )

    def check_load(self, caller: Hashable, deadline_s: float) -> None:
        """Refuse a request of average size that could not be answered in time, before its body is read.

        Raises:
            OverloadedError: see ``Batcher.run``.
        """
        tokens = self._mean_request_tokens
        self.batcher.admit(
            tokens,
            caller,
            deadline_s,
            preparing_tokens=self.threads.pending * tokens,
            deadline_share=ARRIVAL_DEADLINE_SHARE,
        )

    def serves(self, name: str) -> bool:
        """Whether ``name`` is a name of this model."""
        return name in {"default", self.name}

    def info(self) -> ModelInfo:
        """Description of the model for callers: kind, digest, limits, defaults, calibration, device."""
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
            default_score_mode=default.mode_of_score,
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
        """Score the items of a request; an item that cannot be scored has an error as its result.

        Args:
            caller: who sent the request; callers share the model evenly.
            deadline_s: seconds from now after which the caller no longer needs the result.

        Raises:
            RequestError: the whole request is refused.
            OverloadedError: the request cannot be answered in time.
        """
        resolved = self._resolve_options(request)
        started = time.perf_counter()
        encoded_items: list[EncodedItem | Exception] = []
        for part in _tokenisation_slices(request.items):  # other requests' slices may run in between
            encoded_items += await self.threads.run(self._encode_all, part, request.options.on_too_long)
        tokenize_s = time.perf_counter() - started
        valid_items = [item for item in encoded_items if isinstance(item, EncodedItem)]
        lengths = [self._scorer.planner.length(item) for item in valid_items]
        self._mean_request_tokens += _MEAN_TOKENS_WEIGHT * (sum(lengths) - self._mean_request_tokens)
        results = await self.batcher.run(
            valid_items,
            lengths,
            wants_correction=resolved.wants_correction or resolved.spec.needs_correction,
            caller=caller,
            deadline_s=deadline_s - tokenize_s,
        )
        items = await self.threads.run(self._item_results, request, resolved, encoded_items, results)
        response = ScoreResponse(
            model=self._model_ref(),
            options=AppliedOptions(
                mode=resolved.spec.mode,
                score_mode=resolved.spec.mode_of_score,
                aggregate=resolved.spec.aggregate,
                calibrated=resolved.calibration is not None,
            ),
            items=items,
            usage=Usage(scored_tokens=sum(len(item.target_ids) for item in valid_items), batch_tokens=sum(lengths)),
        )
        queue_s = max((result.queued_s for result in results), default=0.0)
        inference_s = max((result.inference_s for result in results), default=0.0)
        return response, Timing(tokenize_s, queue_s, inference_s)

    async def correct(
        self, request: CorrectRequest, *, caller: Hashable = None, deadline_s: float = math.inf
    ) -> tuple[CorrectResponse, Timing]:
        """Correct the items of a request; arguments and errors as in ``score``."""
        spec = self._resolve_options(request).spec
        items, usage, timing = await self._correction_service.run(request, spec, caller=caller, deadline_s=deadline_s)
        options = AppliedOptions(
            mode=spec.mode, score_mode=spec.mode_of_score, aggregate=spec.aggregate, calibrated=False
        )
        return CorrectResponse(model=self._model_ref(), options=options, items=items, usage=usage), timing

    def _model_ref(self) -> ModelRef:
        return ModelRef(name=self.name, digest=self.bundle.digest, kind=self._scorer.kind)

    def _resolve_options(self, request: ScoreRequest | CorrectRequest) -> _ResolvedOptions:
        options = ScoreOptions(correction=True) if isinstance(request, CorrectRequest) else request.options
        if not self.serves(request.model):
            raise RequestError(
                ErrorCode.MODEL_NOT_FOUND,
                f"this service has no model {request.model!r}; its model is {self.name!r}",
            )
        if len(request.items) > self.max_items:
            raise RequestError(
                ErrorCode.REQUEST_TOO_LARGE,
                f"the request has {len(request.items)} items; at most {self.max_items} are allowed",
            )
        try:
            spec = reward_spec(self._scorer, options.mode, options.aggregate, options.score_mode)
            if (options.correction or spec.needs_correction) and not self._scorer.can_correct:
                raise UnsupportedError(f"a {self._scorer.kind} model cannot write corrections")
        except UnsupportedError as error:
            raise RequestError(ErrorCode.UNSUPPORTED, str(error)) from error
        calibration = None
        if options.calibrated:
            key = spec_key(self._scorer, spec)
            fit = self.bundle.manifest.calibration.get(key)
            if fit is None:
                raise RequestError(ErrorCode.UNSUPPORTED, f"the bundle has no calibration for {key}")
            calibration = Calibration(**fit.model_dump())
        return _ResolvedOptions(spec, calibration, options.correction, options.edits)

    def _encode_all(self, items: Sequence[ScoreItem], on_too_long: OnTooLong) -> list[EncodedItem | Exception]:
        return [encode_item(item, on_too_long, self._scorer.encoder, self.fingerprint) for item in items]

    def _item_results(
        self,
        request: ScoreRequest,
        resolved: _ResolvedOptions,
        encoded_items: list[EncodedItem | Exception],
        results: list[JobResult],
    ) -> list[ItemResult]:
        """One result per item of the request. ``results``: those of the items that could be encoded."""
        remaining = iter(results)
        return [
            ItemError(id=item.id, error=item_error(encoded))
            if isinstance(encoded, Exception)
            else self._item_result(item, resolved, encoded, next(remaining))
            for item, encoded in zip(request.items, encoded_items, strict=True)
        ]

    def _item_result(
        self, item: ScoreItem, resolved: _ResolvedOptions, encoded: EncodedItem, result: JobResult
    ) -> ItemResult:
        def failed(error: Exception) -> ItemError:
            return ItemError(id=item.id, error=item_error(error))

        if isinstance(result.output, Exception):
            return failed(result.output)
        if isinstance(result.correction, Exception):
            return failed(result.correction)
        try:
            scored = self._scorer.to_rewards(result.output, resolved.spec, result.correction)
        except RedlineModelError as error:
            return failed(error)
        score, rewards, offsets = scored.score, scored.rewards, encoded.offsets
        if item.token_offsets is not None:
            rewards, offsets = align_rewards(rewards, offsets, item.token_offsets), item.token_offsets
        if resolved.calibration is not None:
            temperature = resolved.calibration.temperature
            score = (score - resolved.calibration.mean) / temperature
            rewards = [reward / temperature for reward in rewards]
        item_score = ItemScore(
            id=item.id,
            score=score,
            rewards=rewards,
            offsets=offsets,
            diverged_at=scored.diverged_at,
            truncated=encoded.is_truncated,
        )
        if result.correction is None or not resolved.wants_correction:
            return item_score
        is_complete = result.correction.is_complete
        correction = without_cut_character(result.correction.text, is_complete=is_complete)
        return item_score.model_copy(
            update={
                "correction": correction,
                "correction_complete": is_complete,
                "edits": wire_edits(encoded.text, correction, by=resolved.edits),
            }
        )
