"""HTTP responses for results of the engine."""

from __future__ import annotations

from fastapi import Request, Response

from redline.wire import ScoreResponse
from redline.wire.correction import CorrectResponse
from redline_service.http.admission import engine_of
from redline_service.metrics import Metrics
from redline_service.scheduling.jobs import Timing

# Scored tokens up to which a response is serialised on the event loop: handing it to a thread would take longer.
_SMALL_RESPONSE_TOKENS = 1000


async def wire_response(request: Request, response: ScoreResponse | CorrectResponse, timing: Timing) -> Response:
    """The HTTP response of Redline's own endpoints; counts its items in the metrics."""
    count_items(request, response)
    if response.usage.scored_tokens <= _SMALL_RESPONSE_TOKENS:
        return json_response(to_json(response), timing)
    return json_response(await engine_of(request).threads.run(to_json, response), timing)


def count_items(request: Request, response: ScoreResponse | CorrectResponse) -> None:
    """Count the items of a response in the metrics."""
    metrics: Metrics = request.app.state.metrics
    metrics.count_response(response)


def json_response(body: str, timing: Timing) -> Response:
    """A JSON body, with the milliseconds of each stage in the header Server-Timing."""
    stages = {"tokenize": timing.tokenize_s, "queue": timing.queue_s, "inference": timing.inference_s}
    server_timing = ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in stages.items())
    return Response(body, media_type="application/json", headers={"Server-Timing": server_timing})


def to_json(response: ScoreResponse | CorrectResponse) -> str:
    """``response`` as JSON, item by item: one pydantic call for a large response would block the event loop."""
    items = ",".join(item.model_dump_json(exclude_none=True) for item in response.items)
    without_items = response.model_copy(update={"items": []}).model_dump_json(exclude_none=True)
    return without_items.replace('"items":[]', f'"items":[{items}]', 1)
