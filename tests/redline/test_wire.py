"""The contract: strict in what is asked, tolerant of newer answers, and never a number that is none."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from redline import wire
from redline.wire import (
    ERROR_TABLE,
    ErrorBody,
    ErrorCode,
    ErrorResponse,
    ItemError,
    ItemScore,
    ModelInfo,
    ModelList,
    ScoreItem,
    ScoreOptions,
    ScoreRequest,
    ScoreResponse,
)
from redline.wire.correction import CorrectOptions, CorrectRequest, CorrectResponse, ItemCorrection

ITEM: dict[str, Any] = {"prompt": "2+2?", "response": "4."}
SCORE: dict[str, Any] = {"id": "a", "score": 0.5, "rewards": [1.0, -0.5], "offsets": [[0, 1], [1, 2]]}
ERROR: dict[str, Any] = {
    "id": "b",
    "error": {"code": "too_long", "message": "900 tokens", "retryable": False},
}
ANSWER: dict[str, Any] = {
    "model": {"name": "default", "digest": "sha256:1", "kind": "seq2seq"},
    "options": {"mode": "paper", "aggregate": "sum", "calibrated": False},
    "items": [SCORE, ERROR],
    "usage": {"scored_tokens": 2, "batch_tokens": 8},
}
CORRECTION: dict[str, Any] = {
    "id": "a",
    "correction": "5.",
    "ended": "max_rounds",
    "rounds": 1,
    "edits": [{"op": "replace", "start": 0, "end": 1, "text": "5"}],
    "score_before": -1.5,
}
CORRECTED: dict[str, Any] = {**ANSWER, "items": [CORRECTION, ERROR]}
CALIBRATION = {"temperature": 2.0, "mean": 0.0, "std": 1.0, "expected_calibration_error": 0.05}
MODEL: dict[str, Any] = {
    "name": "default",
    "digest": "sha256:1",
    "kind": "seq2seq",
    "base_model": "tiny",
    "tokenizer_fingerprint": "sha256:2",
    "limits": {"max_tokens": 512, "max_items": 64},
    "default_mode": "paper",
    "default_aggregate": "sum",
    "modes": ["paper"],
    "aggregates": ["sum"],
    "calibration": {"paper/sum": CALIBRATION},
    "dtype": "float32",
    "device": "cpu",
}


def put(tree: dict[str, Any], path: tuple[str | int, ...], value: Any) -> str:
    """``tree`` as JSON with one value replaced or added."""
    copy: Any = json.loads(json.dumps(tree))
    at = copy
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return json.dumps(copy)


# --- errors ----------------------------------------------------------------------------------------------


def test_the_table_has_each_code_once() -> None:
    assert set(ERROR_TABLE) == set(ErrorCode)
    assert len({code.value for code in ErrorCode}) == len(ErrorCode)


@pytest.mark.parametrize("code", ErrorCode)
def test_status_and_retryability_agree(code: ErrorCode) -> None:
    spec = ERROR_TABLE[code]
    assert 400 <= spec.status < 600
    assert spec.status != 429  # some RL loops stop at any 4xx
    assert not (spec.retryable and spec.status < 500)  # what the caller got wrong stays wrong
    assert spec.retryable or spec.status != 503  # 503 says "later"


@pytest.mark.parametrize("code", ErrorCode)
def test_error_bodies_match_the_error_table(code: ErrorCode) -> None:
    body = ErrorBody.of(code, "why")
    assert (body.code, body.message, body.retryable) == (code.value, "why", ERROR_TABLE[code].retryable)


def test_unknown_error_codes_are_accepted() -> None:
    raw = {"error": {"code": "too_funny", "message": "ha", "retryable": True, "details": {"level": 3}}}
    body = ErrorResponse.model_validate_json(json.dumps(raw)).error
    assert (body.code, body.retryable) == ("too_funny", True)


# --- requests --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "value"),
    [
        (ScoreItem, {**ITEM, "tempreture": 1}),
        (ScoreOptions, {"agregate": "sum"}),
        (ScoreRequest, {"items": [ITEM], "optoins": {}}),
        (ScoreRequest, {"items": [{**ITEM, "offsets": [[0, 1]]}]}),
        (ScoreRequest, {"items": [ITEM], "options": {"on_too_lnog": "truncate"}}),
        (CorrectOptions, {"rounds": 2}),
        (CorrectRequest, {"items": [{**ITEM, "token_offsets": [[0, 2]]}]}),
    ],
)
def test_a_misspelt_field_of_a_request_is_refused(model: type[BaseModel], value: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        model.model_validate(value)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ({"content": "hi", "tool_calls": [], "name": None}, {"content": "hi"}),
        ({"content": "hi", "name": "eve"}, {"content": "hi", "name": "eve"}),
        ({"content": None, "tool_calls": [{"a": None}]}, {"content": "", "tool_calls": [{"a": None}]}),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, {"content": "ab"}),
    ],
)
def test_messages_are_normalized_and_keep_their_fields(value: dict[str, Any], kept: dict[str, Any]) -> None:
    item = ScoreItem.model_validate({**ITEM, "prompt": [{"role": "user", **value}]})
    assert item.payload()["prompt"] == [{"role": "user", **kept}]
    assert ScoreItem.model_validate_json(json.dumps(item.payload())) == item


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"content": [{"type": "image_url", "image_url": "x"}]}, "'image_url'; only text is supported"),
        ({"name": "eve"}, "without 'content'"),
        ({"content": 3}, "neither text"),
        ({"content": "x", "tool_calls": nested(40)}, "nested deeper"),
        ({"content": "x", "tool_calls": [1] * 20_000}, "more than 10000 values"),
        ({"content": "x", "tool_calls": [float("nan")]}, "not finite"),
        ({"content": "x", "tool_calls": ["\ud83d"]}, "half a surrogate"),
        ({"content": "x", **{f"f{n}": 1 for n in range(120)}}, "at most 100"),
    ],
)
def test_an_invalid_message_is_refused(message: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        ScoreItem.model_validate({**ITEM, "prompt": [{"role": "user", **message}]})


def test_the_values_of_an_item_are_counted_together() -> None:
    message = {"role": "user", "content": "x", "documents": [1] * 6000}
    assert ScoreItem.model_validate({**ITEM, "prompt": [message]})
    for more in ({"prompt": [message] * 2}, {"prompt": [message], "tools": [{"a": [1] * 6000}]}):
        with pytest.raises(ValidationError, match="more than 10000 values"):
            ScoreItem.model_validate({**ITEM, **more})
    with pytest.raises(ValidationError, match="dictionary"):
        ScoreItem.model_validate({**ITEM, "tools": ["weather"]})


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"response": "4."}, "exactly one of 'prompt' and 'prompt_ids'"),
        ({"prompt": "2+2?"}, "exactly one of 'response' and 'response_ids'"),
        ({**ITEM, "prompt_ids": [1], "tokenizer_fingerprint": "f"}, "exactly one of 'prompt'"),
        ({**ITEM, "response_ids": [1], "tokenizer_fingerprint": "f"}, "exactly one of 'response'"),
        ({"prompt_ids": [1], "response_ids": [2]}, "ids need 'tokenizer_fingerprint'"),
        ({"prompt_ids": [1], "response": "4."}, "ids need 'tokenizer_fingerprint'"),
        ({"prompt": "2+2?", "response_ids": [2]}, "ids need 'tokenizer_fingerprint'"),
        ({"prompt_ids": [], "response_ids": []}, "ids need 'tokenizer_fingerprint'"),
        (
            {"prompt": "2", "response_ids": [2], "tokenizer_fingerprint": "f", "token_offsets": [[0, 1]]},
            "'token_offsets' need 'response'",
        ),
    ],
)
def test_an_item_has_exactly_one_form(value: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ScoreItem.model_validate(value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        ITEM,
        {**ITEM, "prompt": ""},
        {**ITEM, "prompt": [{"role": "user", "content": "2+2?"}]},
        {**ITEM, "token_offsets": [[0, 1], [1, 2], [2, 2]]},
        {"prompt_ids": [1], "response_ids": [2], "tokenizer_fingerprint": "f"},
        {"prompt_ids": [1], "response": "4.", "tokenizer_fingerprint": "f", "token_offsets": [[0, 2]]},
        {"prompt": "2+2?", "response_ids": [2], "tokenizer_fingerprint": "f", "finished": False},
    ],
)
def test_every_item_survives_serialization(value: dict[str, Any]) -> None:
    request = ScoreRequest(items=[ScoreItem.model_validate(value)])
    again = ScoreRequest.model_validate_json(json.dumps(request.model_dump(mode="json", exclude_none=True)))
    assert again == request
    payload = again.items[0].payload()
    assert payload == {"finished": True, **value}  # nothing that was left out is sent


def test_unset_options_are_not_sent() -> None:
    options = ScoreRequest.model_validate({"items": [ITEM]}).options
    assert options == ScoreOptions(mode=None, aggregate=None, correction=False, calibrated=False, on_too_long="error")


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "p", "response": "HERE"},
        {"prompt": "HERE", "response": "r"},
        {"prompt": [{"role": "user", "content": "HERE"}], "response": "r"},
        {"prompt": "p", "response": "r", "id": "HERE"},
    ],
)
def test_half_a_surrogate_pair_is_refused(value: dict[str, Any]) -> None:
    complete = json.dumps(value).replace("HERE", r"\ud83d\ude42")  # as JSON writes an emoji
    assert "🙂" in ScoreItem.model_validate_json(complete).model_dump_json()
    for half in (r"a\ud83d", r"\ude42", r"\ude42\ud83d"):
        with pytest.raises(ValidationError):
            ScoreItem.model_validate_json(json.dumps(value).replace("HERE", half))
    with pytest.raises(ValidationError, match="half a surrogate pair"):
        ScoreItem.model_validate(json.loads(json.dumps(value).replace("HERE", r"a\ud83d")))


@pytest.mark.parametrize("value", ["maybe", "Truncate", None])
def test_on_too_long_accepts_error_and_truncate(value: str | None) -> None:
    with pytest.raises(ValidationError):
        ScoreOptions.model_validate({"on_too_long": value})


@pytest.mark.parametrize("offsets", [[[0]], [[0, 1, 2]], [["a", 1]], [[0.5, 1]], [0, 1]])
def test_offsets_are_pairs_of_integers(offsets: Any) -> None:
    with pytest.raises(ValidationError):
        ScoreItem.model_validate({**ITEM, "token_offsets": offsets})


# --- answers ---------------------------------------------------------------------------------------------


def test_scores_and_errors_are_distinguished() -> None:
    scored, failed = ScoreResponse.model_validate_json(json.dumps(ANSWER)).items
    assert isinstance(scored, ItemScore)
    assert (scored.id, scored.score, scored.rewards, scored.offsets) == (
        "a",
        0.5,
        [1.0, -0.5],
        [(0, 1), (1, 2)],
    )
    assert isinstance(failed, ItemError)
    assert (failed.id, failed.error.code, failed.error.retryable) == ("b", "too_long", False)


def test_corrections_and_errors_are_distinguished() -> None:
    raw = put(CORRECTED, ("items", 0, "news"), ["anything"])  # of a newer server
    corrected, failed = CorrectResponse.model_validate_json(raw).items
    assert corrected == ItemCorrection.model_validate(CORRECTION)
    assert isinstance(corrected, ItemCorrection)
    assert (corrected.score_after, corrected.is_complete, corrected.is_fixed_point) == (None, True, False)
    assert isinstance(failed, ItemError)


@pytest.mark.parametrize("field", ["correction", "ended", "rounds", "edits", "score_before"])
def test_no_field_of_a_correction_has_a_default(field: str) -> None:
    partial = {name: value for name, value in CORRECTION.items() if name != field}
    with pytest.raises(ValidationError):
        CorrectResponse.model_validate_json(put(CORRECTED, ("items", 0), partial))


@pytest.mark.parametrize("field", ["score_before", "score_after"])
def test_a_correction_s_score_is_finite(field: str) -> None:
    raw = put(CORRECTED, ("items", 0, field), "HERE").replace('"HERE"', "NaN")
    with pytest.raises(ValidationError):
        CorrectResponse.model_validate_json(raw)


@pytest.mark.parametrize("item", [{}, {"id": "a"}, {**SCORE, "score": None}, {**ERROR, "error": None}])
def test_an_item_that_is_neither_score_nor_error_is_refused(item: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ScoreResponse.model_validate_json(put(ANSWER, ("items", 0), item))


@pytest.mark.parametrize("field", ["score", "rewards", "offsets"])
def test_no_field_of_a_score_has_a_default(field: str) -> None:
    partial = {name: value for name, value in SCORE.items() if name != field}
    with pytest.raises(ValidationError):
        ScoreResponse.model_validate_json(put(ANSWER, ("items", 0), partial))


@pytest.mark.parametrize("field", ["code", "message", "retryable"])
def test_no_field_of_an_error_has_a_default(field: str) -> None:
    partial = {name: value for name, value in ERROR["error"].items() if name != field}
    with pytest.raises(ValidationError):
        ScoreResponse.model_validate_json(put(ANSWER, ("items", 1, "error"), partial))


@pytest.mark.parametrize(
    "path",
    [
        ("news",),
        ("model", "news"),
        ("options", "news"),
        ("usage", "news"),
        ("items", 0, "news"),
        ("items", 1, "news"),
        ("items", 1, "error", "news"),
    ],
)
def test_unknown_fields_of_an_answer_are_ignored(path: tuple[str | int, ...]) -> None:
    newer = ScoreResponse.model_validate_json(put(ANSWER, path, ["anything"]))
    assert newer == ScoreResponse.model_validate(ANSWER)


@pytest.mark.parametrize("path", [("news",), ("limits", "news"), ("calibration", "paper/sum", "news")])
def test_unknown_fields_of_a_model_description_are_ignored(path: tuple[str | int, ...]) -> None:
    assert ModelInfo.model_validate_json(put(MODEL, path, 1)) == ModelInfo.model_validate(MODEL)
    assert ModelList.model_validate_json(json.dumps({"models": [MODEL], "more": 1})).models[0].name == "default"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "null"])
@pytest.mark.parametrize("path", [("items", 0, "score"), ("items", 0, "rewards", 1)])
def test_nan_and_infinity_are_refused(path: tuple[str | int, ...], number: str) -> None:
    raw = put(ANSWER, path, "HERE").replace('"HERE"', number)
    with pytest.raises(ValidationError):
        ScoreResponse.model_validate_json(raw)


@pytest.mark.parametrize("field", sorted(CALIBRATION))
def test_a_calibration_that_is_not_finite_is_refused(field: str) -> None:
    raw = put(MODEL, ("calibration", "paper/sum", field), "HERE").replace('"HERE"', "NaN")
    with pytest.raises(ValidationError):
        ModelInfo.model_validate_json(raw)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_answer_model_refuses_nan(value: float) -> None:
    with pytest.raises(ValidationError):
        ItemScore(score=value, rewards=[1.0], offsets=[(0, 1)])
    with pytest.raises(ValidationError):
        ItemScore(score=1.0, rewards=[value], offsets=[(0, 1)])


def test_finished_is_true_or_false_and_null_means_true() -> None:
    cases = [(True, True), (False, False), (None, True)]
    for value, expected in cases:
        assert ScoreItem.model_validate({**ITEM, "finished": value}).finished is expected
        assert ScoreItem.model_validate_json(json.dumps({**ITEM, "finished": value})).finished is expected
    for value in ("no", "false", 0, 1, 0.0, [], ""):
        with pytest.raises(ValidationError):
            ScoreItem.model_validate({**ITEM, "finished": value})
        with pytest.raises(ValidationError):
            ScoreItem.model_validate_json(json.dumps({**ITEM, "finished": value}))


@pytest.mark.parametrize("module", ["base", "correction", "errors", "inputs", "models", "score"])
def test_everything_public_can_be_imported_from_the_package(module: str) -> None:
    defined = import_module(f"redline.wire.{module}")
    names = [
        name
        for name, value in vars(defined).items()
        if isinstance(value, type) and value.__module__ == defined.__name__ and not name.startswith("_")
    ]
    assert names
    assert [name for name in names if getattr(wire, name, None) is not getattr(defined, name)] == []
    assert set(names) <= set(wire.__all__)
