"""The endpoints that existing RL loops and engines' clients know, on the one scorer."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from redline.text.chat_markup import KNOWN_ENDS, PromptBoundaryError
from redline.wire import ErrorCode, ItemError, ItemScore, ScoreOptions, ScoreRequest
from redline_model.errors import TooLongError
from redline_service.compat.base import CompatBody, CompatRequest, ConversationParser, ScoredBatch
from redline_service.compat.engines import ClassifyBody, EmbeddingsBody, VLLMPoolingBody
from redline_service.compat.get_reward import GetRewardBody
from redline_service.compat.llama_factory import LLaMAFactoryBody
from redline_service.compat.nemo_gym import NeMoGymBody
from redline_service.errors import RequestError, describe_validation
from redline_service.http.admission import REFUSALS, GuardedRoute, ModelRoute, caller_of, engine_of, time_left_s
from redline_service.http.routes.responses import count, json_response
from redline_service.settings import ServiceSettings

router = APIRouter(route_class=ModelRoute, responses=REFUSALS, tags=["drop-in"])
sessions = APIRouter(route_class=GuardedRoute, tags=["drop-in"])


def scalar_options(settings: ServiceSettings) -> ScoreOptions:
    """How callers that take one number get it, and what happens to prompts that are too long."""
    if settings.scalar == "calibrated":
        return ScoreOptions(calibrated=True, on_too_long=settings.dropin_too_long)
    aggregate = None if settings.scalar == "default" else settings.scalar
    return ScoreOptions(aggregate=aggregate, on_too_long=settings.dropin_too_long)


async def _answer(body: CompatRequest, request: Request) -> Response:
    """One number for everything that was asked, or a refusal of all of it: a failure is never a number.

    Raises:
        RequestError: the border between prompt and response cannot be told, or an item cannot be scored.
    """
    engine = engine_of(request)
    settings: ServiceSettings = request.app.state.settings
    # a known end token ends its own template's turns alone: elsewhere it is text
    own = "" if engine.end_text in KNOWN_ENDS else engine.end_text
    ends = [end for end in (settings.caller_end, own) if end]
    try:
        if isinstance(body, CompatBody):
            body.check_lengths(engine.encoder)
        items = await engine.threads.run(body.items, ConversationParser(engine.encoder, ends))
    except TooLongError as error:
        raise RequestError(ErrorCode.TOO_LONG, str(error)) from error
    except PromptBoundaryError as error:
        raise RequestError(ErrorCode.INVALID_PROMPT, str(error)) from error
    except ValidationError as error:  # a text of the body that makes no item
        raise RequestError(ErrorCode.INVALID_REQUEST, describe_validation(error)) from error
    asked = ScoreRequest(model=engine.name, items=items, options=scalar_options(settings))
    answer, timing = await engine.score(asked, caller=caller_of(request), deadline_s=time_left_s(request))
    count(request, answer)
    scored: list[ItemScore] = []
    for position, item in enumerate(answer.items):
        if isinstance(item, ItemError):
            where = f"item {position}: " if len(answer.items) > 1 else ""
            wait_s = 1 if item.error.retryable else None
            raise RequestError(ErrorCode(item.error.code), f"{where}{item.error.message}", retry_after_s=wait_s)
        scored.append(item)
    result = ScoredBatch(engine.name, scored, answer.usage.batch_tokens)
    return json_response(await engine.threads.run(_rendered, body, result), timing)


def _rendered(body: CompatRequest, scored: ScoredBatch) -> str:
    return json.dumps(body.reply(scored), allow_nan=False)


@router.post("/get_reward", summary="OpenRLHF, align-anything, slime")
async def get_reward(body: GetRewardBody, request: Request) -> Response:
    """A number a sample, in the form of whoever asks."""
    return await _answer(body, request)


@router.post("/v1/score/evaluation", summary="LLaMA-Factory")
async def score_evaluation(body: LLaMAFactoryBody, request: Request) -> Response:
    """A number a conversation."""
    return await _answer(body, request)


@router.post("/classify", summary="vLLM and verl, or SGLang")
async def classify(body: ClassifyBody, request: Request) -> Response:
    """A raw score an input."""
    return await _answer(body, request)


@router.post("/v1/embeddings", summary="verl with SGLang")
async def embeddings(body: EmbeddingsBody, request: Request) -> Response:
    """A raw score an input."""
    return await _answer(body, request)


@router.post("/pooling", summary="vLLM's pooling; a reward a token with task token_classify")
async def pooling(body: VLLMPoolingBody, request: Request) -> Response:
    """Rows of one number, one a token of the input; or a score alone with task classify."""
    return await _answer(body, request)


@router.post("/verify", summary="NeMo-Gym")
async def verify(body: NeMoGymBody, request: Request) -> Response:
    """The body that came, with its reward."""
    return await _answer(body, request)


@sessions.post("/seed_session", summary="NeMo-Gym")
async def seed_session() -> dict[str, Any]:
    """Nothing to be set up: verification keeps no state."""
    return {}
