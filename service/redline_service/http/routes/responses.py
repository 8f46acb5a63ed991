"""Answers of the model as HTTP responses."""

from __future__ import annotations

from fastapi import Request, Response

from redline.wire import ScoreResponse
from redline.wire.correction import CorrectResponse
from redline_service.http.admission import engine_of
from redline_service.metrics import Metrics
from redline_service.scheduling.jobs import Timing

# Tokens of an answer that takes less time to write than to hand to a thread.
_SMALL_ANSWER = 1000


async def as_response(request: Request, answer: ScoreResponse | CorrectResponse, timing: Timing) -> Response:
    """JSON in the wire's own form."""
    count(request, answer)
    if answer.usage.scored_tokens <= _SMALL_ANSWER:
        return json_response(to_json(answer), timing)
    return json_response(await engine_of(request).threads.run(to_json, answer), timing)


def count(request: Request, answer: ScoreResponse | CorrectResponse) -> None:
    """Note an answer in the metrics."""
    metrics: Metrics = request.app.state.metrics
    metrics.count_response(answer)


def json_response(body: str, timing: Timing) -> Response:
    """A body, with the seconds that each part took in its headers."""
    parts = {"tokenize": timing.tokenize_s, "queue": timing.queue_s, "inference": timing.inference_s}
    shown = ", ".join(f"{name};dur={s * 1000:.1f}" for name, s in parts.items())
    return Response(body, media_type="application/json", headers={"Server-Timing": shown})


def to_json(answer: ScoreResponse | CorrectResponse) -> str:
    """``answer`` as JSON, item by item: one call for all of a large answer would hold up the event loop."""
    items = ",".join(item.model_dump_json(exclude_none=True) for item in answer.items)
    frame = answer.model_copy(update={"items": []}).model_dump_json(exclude_none=True)
    return frame.replace('"items":[]', f'"items":[{items}]', 1)
