"""Is this an answer to what was asked? What a service returns is held against the request, and never believed blindly.

A broken or mismatched server must not turn into wrong rewards: everything that follows from the request and from
docs/reference/http-api.md is checked, and each check raises a ProtocolError that names it. What only the model could
know (another value of the right shape) cannot be checked.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from redline.errors import ProtocolError
from redline.spans import Span
from redline.wire import (
    AppliedOptions,
    Edit,
    ItemScore,
    ModelInfo,
    ModelRef,
    ResponseItem,
    ScoreItem,
    ScoreOptions,
    ScoreRequest,
    ScoreResponse,
)
from redline.wire.correction import CorrectOptions, CorrectRequest, CorrectResponse, ItemCorrection

_AGGREGATES = frozenset({"sum", "mean", "last"})
_RESULTS = frozenset({"score", "rewards", "correction", "score_before"})
_KNOWN = _RESULTS | {"error", "items"}
_NAME_BYTES = 40  # of a field's name at most
_DIGEST = re.compile(r"sha256:[!-~]+")
# Scores are sums of 32-bit numbers, of some thousands at most.
_SUM_TOLERANCE = 1e-4


def check_answer(
    request: ScoreRequest | CorrectRequest,
    positions: Sequence[int],
    response: ScoreResponse | CorrectResponse,
    *,
    optional_ids: Container[int] = (),
) -> None:
    """Raise ProtocolError unless ``response`` can be an answer about the items of ``request`` at ``positions``.

    Args:
        optional_ids: positions whose ids the client made up itself: the answer may leave these out, but not change
            them.
    """
    if len(response.items) != len(positions):
        raise _wrong(f"{len(response.items)} answers for {len(positions)} items")
    _check_model(response.model, request.model)
    _check_options(response.options, request.options)
    for position, answer in zip(positions, response.items, strict=True):
        item = request.items[position]
        problem = None
        if answer.id != item.id and not (answer.id is None and position in optional_ids):
            problem = f"its id is {_short(answer.id)} where {_short(item.id)} was sent"
        elif isinstance(answer, ItemScore) and isinstance(item, ScoreItem) and isinstance(request, ScoreRequest):
            problem = _score_problem(item, answer, response.options, request.options)
        elif isinstance(answer, ItemCorrection) and isinstance(request, CorrectRequest):
            problem = _correction_problem(item, answer, request.options)
        if problem is not None:
            raise _wrong(f"item {position}: {problem}")


def check_same(first: ScoreResponse | CorrectResponse, other: ScoreResponse | CorrectResponse) -> None:
    """Raise ProtocolError unless one call may have both answers: another digest is a swapped bundle, and allowed."""
    models = [(one.model.name, one.model.kind) for one in (first, other)]
    if models[0] != models[1]:
        raise _wrong(f"one call was answered by {_short(models[0])} and by {_short(models[1])}")
    if first.options != other.options:
        raise _wrong(f"one call was answered with options {_short(first.options)} and with {_short(other.options)}")


def checked_model(info: ModelInfo, name: str = "default") -> ModelInfo:
    """``info``, if it can describe the model ``name``; "default" may be any. Raises ProtocolError."""
    _check_model(info, name)
    return info


def check_objects(body: bytes | bytearray, parsed: BaseModel) -> None:
    """Raise ProtocolError where an answer, of which ``parsed`` was made, says two things at once.

    That is a name twice in one object, whichever way it is escaped, of which any reader takes another; or an item, or
    a whole answer, with both an error and a result: the models of the wire ignore fields that they do not know, and
    would read it as one of the two.
    """
    if b"\\u" not in body:
        # Every name is a piece between quotation marks; so may be a text. Equal numbers leave no room for a second one.
        names = Counter(_names(parsed))
        pieces = Counter(piece for piece in bytes(body).split(b'"') if len(piece) < _NAME_BYTES)
        if all(pieces[name.encode()] == names[name] for name in _KNOWN | names.keys()):
            return
    try:
        answer = json.loads(body.decode(), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("the service's answer cannot be right: it is not JSON as every parser reads it") from error
    if not isinstance(parsed, (ScoreResponse, CorrectResponse)):
        return
    if answer.get("error") is not None:
        raise _wrong("it has both an error and items")
    for position, item in enumerate(answer["items"]):
        if isinstance(item, dict) and item.get("error") is not None and not _RESULTS.isdisjoint(item):
            raise _wrong(f"answer {position} has both an error and a result")


def _names(model: BaseModel) -> Iterator[str]:
    """The names of the fields that ``model`` and the models in it were made of."""
    for name in model.model_fields_set:
        yield name
        value = getattr(model, name)
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, BaseModel):
                break  # lists are of one kind
            yield from _names(one)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _wrong(f"the field {_short(twice)} stands twice in one object")
    return found


def _check_model(model: ModelRef | ModelInfo, name: str) -> None:
    if not (model.name and model.kind and model.name.isprintable() and model.kind.isprintable()):
        raise _wrong("it does not name the model and its kind")
    if name not in {"default", model.name}:
        raise _wrong(f"model {_short(name)} was asked for and {_short(model.name)} answered")
    if not _DIGEST.fullmatch(model.digest):
        raise _wrong(f"the digest of the model is {_short(model.digest)}, which is not of the form sha256:...")


def _check_options(applied: AppliedOptions, wanted: ScoreOptions | CorrectOptions) -> None:
    expected: dict[str, object] = {"calibrated": False}
    if isinstance(wanted, ScoreOptions):
        expected = {"mode": wanted.mode, "aggregate": wanted.aggregate, "calibrated": wanted.calibrated}
    for name, value in expected.items():
        answered = getattr(applied, name)
        if value is not None and answered != value:
            raise _wrong(f"option {name} is {_short(answered)} where {_short(value)} was asked for")
    if applied.aggregate not in _AGGREGATES and expected.get("aggregate") is None:
        raise _wrong(f"option aggregate is {_short(applied.aggregate)}, which is not known and was not asked for")


def _score_problem(item: ScoreItem, score: ItemScore, applied: AppliedOptions, wanted: ScoreOptions) -> str | None:
    count = len(score.rewards)
    if count != len(score.offsets):
        return f"{count} rewards and {len(score.offsets)} offsets"
    if count == 0:
        return "it has no rewards"
    if item.response_ids is not None and count != len(item.response_ids):
        return f"{count} rewards for {len(item.response_ids)} response_ids"
    if item.token_offsets is None:
        problem = offsets_problem(score.offsets, item.response)
    else:
        problem = (
            None if score.offsets == item.token_offsets else "its offsets are not the token_offsets that were sent"
        )
    if problem is not None:
        return problem
    # how many tokens the model has is not known where the rewards are those of the caller's
    tokens = count if item.token_offsets is None else math.inf
    if score.diverged_at is not None and not 0 <= score.diverged_at < tokens:
        return f"diverged_at is {_short(score.diverged_at)} of {tokens} tokens"
    if score.truncated and wanted.on_too_long != "truncate":
        return "it was truncated, which was not asked for"
    if not applied.calibrated:
        problem = aggregate_problem(score, applied.aggregate, is_aligned=item.token_offsets is not None)
        if problem is not None:
            return problem
    if wanted.correction:
        if score.correction is None or score.edits is None or score.correction_complete is None:
            return "a correction was asked for and is missing"
        return edits_problem(score.edits, item.response, score.correction)
    if score.correction is not None or score.edits is not None or score.correction_complete is not None:
        return "it has a correction, which was not asked for"
    return None


def aggregate_problem(score: ItemScore, aggregate: str, *, is_aligned: bool) -> str | None:
    """Why ``score.score`` is not the aggregate of its rewards; None if it is, or the aggregate is an unknown one.

    Args:
        is_aligned: the rewards were moved onto the caller's tokens. Their sum is that of the model's T tokens, T
            unknown: a mean must be the sum over some T, and the last of the model's rewards cannot be told.
    """
    rewards = score.rewards
    total, size = sum(rewards), sum(map(abs, rewards))
    if not math.isfinite(size):
        return f"its score is {score.score:.6g} and the sum of its rewards is not finite"
    tokens = len(rewards)
    if aggregate == "sum":
        name, expected = "the sum of its rewards", total
    elif aggregate == "mean" and is_aligned:
        ratio = total / score.score if score.score else math.inf
        tokens = max(1, round(ratio)) if math.isfinite(ratio) else tokens
        name, expected = f"a mean of its rewards, over {tokens} tokens,", total / tokens
    elif aggregate == "mean":
        name, expected = "the mean of its rewards", total / tokens
    elif aggregate == "last" and not is_aligned:
        name, expected, size = "the last of its rewards", rewards[-1], abs(rewards[-1])
    else:
        return None
    scale = size / tokens if aggregate == "mean" else size
    if abs(expected - score.score) > _SUM_TOLERANCE * (1.0 + scale):
        return f"its score is {score.score:.6g} and {name} {expected:.6g}"
    return None


def _correction_problem(item: ResponseItem, answer: ItemCorrection, wanted: CorrectOptions) -> str | None:
    if not 1 <= answer.rounds <= wanted.max_rounds:
        return f"{_short(answer.rounds)} rounds where 1 to {wanted.max_rounds} were asked for"
    if answer.ended == "max_rounds" and answer.rounds != wanted.max_rounds:
        return f"it ended after {answer.rounds} of {wanted.max_rounds} rounds, and says that all were used up"
    if answer.truncated and wanted.on_too_long != "truncate":
        return "it was truncated, which was not asked for"
    # One round that changes nothing is a fixed point; two that lead back to the response are a cycle.
    least, same = {"fixed_point": (1, 1), "cycle": (2, 2)}.get(answer.ended, (1, 0))
    if answer.rounds < least:
        return f"{answer.ended} after {answer.rounds} rounds"
    if answer.rounds == same and item.response is not None and answer.correction != item.response:
        return f"{answer.ended} after {answer.rounds} rounds, and the correction is not the response"
    is_finished_text = item.response is not None and item.finished
    is_scored = is_finished_text or (answer.ended == "fixed_point" and answer.rounds > 1)
    if answer.ended in {"fixed_point", "cycle"} and is_scored and answer.score_after is None:
        return f"{answer.ended} without score_after"
    if answer.ended in {"empty", "too_long"} and answer.score_after is not None:
        return f"a score_after of a correction that is {answer.ended}"
    return edits_problem(answer.edits, item.response, answer.correction)


def offsets_problem(offsets: Sequence[Span], text: str | None) -> str | None:
    """Why ``offsets`` cannot be those of a model's tokens in ``text``; None if they can, or no text is known.

    Every letter and digit must be covered. Other characters need not be: some tokenizers leave out control
    characters and the like.
    """
    covered = previous = 0
    length = math.inf if text is None else len(text)
    for index, (start, end) in enumerate(offsets):
        if not 0 <= start <= end <= length:
            return f"offsets[{index}] is [{_short(start)}, {_short(end)}], and the response has {length} characters"
        if start < previous:
            return f"offsets[{index}] starts before its predecessor"
        if text is not None and start > covered and _has_words(text[covered:start]):
            return f"its offsets leave out the characters {covered} to {start} of the response"
        previous, covered = start, max(covered, end)
    if text is not None and _has_words(text[covered:]):
        return f"its offsets leave out the characters {covered} to {len(text)} of the response"
    return None


def _has_words(text: str) -> bool:
    return any(map(str.isalnum, text))


def edits_problem(edits: Sequence[Edit], response: str | None, correction: str) -> str | None:
    """Why ``edits`` do not turn ``response`` into ``correction``; None if they do, or no text is known."""
    parts: list[str] = []
    at = 0
    for index, edit in enumerate(edits):
        if not at <= edit.start <= edit.end or (response is not None and edit.end > len(response)):
            return f"edits[{index}] is out of order or out of the response"
        if response is not None:
            parts += [response[at : edit.start], edit.text]
        at = edit.end
    if response is not None and "".join([*parts, response[at:]]) != correction:
        return "its edits do not lead to its correction"
    return None


def _wrong(problem: str) -> ProtocolError:
    return ProtocolError(f"the service's answer cannot be right: {problem}")


def _short(value: object) -> str:
    """``value`` in a message, on one line and not at any length."""
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:97]}..."
