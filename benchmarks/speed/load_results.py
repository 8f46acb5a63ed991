"""Statistics of the request results of a load test: capacity, goodput, latencies. Pure functions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.speed.load_generator import RequestResult

KINDS = (
    "in_time",
    "late",
    "refused",
    "refused_without_retry_after",
    "timed_out",
    "item_errors",
    "other_status",
    "failed",
    "unanswered",
)
_WITHOUT_ANSWER = {0: "failed", -1: "unanswered"}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that a ``share`` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def milliseconds(seconds: Sequence[float]) -> dict[str, float] | None:
    """Median and 95th percentile of ``seconds`` in ms; None if there are none."""
    if not seconds:
        return None
    return {f"p{round(100 * share)}_ms": 1000 * percentile(seconds, share) for share in (0.5, 0.95)}


def steady_rate(results: Sequence[RequestResult], from_s: float, until_s: float) -> float:
    """Items scored per second between ``from_s`` and ``until_s``.

    Answers come in bursts, one per batch. So that no burst is cut, the time runs from the last answer before ``from_s``
    to the last answer before ``until_s``, and the items answered in this time are counted.

    Raises:
        ValueError: nothing was scored in that time.
    """
    ends = sorted((o.ended_s, o.scored) for o in results if o.scored)
    before = [end for end, _ in ends if end <= from_s]
    first = before[-1] if before else from_s
    inside = [(end, scored) for end, scored in ends if first < end <= until_s]
    if not inside:
        raise ValueError(f"no item was scored between {from_s} and {until_s} s")
    return sum(scored for _, scored in inside) / (inside[-1][0] - first)


def goodput(
    results: Sequence[RequestResult], *, items: int, deadline_s: float, from_s: float, until_s: float
) -> dict[str, Any]:
    """What happened to the items that were due in ``[from_s, until_s)``; each request has ``items`` items.

    An item is in time if it was scored and its request was answered within ``deadline_s`` of the time at which the
    request was *due*: if the generator sends it late, this counts against the result. The kinds are shares of the items
    due, and their sum is 1:

    * ``in_time`` and ``late``: answered 200 with a score
    * ``refused``: 429 or 503 with Retry-After; ``refused_without_retry_after``: without
    * ``timed_out``: 503 with the code ``timed_out``
    * ``item_errors``: an answer 200 with an error for this item
    * ``other_status``; ``failed``: the connection broke; ``unanswered``: no answer before ``give_up_s``
    """
    due = [o for o in results if from_s <= o.due_s < until_s]
    kinds = dict.fromkeys(KINDS, 0)
    refused_s = []
    for o in due:
        if o.status == 200:
            kinds["in_time" if o.ended_s - o.due_s <= deadline_s else "late"] += o.scored
            kinds["item_errors"] += items - o.scored
        elif o.code == "timed_out":
            kinds["timed_out"] += items
        elif o.status in (429, 503):
            kinds["refused" if o.retry_after else "refused_without_retry_after"] += items
            refused_s.append(o.ended_s - o.sent_s)
        else:
            kinds[_WITHOUT_ANSWER.get(o.status, "other_status")] += items
    total = len(due) * items
    answers = Counter(_WITHOUT_ANSWER.get(o.status) or f"{o.status} {o.code}".strip() for o in due)
    return {
        "items": total,
        "offered_items_per_s": total / (until_s - from_s),
        "in_time_items_per_s": kinds["in_time"] / (until_s - from_s),
        "shares": {kind: count / total if total else 0.0 for kind, count in kinds.items()},
        "scored": milliseconds([o.ended_s - o.due_s for o in due if o.scored]),
        "refused": milliseconds(refused_s),
        "answers": dict(answers.most_common()),
        "sent_late": milliseconds([o.sent_s - o.due_s for o in due]),
    }


def beyond_the_model(results: Sequence[RequestResult]) -> dict[str, Any]:
    """Latencies of requests one after the other, and the part of each that is not spent in the model.

    Raises:
        ValueError: none of them was scored.
    """
    scored = [o for o in results if o.scored]
    if not scored:
        raise ValueError("no request of the sequence was scored")
    took = [o.ended_s - o.sent_s for o in scored]
    model = [o.timing_ms["inference"] / 1000 for o in scored]
    return {
        "requests": len(results),
        "not_scored": len(results) - len(scored),
        "latency": milliseconds(took),
        "model": milliseconds(model),
        "beyond_the_model": milliseconds([a - b for a, b in zip(took, model, strict=True)]),
    }


def short_beside_long(
    alone: Sequence[RequestResult], beside: Sequence[RequestResult], long: Sequence[RequestResult]
) -> dict[str, Any]:
    """The p95 of short items alone and beside another caller's long items, in ms, and the bound of the latter.

    The bound is three times the p95 alone plus the median time of the batches in which the long items were scored. It
    is not kept if a short item was not scored.

    Raises:
        ValueError: no item of one of the three was scored.
    """
    scored = [[result for result in results if result.scored] for results in (alone, beside, long)]
    if not all(scored):
        raise ValueError("no short item, or no long one, was scored")
    p95_alone, p95_beside = (1000 * percentile([o.ended_s - o.sent_s for o in results], 0.95) for results in scored[:2])
    batches = [o.timing_ms["inference"] for o in scored[2]]
    bound = 3 * p95_alone + percentile(batches, 0.5)
    not_scored = len(alone) + len(beside) - len(scored[0]) - len(scored[1])
    return {
        "short_requests": {"alone": len(alone), "beside": len(beside), "not_scored": not_scored},
        "long_requests": {"all": len(long), "not_scored": len(long) - len(scored[2])},
        "p95_alone_ms": p95_alone,
        "p95_beside_ms": p95_beside,
        "batch_ms": {"p50": percentile(batches, 0.5), "p95": percentile(batches, 0.95)},
        "bound_ms": bound,
        "is_within_bound": p95_beside <= bound and not not_scored,
    }
