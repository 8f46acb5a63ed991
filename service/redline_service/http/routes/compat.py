"""Compatible endpoints: paths and formats of other RL loops and inference engines, scored by the same engine."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from redline.text.chat_markup import KNOWN_ENDS, PromptBoundaryError
from redline.wire import ErrorCode, ItemError, ItemScore, ScoreOptions, ScoreRequest
from redline_model.errors import TooLongError
from redline_service.compat.base import CompatRequest, CompatRequestModel, CompatResult, ConversationParser
from redline_service.compat.engines import ClassifyRequest, EmbeddingsRequest, VLLMPoolingRequest
from redline_service.compat.get_reward import GetRewardRequest
from redline_service.compat.llama_factory import LLaMAFactoryRequest
from redline_service.compat.nemo_gym import NeMoGymRequest
from redline_service.errors import RequestError, describe_validation
from redline_service.http.admission import REFUSALS, GuardedRoute, ModelRoute, caller_of, engine_of, time_left_s
from redline_service.http.routes.responses import count_items, json_response
from redline_service.settings import ServiceSettings

router = APIRouter(route_class=ModelRoute, responses=REFUSALS, tags=["compatible"])
session_router = APIRouter(route_class=GuardedRoute, tags=["compatible"])


def scalar_options(settings: ServiceSettings) -> ScoreOptions:
    """How the score of a response is computed for these endpoints, and what happens to prompts that are too long."""
    if settings.scalar == "calibrated":
        return ScoreOptions(calibrated=True, on_too_long=settings.dropin_too_long)
    aggregate = None if settings.scalar == "default" else settings.scalar
    return ScoreOptions(aggregate=aggregate, on_too_long=settings.dropin_too_long)


async def _score(body: CompatRequest, request: Request) -> Response:
    """Score all items and reply in the format of the caller's framework.

    If one item fails the whole request fails, because these formats have no place for an error of an item.

    Raises:
        RequestError: prompt and response cannot be told apart, or an item cannot be scored.
    """
    engine = engine_of(request)
    settings: ServiceSettings = request.app.state.settings
    # The end token of a known chat template ends only turns of that template; in other texts it is ordinary text.
    model_end = "" if engine.end_text in KNOWN_ENDS else engine.end_text
    ends = [end for end in (settings.caller_end, model_end) if end]
    try:
        if isinstance(body, CompatRequestModel):
            body.check_lengths(engine.encoder)
        items = await engine.threads.run(body.items, ConversationParser(engine.encoder, ends))
    except TooLongError as error:
        raise RequestError(ErrorCode.TOO_LONG, str(error)) from error
    except PromptBoundaryError as error:
        raise RequestError(ErrorCode.INVALID_PROMPT, str(error)) from error
    except ValidationError as error:  # a text or message of the body is not valid in an item
        raise RequestError(ErrorCode.INVALID_REQUEST, describe_validation(error)) from error
    score_request = ScoreRequest(model=engine.name, items=items, options=scalar_options(settings))
    response, timing = await engine.score(score_request, caller=caller_of(request), deadline_s=time_left_s(request))
    count_items(request, response)
    scored_items: list[ItemScore] = []
    for position, item in enumerate(response.items):
        if isinstance(item, ItemError):
            prefix = f"item {position}: " if len(response.items) > 1 else ""
            retry_after_s = 1 if item.error.retryable else None
            raise RequestError(ErrorCode(item.error.code), f"{prefix}{item.error.message}", retry_after_s)
        scored_items.append(item)
    result = CompatResult(engine.name, scored_items, response.usage.batch_tokens)
    return json_response(await engine.threads.run(_reply_json, body, result), timing)


def _reply_json(body: CompatRequest, result: CompatResult) -> str:
    return json.dumps(body.reply(result), allow_nan=False)


@router.post("/get_reward", summary="OpenRLHF, align-anything, slime")
async def get_reward(body: GetRewardRequest, request: Request) -> Response:
    """One score per sample, in the format of the framework that sent the request."""
    return await _score(body, request)


@router.post("/v1/score/evaluation", summary="LLaMA-Factory")
async def score_evaluation(body: LLaMAFactoryRequest, request: Request) -> Response:
    """One score per conversation."""
    return await _score(body, request)


@router.post("/classify", summary="vLLM and verl, or SGLang")
async def classify(body: ClassifyRequest, request: Request) -> Response:
    """One raw score per input."""
    return await _score(body, request)


@router.post("/v1/embeddings", summary="verl with SGLang")
async def embeddings(body: EmbeddingsRequest, request: Request) -> Response:
    """One raw score per input."""
    return await _score(body, request)


@router.post("/pooling", summary="vLLM; one reward per token with task token_classify")
async def pooling(body: VLLMPoolingRequest, request: Request) -> Response:
    """One reward per token of each input, or one score per input with task classify."""
    return await _score(body, request)


@router.post("/verify", summary="NeMo-Gym")
async def verify(body: NeMoGymRequest, request: Request) -> Response:
    """The request's body with its reward."""
    return await _score(body, request)


@session_router.post("/seed_session", summary="NeMo-Gym")
async def seed_session() -> dict[str, Any]:
    """Does nothing: ``/verify`` keeps no state between requests."""
    return {}
