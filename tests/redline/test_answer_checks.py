"""An answer that cannot be one to what was asked is an error, and never a reward; both clients."""

from __future__ import annotations

import copy
import json
import random
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from redline import CorrectOptions, ProtocolError, RedlineError, RetryPolicy, ScoreOptions, ServiceError
from redline.http.answer_checks import offsets_problem
from redline.http.exchange import retry_after_s
from redline.testing import FakeService
from redline.wire import MODELS_PATH, SCORE_PATH
from tests.redline.raw_server import RawServer, call, http, receive_request
from tests.tokenizer_families import TOKENIZERS, tokenizer_of

Answer = dict[str, Any]
Change = Callable[[Answer], None]
TEXT = "Hold the naïve 世界 button."
SPANS = [[0, 4], [4, 8], [8, 14], [14, 17], [17, 25], [25, 25]]
ITEMS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "p", "response": TEXT},
    {"prompt": "p", "response": TEXT, "token_offsets": SPANS},
    {"id": "c", "prompt": "p", "response_ids": [5, 6, 7], "tokenizer_fingerprint": "sha256:words"},
]
FAKE = FakeService(lambda word: float(len(word)), end_reward=0.5, rewrite=lambda text: text.replace("naïve", "round"))


@pytest.fixture(params=[False, True], ids=["blocking", "asyncio"])
def is_async(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def fake_answer(request: httpx.Request) -> Answer:
    """What a service that is right answers; the fake has no ids, so the item of ids is answered here."""
    body: Answer = json.loads(FAKE.transport.handler(request).content)  # type: ignore[union-attr]
    for item, answer in zip(json.loads(request.content)["items"], body["items"], strict=True):
        if "response_ids" in item and request.url.path == SCORE_PATH:
            answer.pop("error")
            answer.update(score=3.0, rewards=[1.0, 0.5, 1.5], offsets=[[0, 2], [2, 4], [4, 4]], diverged_at=2)
        elif "response_ids" in item:
            answer.pop("error")
            answer.update(correction="x", ended="max_rounds", rounds=2, edits=[], score_before=1.0)
    return body


def call_with_change(is_async: bool, change: Change, use: Callable[[Any], Any], **settings: Any) -> Any:
    """``use(client)``, its service's answers changed."""

    def answer(request: httpx.Request) -> httpx.Response:
        body = fake_answer(request)
        change(body)
        return httpx.Response(200, json=body)

    return call(is_async, use, transport=httpx.MockTransport(answer), **settings)


def scored(is_async: bool, change: Change, options: ScoreOptions | None = None, **settings: Any) -> Any:
    model = settings.pop("model", "default")
    items = settings.pop("items", ITEMS)
    return call_with_change(
        is_async, change, lambda client: client.score(items, model=model, options=options), **settings
    )


def set_in(item: int, **fields: Any) -> Change:
    def change(body: Answer) -> None:
        body["items"][item].update(copy.deepcopy(fields))

    return change


def set_at(*keys: Any, to: Any) -> Change:
    def change(body: Answer) -> None:
        for key in keys[:-1]:
            body = body[key]
        body[keys[-1]] = to

    return change


def without(*keys: Any) -> Change:
    def change(body: Answer) -> None:
        for key in keys[:-1]:
            body = body[key]
        del body[keys[-1]]

    return change


def reverse_items(body: Answer) -> None:
    body["items"].reverse()


def swap_first_two(body: Answer) -> None:
    body["items"][:2] = body["items"][1::-1]


def no_change(body: Answer) -> None:
    pass


WORDS = [[0, 4], [4, 8], [8, 14], [14, 17], [17, 25]]  # the fake's spans but for the end token


def test_valid_answers_are_accepted(is_async: bool) -> None:
    result = scored(is_async, no_change)
    assert [item.score for item in result.scored()] == [21.5, 21.5, 3.0]
    assert result.scored()[1].offsets == [tuple(span) for span in SPANS]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda body: body["items"].pop(), "2 answers for 3 items"),
        (lambda body: body["items"].append(body["items"][0]), "4 answers for 3 items"),
        (reverse_items, "item 0: its id is 'c', but 'a' was sent"),
        (swap_first_two, "item 0: its id is '[0-9a-f]{16}-1', but 'a' was sent"),
        (set_in(0, id="b"), "item 0: its id is 'b', but 'a' was sent"),
        (without("items", 0, "id"), "item 0: its id is None, but 'a' was sent"),
        (set_in(1, id=""), "item 1: its id is '', but '[0-9a-f]{16}-1' was sent"),
        (set_in(0, id="x" * 100_000), "item 0: its id is 'xxx"),
        (set_in(1, rewards=[21.5]), "item 1: 1 rewards and 6 offsets"),
        (set_in(0, rewards=[], offsets=[]), "item 0: it has no rewards"),
        (set_in(0, offsets=WORDS), "item 0: 6 rewards and 5 offsets"),
        # the caller's own tokens
        (set_in(1, offsets=[*WORDS, [24, 25]]), "item 1: its offsets are not the token_offsets that were sent"),
        (set_in(1, rewards=[21.5], offsets=[[0, 25]]), "item 1: its offsets are not the token_offsets"),
        # the model's tokens
        (set_in(0, offsets=[*WORDS, [25, 26]]), r"item 0: offsets\[5\] is \[25, 26\], and the response has 25"),
        (set_in(0, offsets=[[-1, 4], *WORDS[1:], [25, 25]]), r"item 0: offsets\[0\] is \[-1, 4\]"),
        (set_in(0, offsets=[[4, 0], *WORDS[1:], [25, 25]]), r"item 0: offsets\[0\] is \[4, 0\]"),
        (
            set_in(0, offsets=[[0, 8], [4, 8], [3, 14], [14, 17], [17, 25], [25, 25]]),
            r"item 0: offsets\[2\] starts before its predecessor",
        ),
        (
            set_in(0, offsets=[[0, 4], [4, 8], [8, 14], [16, 17], [17, 25], [25, 25]]),
            "do not cover the characters 14 to 16",
        ),
        (set_in(0, offsets=[[0, 4]] * 6), "item 0: its offsets do not cover the characters 4 to 25"),
        (set_in(0, offsets=[[0, 10**300]] * 6), "item 0: offsets"),
        # ids
        (set_in(2, rewards=[3.0], offsets=[[0, 4]], diverged_at=0), "item 2: 1 rewards for 3 response_ids"),
        (set_in(2, offsets=[[0, 2], [4, 4], [2, 4]]), r"item 2: offsets\[2\] starts before"),
        (set_in(2, offsets=[[0, 2], [2, 1], [4, 4]]), r"item 2: offsets\[1\]"),
        (set_in(2, diverged_at=3), "item 2: diverged_at is 3 of 3 tokens"),
        (set_in(0, diverged_at=-1), "item 0: diverged_at is -1"),
        (set_in(1, diverged_at=-1), "item 1: diverged_at is -1"),
        (set_in(0, truncated=True), "item 0: it was truncated, which was not requested"),
        (set_in(0, score=22.5), "item 0: its score is 22.5 and the sum of its rewards 21.5"),
        (set_in(1, score=-21.5), "item 1: its score is -21.5 and the sum of its rewards 21.5"),
        (set_in(0, score=1e308, rewards=[1e308, 1e308, 0, 0, 0, 0]), "item 0: its score is 1e\\+308"),
        (set_in(0, error={"code": "too_long", "message": "m", "retryable": False}), "both an error and a result"),
        # the model and the options
        (set_at("model", "name", to=""), "does not name the model"),
        (set_at("model", "kind", to=""), "does not name the model"),
        (set_at("model", "digest", to=""), "digest"),
        (set_at("model", "digest", to="sha256:"), "digest"),
        (set_at("model", "digest", to="md5:0123"), "digest"),
        (set_at("model", "digest", to="sha256:one two"), "digest"),
        (set_at("options", "calibrated", to=True), "option calibrated is True, but False was requested"),
    ],
)
def test_an_invalid_score_is_an_error(change: Change, reason: str, is_async: bool) -> None:
    with pytest.raises(ProtocolError, match=reason) as caught:
        scored(is_async, change)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        (set_at("options", "mode", to="paper"), ScoreOptions(mode="margin"), "option mode is 'paper', but 'margin'"),
        (without("options", "mode"), ScoreOptions(mode="margin"), "option mode is None"),
        (set_at("options", "aggregate", to="sum"), ScoreOptions(aggregate="mean"), "option aggregate is 'sum'"),
        (set_at("options", "calibrated", to=False), ScoreOptions(calibrated=True), "option calibrated is False"),
        (without("items", 0, "correction"), ScoreOptions(correction=True), "item 0: a correction was requested"),
        (without("items", 0, "edits"), ScoreOptions(correction=True), "item 0: a correction was requested"),
        (
            without("items", 0, "correction_complete"),
            ScoreOptions(correction=True),
            "item 0: a correction was requested",
        ),
        (set_in(0, correction="Hold it."), ScoreOptions(correction=True), "item 0: its edits do not give"),
        (set_in(0, edits=[]), ScoreOptions(correction=True), "item 0: its edits do not give"),
    ],
)
def test_applied_options_must_match_the_request(
    change: Change, options: ScoreOptions, reason: str, is_async: bool
) -> None:
    assert len(scored(is_async, no_change, options, items=ITEMS[:2]).scored()) == 2
    with pytest.raises(ProtocolError, match=reason):
        scored(is_async, change, options, items=ITEMS[:2])


def test_the_answering_model_must_match_the_request(is_async: bool) -> None:
    assert scored(is_async, no_change, model="other").model.name == "other"
    assert scored(is_async, set_at("model", "name", to="other")).model.name == "other"  # the default is any
    with pytest.raises(ProtocolError, match="model 'other' was requested, but 'default' answered"):
        scored(is_async, set_at("model", "name", to="default"), model="other")


def test_requested_truncation_is_accepted(is_async: bool) -> None:
    result = scored(is_async, set_in(0, truncated=True), ScoreOptions(on_too_long="truncate"))
    assert result.scored()[0].truncated


def test_a_calibrated_score_is_not_the_sum_of_its_rewards(is_async: bool) -> None:
    options = ScoreOptions(calibrated=True)
    assert scored(is_async, set_in(0, score=-1.0), options).scored()[0].score == -1.0


TEN = [1.0, 2.0, 3.0, 4.0, 0.0, 11.5]  # their sum is 21.5, their mean 21.5 / 6


@pytest.mark.parametrize(
    ("aggregate", "item", "score", "is_right"),
    [
        ("mean", 0, 21.5 / 6, True),
        ("mean", 0, 21.5 / 6 + 0.1, False),
        ("mean", 0, 21.5, False),
        ("mean", 0, 1e308, False),
        ("last", 0, 11.5, True),
        ("last", 0, 11.6, False),
        ("last", 0, 0.0, False),
        # on the caller's own tokens: the sum of the rewards over the number of the model's tokens, which is not known
        ("mean", 1, 21.5 / 6, True),
        ("mean", 1, 21.5 / 4, True),
        ("mean", 1, 21.5 / 6.5, False),
        ("mean", 1, 43.0, False),
        ("mean", 1, -21.5 / 6, False),
        ("mean", 1, 0.0, False),
        ("last", 1, 2.0, True),
    ],
)
def test_a_score_is_the_aggregate_of_its_rewards(
    aggregate: str, item: int, score: float, is_right: bool, is_async: bool
) -> None:
    items = ITEMS[item : item + 1]

    def change(body: Answer) -> None:
        body["options"]["aggregate"] = aggregate
        body["items"][0].update(rewards=TEN, score=score)

    if is_right:
        assert scored(is_async, change, items=items).scored()[0].score == score
    else:
        with pytest.raises(ProtocolError, match="item 0: its score is"):
            scored(is_async, change, items=items)


@pytest.mark.parametrize(
    "unrequested", [{"correction": TEXT}, {"edits": []}, {"correction_complete": True}, {"correction": "Hold it."}]
)
def test_a_correction_that_was_not_requested_is_refused(unrequested: Answer, is_async: bool) -> None:
    with pytest.raises(ProtocolError, match="item 0: it has a correction, which was not requested"):
        scored(is_async, set_in(0, **unrequested))


def test_rounding_errors_are_accepted(is_async: bool) -> None:
    assert scored(is_async, set_in(0, score=21.5 + 1e-5)).scored()[0].score == 21.5 + 1e-5


@pytest.mark.parametrize(
    ("path", "value"),
    [("kind", "dpo"), ("name", "other"), ("mode", "paper"), ("aggregate", "last"), ("digest", "sha256:other")],
)
def test_all_answers_of_a_call_have_the_same_model_and_options(path: str, value: str, is_async: bool) -> None:
    answer_count = 0

    def change(body: Answer) -> None:
        nonlocal answer_count
        answer_count += 1
        if answer_count == 2:
            body["model" if path in body["model"] else "options"][path] = value

    settings: dict[str, Any] = {"items": ITEMS[:2], "items_per_request": 1, "concurrency": 1}
    if path == "digest":  # the bundle was swapped meanwhile: told, and no fault
        assert scored(is_async, change, **settings).digests == ("sha256:fake", "sha256:other")
        return
    with pytest.raises(ProtocolError, match="two requests of one call"):
        scored(is_async, change, **settings)


# --- corrections ----------------------------------------------------------------------------------------------

ROUNDS = CorrectOptions(max_rounds=2)
CORRECTED = TEXT.replace("naïve", "round")


def corrected(is_async: bool, change: Change, options: CorrectOptions = ROUNDS) -> Any:
    items = [{name: value for name, value in item.items() if name != "token_offsets"} for item in ITEMS]
    return call_with_change(is_async, change, lambda client: client.correct(items, options=options))


def test_valid_corrections_are_accepted(is_async: bool) -> None:
    result = corrected(is_async, no_change).corrected()
    assert [(change.correction, change.ended, change.rounds) for change in result] == [
        (CORRECTED, "fixed_point", 2),
        (CORRECTED, "fixed_point", 2),
        ("x", "max_rounds", 2),
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_in(0, rounds=0), "item 0: 0 rounds, but 1 to 2"),
        (set_in(0, rounds=3), "item 0: 3 rounds, but 1 to 2"),
        (set_in(2, rounds=1), "item 2: it ended after 1 of 2 rounds"),
        (set_in(0, ended="exhausted"), "did not answer as a Redline service does"),
        (set_in(0, correction="Hold it."), "item 0: its edits do not give its correction"),
        (set_in(0, edits=[]), "item 0: its edits do not give its correction"),
        (set_in(0, edits=[{"op": "delete", "start": 24, "end": 26, "text": ""}]), r"item 0: edits\[0\] is out of"),
        (
            set_in(0, edits=[{"op": "insert", "start": n, "end": n, "text": "a"} for n in (3, 2)]),
            r"edits\[1\] is out of",
        ),
        (set_in(2, edits=[{"op": "delete", "start": 3, "end": 2, "text": ""}]), r"item 2: edits\[0\] is out of order"),
        (without("items", 0, "score_after"), "item 0: fixed_point without score_after"),
        (set_in(0, rounds=1), "item 0: fixed_point after 1 rounds, but the correction differs from the response"),
        (set_in(0, ended="cycle", rounds=1), "item 0: cycle after 1 rounds"),
        (set_in(0, ended="cycle"), "item 0: cycle after 2 rounds, but the correction differs from the response"),
        (set_in(0, ended="too_long"), "item 0: a score_after of a correction that is too_long"),
        (set_in(0, truncated=True), "item 0: it was truncated"),
        (set_in(1, id="b"), "item 1: its id is 'b', but '[0-9a-f]{16}-1' was sent"),
        (set_in(1, error={"code": "too_long", "message": "m", "retryable": False}), "both an error and a result"),
        (set_at("options", "calibrated", to=True), "option calibrated"),
        (reverse_items, "item 0: its id"),
    ],
)
def test_an_invalid_correction_is_an_error(change: Change, reason: str, is_async: bool) -> None:
    with pytest.raises(ProtocolError, match=reason):
        corrected(is_async, change)


# --- what is not even of the right form -------------------------------------------------------------------------


def sent(body: bytes, use: Callable[[Any], Any], is_async: bool, status: int = 200, **headers: str) -> Any:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, content=body, headers=headers)

    return call(is_async, use, transport=httpx.MockTransport(answer))


GOOD = json.dumps(
    {
        "model": {"name": "default", "digest": "sha256:1", "kind": "seq2seq"},
        "options": {"aggregate": "sum", "calibrated": False},
        "items": [{"score": 7.0, "rewards": [7.0], "offsets": [[0, 1]], "diverged_at": 0}],
        "usage": {"scored_tokens": 1, "batch_tokens": 1},
    }
).encode()
SEVEN = b'"score": 7.0'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"<!doctype html><title>Sign in</title>",
        b"\xff\xfe" + GOOD,
        GOOD.replace(b"default", b"\xc3\x28"),
        GOOD.replace(b"default", b"\\ud800"),
        GOOD[:-1],
        GOOD + GOOD,
        *(
            GOOD.replace(SEVEN, b'"score": ' + value)
            for value in [
                b"NaN",
                b"Infinity",
                b"-Infinity",
                b"1e999",
                b"9" * 400,
                b"9" * 5000,
                b'"7.0"',
                b"true",
                b"null",
            ]
        ),
        GOOD.replace(b"[7.0]", b'["7.0"]'),
        GOOD.replace(b"[7.0]", b"[true]"),
        GOOD.replace(b"[7.0]", b"[NaN]"),
        GOOD.replace(b"[7.0]", b"7.0"),
        GOOD.replace(b"[[0, 1]]", b"[[0, 1, 2]]"),
        GOOD.replace(b"[[0, 1]]", b"[[0.5, 1]]"),
        GOOD.replace(b"[[0, 1]]", b"[" * 100_000),
        GOOD.replace(b"[[0, 1]]", b"[" * 100_000 + b"]" * 100_000),
        GOOD.replace(SEVEN, b'"new": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b", " + SEVEN),
        GOOD.replace(b'"diverged_at": 0', b'"diverged_at": 0.0'),
        GOOD.replace(b"false", b'"no"'),
    ],
    ids=lambda body: body[:40],
)
def test_a_malformed_answer_is_a_one_line_error(body: bytes, is_async: bool) -> None:
    def use(client: Any) -> Any:
        return client.score([{"prompt": "p", "response": "r"}])

    assert sent(GOOD, use, is_async).scored()[0].score == 7.0
    with pytest.raises(ProtocolError, match="did not answer as a Redline service does") as caught:
        sent(body, use, is_async)
    assert "\n" not in str(caught.value)


ERROR = b'{"code": "too_long", "message": "m", "retryable": false}'


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"diverged_at"', b'"\\u0065rror": %s, "diverged_at"' % ERROR, "both an error and a result"),
        (b'"diverged_at"', b'"error": %s, "diverged_at"' % ERROR, "both an error and a result"),
        (b'"score": 7.0, "rewards"', b'"error": %s, "rewards"' % ERROR, "both an error and a result"),
        (b'{"model"', b'{"error": %s, "model"' % ERROR, "both an error and items"),
        (b'{"model"', b'{"\\u0065rror": %s, "model"' % ERROR, "both an error and items"),
        (SEVEN, b'"score": 1.0, ' + SEVEN, "'score' is there twice"),
        (SEVEN, b'"scor\\u0065": 1.0, ' + SEVEN, "'score' is there twice"),
        (b'"offsets"', b'"rewards": [7.0], "offsets"', "'rewards' is there twice"),
        (b'"usage"', b'"items": [], "usage"', "'items' is there twice"),
        (b'"kind"', b'"digest": "sha256:2", "kind"', "'digest' is there twice"),
        (b'"diverged_at"', b'"new": {"a": 1, "a": 2, "score": 1}, "diverged_at"', "'a' is there twice"),
    ],
)
def test_an_ambiguous_answer_is_an_error(old: bytes, new: bytes, reason: str, is_async: bool) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(ProtocolError, match=reason):
        sent(GOOD.replace(old, new), lambda client: client.score([{"prompt": "p", "response": "r"}]), is_async)


@pytest.mark.parametrize("text", ["score", '"score"', 'a "score" b', "error", "\\u0065rror", "\\", "rewards"])
def test_texts_that_look_like_fields_are_accepted(text: str, is_async: bool) -> None:
    item = {"id": text, "score": 7.0, "rewards": [7.0], "offsets": [[0, 1]], "new": {"score": 1, "error": text}}
    body = json.dumps({**json.loads(GOOD), "items": [item]}).encode()
    request_item = {"id": text, "prompt": "p", "response": "r"}
    assert sent(body, lambda client: client.score([request_item]), is_async).scored()[0].score == 7.0


def test_an_ambiguous_refusal_is_an_error(is_async: bool) -> None:
    body = b'{"error": {"code": "c", "message": "m", "retryable": true, "retryable": false}}'
    with pytest.raises(ProtocolError, match="'retryable' is there twice"):
        sent(body, lambda client: client.models(), is_async, status=503)


@pytest.mark.parametrize("retryable", ["yes", 1, None, "false"])
def test_retryable_must_be_true_or_false(retryable: Any, is_async: bool) -> None:
    error = {"code": "some_new_code", "message": "m", "retryable": retryable}
    with pytest.raises(ProtocolError, match="HTTP 500 without a Redline error"):
        sent(json.dumps({"error": error}).encode(), lambda client: client.models(), is_async, status=500)
    with pytest.raises(ProtocolError):
        scored(is_async, set_at("items", to=[{"id": "a", "error": error}]), items=ITEMS[:1])


def test_codes_of_a_newer_service_are_tolerated_and_messages_are_one_line(is_async: bool) -> None:
    error = {"code": "some_new_code", "message": "one\ntwo\x1b[31m" + "x" * 10**6, "retryable": False}
    with pytest.raises(ServiceError) as caught:
        sent(json.dumps({"error": error}).encode(), lambda client: client.models(), is_async, status=418)
    assert caught.value.code == "some_new_code"
    assert str(caught.value).startswith("one two [31mxxx")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1200


def test_a_model_description_must_be_of_the_requested_model(is_async: bool) -> None:
    info = json.loads(FAKE.transport.handler(httpx.Request("GET", f"http://x{MODELS_PATH}/a")).content)  # type: ignore[union-attr]
    body = json.dumps(info).encode()
    assert sent(body, lambda client: client.model("a"), is_async).name == "a"
    assert sent(body, lambda client: client.model(), is_async).name == "a"
    with pytest.raises(ProtocolError, match="model 'b' was requested, but 'a' answered"):
        sent(body, lambda client: client.model("b"), is_async)
    for field, value in [("digest", "1"), ("kind", ""), ("name", "")]:
        wrong = json.dumps({"models": [{**info, field: value}]}).encode()
        with pytest.raises(ProtocolError, match="answer is invalid"):
            sent(wrong, lambda client: client.models(), is_async)


def test_the_name_of_a_model_is_one_part_of_the_path(is_async: bool) -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(404, html="")

    with pytest.raises(ProtocolError):
        call(is_async, lambda client: client.model("a?b#c"), transport=httpx.MockTransport(answer))
    assert seen[0].endswith(f"{MODELS_PATH}/a%3Fb%23c")


def test_only_ready_is_ready(is_async: bool) -> None:
    def wait(client: Any) -> Any:
        return client.wait_until_ready(timeout_s=0.05, poll_s=0.02)

    sent(b'{"status": "ready", "error": 1, "items": 3}', wait, is_async)
    with pytest.raises(RedlineError, match="not ready"):
        sent(b'{"status": "loading"}', wait, is_async)


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        ("3", None, 3.0),
        ("0.5", None, 0.5),
        ("-5", None, 0.0),
        ("nan", None, None),
        ("1e999", None, float("inf")),
        ("soon", None, None),
        ("", None, None),
        ("Wed, 21 Oct 2037 07:28:30 GMT", "Wed, 21 Oct 2037 07:28:00 GMT", 30.0),
        ("Wed, 21 Oct 2037 07:28:00 GMT", "Wed, 21 Oct 2037 07:28:30 GMT", 0.0),
        ("Wed, 21 Oct 2037 07:28:00 GMT", "yesterday", None),
        ("Wed, 21 Oct 2037 07:28:00 -0000", "Wed, 21 Oct 2037 07:28:00 GMT", None),
        ("Wed, 99 Oct 2037 07:28:00 GMT", None, None),
        ("Wed, 21 Oct 99999999999 07:28:00 GMT", None, None),
        ("Wed, 21 Oct 1999 07:28:00 GMT", None, 0.0),
    ],
)
def test_retry_after_in_any_form(value: str, date: str | None, seconds: float | None) -> None:
    headers = httpx.Headers({"Retry-After": value, **({} if date is None else {"Date": date})})
    assert retry_after_s(headers) == seconds


def test_a_retry_after_date_is_honoured(is_async: bool) -> None:
    answer_count = [http(b'{"error": {"code": "overloaded", "message": "m", "retryable": true}}', status="503 Busy")]
    headers = ["Date: Wed, 21 Oct 2037 07:28:00 GMT", "Retry-After: Wed, 21 Oct 2037 07:28:09 GMT"]
    answer_count[0] = answer_count[0].replace(b"Busy\r\n", b"Busy\r\n" + "\r\n".join([*headers, ""]).encode())
    answer_count.append(http(b'{"models": []}'))
    waits: list[float] = []

    def send(connection: socket.socket) -> None:
        while answer_count:
            receive_request(connection)
            connection.sendall(answer_count.pop(0))

    retry = RetryPolicy(first_wait_s=0.0, longest_wait_s=0.05)
    with RawServer(send) as server:
        call(
            is_async,
            lambda client: client.models(),
            url=server.url,
            retry=retry,
            on_wait=lambda error, wait_s: waits.append(wait_s),
        )
    assert waits == [0.05]


# --- any bytes at all -------------------------------------------------------------------------------------------

_STATUS_LINES = b"""HTTP/1.1 200 OK|HTTP/1.0 200|HTTP/1.1 999 \xff|HTTP/9 200 OK|HTTP/1.1 -1 no
HTTP/1.1 302 Found|HTTP/1.1 307 T|HTTP/1.1 204 No|HTTP/1.1 503 Busy|HTTP/1.1 101 Switch""".replace(b"\n", b"|").split(
    b"|"
)
_HEADERS = (
    b"""Location: http://[::1|Location: \xff\xfe|Location: //\x00|Location: mailto:a|Location: /%s|: |
Content-Length: 5|Content-Length: -1|Content-Length: 1e9|Content-Length: %s|Transfer-Encoding: chunked
Content-Encoding: gzip|Content-Encoding: \xff|Content-Type: ;;\xff|Retry-After: 9e999|Retry-After: Wed, 21 Oct
X-Request-Id: \xff|Set-Cookie: \xff=;;|Date: \xff""".replace(b"%s", b"9" * 5000)
    .replace(b"\n", b"|")
    .split(b"|")
)
_BODIES = [
    *[b"", b"{}", b'{"models": []}', b"5\r\n12345\r\n0\r\n\r\n", b"fffffffff\r\n", b"\x00", b"\n", b"\x1f\x8b\x08\x00"],
    b'{"error": {"code": "x", "message": "\\ud800", "retryable": false}}',
]


def random_answer(rng: random.Random) -> bytes:
    head = [rng.choice(_STATUS_LINES), *rng.choices(_HEADERS, k=rng.randrange(4))]
    return b"\r\n".join([*head, b"", b"".join(rng.choices(_BODIES, k=rng.randrange(3)))])


def test_any_bytes_give_a_redline_error(is_async: bool) -> None:
    rng = random.Random(14)
    answer_count = [random_answer(rng) for _ in range(60)]
    waiting = iter(answer_count)

    def send(connection: socket.socket) -> None:
        receive_request(connection)
        connection.sendall(next(waiting))

    with RawServer(send) as server:
        for answer in answer_count:
            try:
                assert call(is_async, lambda client: client.models(), url=server.url, timeout_s=5.0) == []
            except RedlineError as error:
                assert "\n" not in str(error), answer


def test_cookies_are_ignored(is_async: bool) -> None:
    heads: list[bytes] = []

    def send(connection: socket.socket) -> None:
        for _ in range(2):
            heads.append(receive_request(connection))
            connection.sendall(http(b'{"models": []}').replace(b"OK\r\n", b"OK\r\nSet-Cookie: \xff=1\r\n"))

    def twice(client: Any) -> Any:
        assert client.models() == []
        return client.models()

    async def twice_async(client: Any) -> Any:
        assert await client.models() == []
        return await client.models()

    with RawServer(send) as server:
        assert call(is_async, twice_async if is_async else twice, url=server.url) == []
    assert b"cookie" not in heads[1].lower()


# --- offsets of real tokenizers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TOKENIZERS)
def test_offsets_of_tokenizers_are_accepted(family: str) -> None:
    rng = random.Random(family)
    letters = "abcXYZ 019 \n\t.,'é\u0301\u200b\u00ad\x00\x07日本語한국рус🙂\u200d👧½ﬁ①Ⅷनमस्ते عَرَ\ufeff\ue000\u0e33ñÅǅßİŉ"
    tokenizer = tokenizer_of(family)
    for _ in range(500):
        text = "".join(rng.choices(letters, k=rng.randrange(1, 13)))
        encoding = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        spans = [tuple(span) for span in encoding["offset_mapping"]]
        if spans:
            assert offsets_problem([*spans, (len(text), len(text))], text) is None, (text, spans)


def test_an_unknown_aggregate_that_was_not_requested_is_refused(is_async: bool) -> None:
    def change(body: Answer) -> None:
        body["options"]["aggregate"] = "newest"

    with pytest.raises(ProtocolError, match="aggregate is 'newest', which is unknown"):
        scored(is_async, change)


@pytest.mark.parametrize(("field", "value"), [("digest", "sha256:\x1b[31m"), ("name", "a\x1b[2J"), ("kind", "x\n")])
def test_names_with_control_characters_are_refused(field: str, value: str, is_async: bool) -> None:
    def change(body: Answer) -> None:
        body["model"][field] = value

    with pytest.raises(ProtocolError):
        scored(is_async, change)
