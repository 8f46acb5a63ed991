"""``/v1/score``: correct results, and a clear error for each kind of bad input that does not affect other items."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from redline_model.bundle.bundle import Bundle
from redline_model.correction.edits import TextEdit, apply_edits
from redline_model.encoding.items import EncodedItem, Item
from redline_model.reward_spec import RewardSpec
from redline_model.scorer import ScoredResponse, Scorer, correct_all
from tests.redline_service.conftest import with_service

Ask = Callable[..., httpx.Response]
GOOD = {"id": "good", "prompt": "How do I reset my router?", "response": "Hold the round button."}


def items_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    items: list[dict[str, Any]] = response.json()["items"]
    return items


def to_rewards(scorer: Scorer[Any], item: EncodedItem, spec: RewardSpec) -> ScoredResponse:
    [(output, correction)] = correct_all(scorer, [item])
    return scorer.to_rewards(output, spec, correction)


def test_served_scores_equal_the_scorer_s(ask: Ask, bundle: Bundle) -> None:
    for mode in bundle.scorer.modes:
        answer = items_of(ask("POST", "/v1/score", json={"items": [GOOD], "options": {"mode": mode}}))[0]
        scorer = bundle.scorer
        item = scorer.encoder.encode(Item(GOOD["prompt"], GOOD["response"]))
        scored = to_rewards(scorer, item, RewardSpec(mode, "sum"))
        assert answer["rewards"] == pytest.approx(scored.rewards, abs=1e-5)
        assert answer["score"] == pytest.approx(scored.score, abs=1e-4)
        assert answer["offsets"] == [list(span) for span in item.offsets]
        assert answer.get("diverged_at") == scored.diverged_at


def test_the_response_names_model_digest_and_options(ask: Ask, bundle: Bundle) -> None:
    body = ask("POST", "/v1/score", json={"items": [GOOD]}).json()
    assert body["model"] == {"name": "default", "digest": bundle.digest, "kind": "seq2seq"}
    assert body["options"] == {"mode": "logprob", "score_mode": "logprob", "aggregate": "sum", "calibrated": False}
    assert body["usage"]["scored_tokens"] == len(body["items"][0]["rewards"])


def test_the_caller_s_tokens_get_one_reward_each_with_the_same_sum(ask: Ask) -> None:
    plain = items_of(ask("POST", "/v1/score", json={"items": [GOOD]}))[0]
    text = GOOD["response"]
    spans = [[n, n + 1] for n in range(len(text))] + [[len(text), len(text)]]  # one token per character, and the end
    aligned = items_of(ask("POST", "/v1/score", json={"items": [{**GOOD, "token_offsets": spans}]}))[0]
    assert len(aligned["rewards"]) == len(spans)
    assert aligned["offsets"] == spans
    assert math.fsum(aligned["rewards"]) == pytest.approx(math.fsum(plain["rewards"]), abs=1e-6)
    assert aligned["rewards"][-1] == plain["rewards"][-1]
    assert aligned["score"] == plain["score"]


def test_token_ids_and_text_get_the_same_rewards(ask: Ask, bundle: Bundle) -> None:
    tokenizer = bundle.scorer.encoder.tokenizer
    by_id = {
        "prompt_ids": tokenizer(GOOD["prompt"])["input_ids"],
        "response_ids": [*tokenizer(GOOD["response"])["input_ids"], tokenizer.eos_token_id],
        "tokenizer_fingerprint": bundle.tokenizer_fingerprint,
    }
    first, second = items_of(ask("POST", "/v1/score", json={"items": [GOOD, by_id]}))
    assert first["rewards"] == pytest.approx(second["rewards"], abs=1e-4)
    assert first["offsets"] == second["offsets"]


def test_an_unfinished_response_is_scored_without_its_end_token(ask: Ask) -> None:
    finished, unfinished = items_of(ask("POST", "/v1/score", json={"items": [GOOD, {**GOOD, "finished": False}]}))
    assert len(unfinished["rewards"]) == len(finished["rewards"]) - 1


def test_a_prompt_can_be_a_conversation(ask: Ask) -> None:
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": GOOD["prompt"]}]
    assert "score" in items_of(ask("POST", "/v1/score", json={"items": [{**GOOD, "prompt": prompt}]}))[0]


def test_the_edits_turn_the_response_into_the_correction(ask: Ask) -> None:
    items = items_of(ask("POST", "/v1/score", json={"items": [GOOD], "options": {"correction": True}}))
    edits = [TextEdit(**edit) for edit in items[0]["edits"]]
    assert apply_edits(GOOD["response"], edits) == items[0]["correction"]


def test_a_request_without_items_gets_no_results(ask: Ask) -> None:
    assert items_of(ask("POST", "/v1/score", json={"items": []})) == []


@pytest.mark.parametrize(
    ("item", "code", "reason"),
    [
        ({"prompt": "p", "response": ""}, "empty_response", "empty"),
        ({"prompt": [], "response": "x"}, "invalid_prompt", "empty"),
        ({"prompt": [{"role": "assistant", "content": "x"}], "response": "x"}, "invalid_prompt", "assistant"),
        (
            {"prompt": "p", "response_ids": [7, 10**7], "tokenizer_fingerprint": "OWN"},
            "bad_ids",
            r"response_ids\[1\]",
        ),
        ({"prompt": "p", "response_ids": [-3], "tokenizer_fingerprint": "OWN"}, "bad_ids", "-3"),
        (
            {"prompt": "p", "response_ids": [7], "tokenizer_fingerprint": "sha256:x"},
            "tokenizer_mismatch",
            "sha256:x",
        ),
        ({"prompt": "p", "response": "Hello", "token_offsets": [[0, 3]]}, "bad_offsets", "3 to 5"),
        ({"prompt": "p", "response": "Hello", "token_offsets": [[0, 9]]}, "bad_offsets", "5 characters"),
        ({"prompt": "p", "response": "Hello", "token_offsets": []}, "bad_offsets", "empty"),
        ({"prompt": "p", "response": "", "token_offsets": [[0, 2]]}, "bad_offsets", ""),
        ({"prompt": "word " * 600, "response": "x"}, "too_long", "512"),
    ],
)
def test_a_bad_item_has_its_own_error_and_the_others_are_scored(
    ask: Ask, bundle: Bundle, item: dict[str, Any], code: str, reason: str
) -> None:
    import re

    if item.get("tokenizer_fingerprint") == "OWN":
        item = {**item, "tokenizer_fingerprint": bundle.tokenizer_fingerprint}
    first, bad, last = items_of(ask("POST", "/v1/score", json={"items": [GOOD, {**item, "id": "bad"}, GOOD]}))
    assert first == last
    assert "score" in first
    assert bad["id"] == "bad"
    assert bad["error"]["code"] == code
    assert bad["error"]["retryable"] is False
    assert re.search(reason, bad["error"]["message"])


def test_a_response_that_is_only_an_end_token_is_scored(ask: Ask) -> None:
    item = {"prompt": "p", "response": "", "token_offsets": [[0, 0]]}
    assert len(items_of(ask("POST", "/v1/score", json={"items": [item]}))[0]["rewards"]) == 1


def test_too_long_prompts_are_truncated_if_requested(ask: Ask) -> None:
    item = {"prompt": "word " * 600, "response": "x"}
    body = {"items": [item], "options": {"on_too_long": "truncate"}}
    assert items_of(ask("POST", "/v1/score", json=body))[0]["truncated"] is True


@pytest.mark.parametrize(
    ("body", "status", "code", "reason"),
    [
        ({"items": [{"prompt": "p"}]}, 422, "invalid_request", "items.0: give exactly one of 'response'"),
        ({"items": [{"response": "r"}]}, 422, "invalid_request", "'prompt'"),
        ({}, 422, "invalid_request", "items: Field required"),
        ({"items": [GOOD], "itemz": 1}, 422, "invalid_request", "itemz"),
        ({"items": [{**GOOD, "respnse": "x"}]}, 422, "invalid_request", "items.0.respnse"),
        ({"items": [{**GOOD, "response_ids": [1]}]}, 422, "invalid_request", "response"),
        ({"items": [{"prompt": "p", "response_ids": [1]}]}, 422, "invalid_request", "tokenizer_fingerprint"),
        ({"model": "nope", "items": [GOOD]}, 404, "model_not_found", "nope"),
        ({"items": [GOOD], "options": {"mode": "papr"}}, 422, "unsupported", "margin"),
        ({"items": [GOOD], "options": {"aggregate": "max"}}, 422, "unsupported", "mean"),
        ({"items": [GOOD], "options": {"calibrated": True}}, 422, "unsupported", "no calibration"),
        ({"items": [GOOD] * 2000}, 413, "request_too_large", "2000"),
    ],
)
def test_bad_requests_are_refused_in_one_format(
    ask: Ask, body: dict[str, Any], status: int, code: str, reason: str
) -> None:
    response = ask("POST", "/v1/score", json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code
    assert reason in error["message"]
    assert response.headers["X-Request-Id"]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b'"x"', b""])
def test_bodies_that_are_not_a_request_are_refused(ask: Ask, content: bytes) -> None:
    response = ask("POST", "/v1/score", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "invalid_request"


def test_large_bodies_are_refused(ask: Ask) -> None:
    response = ask("POST", "/v1/score", json={"items": [GOOD] * 50}, settings={"max_body_bytes": 500})
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


def test_errors_of_unknown_routes_and_methods_have_the_same_format(ask: Ask) -> None:
    assert ask("GET", "/nowhere").json()["error"]["code"] == "not_found"
    assert ask("GET", "/v1/score").json()["error"]["code"] == "method_not_allowed"
    assert ask("GET", "/v1/models/nope").json()["error"]["code"] == "model_not_found"


def test_a_scalar_bundle_scores_without_modes(scalar_bundle: Bundle) -> None:
    async def work(http: httpx.AsyncClient) -> list[httpx.Response]:
        option_sets: list[dict[str, Any]] = [{}, {"mode": "paper"}, {"correction": True}]
        return [await http.post("/v1/score", json={"items": [GOOD], "options": options}) for options in option_sets]

    good, with_mode, with_correction = with_service(scalar_bundle, work)
    rewards = items_of(good)[0]["rewards"]
    assert rewards[:-1] == [0.0] * (len(rewards) - 1)
    assert with_mode.status_code == with_correction.status_code == 422


def test_concurrent_requests_get_the_same_scores_as_single_ones(bundle: Bundle) -> None:
    texts = [f"Hold the {word} button {n} times." for n, word in enumerate(["round", "red", "blue", "世界"] * 10)]

    async def work(http: httpx.AsyncClient) -> tuple[list[Any], list[Any]]:
        async def score(text: str) -> Any:
            body = {"items": [{**GOOD, "response": text}]}
            return (await http.post("/v1/score", json=body)).json()["items"][0]

        return list(await asyncio.gather(*map(score, texts))), [await score(text) for text in texts]

    together, alone = with_service(bundle, work)
    for first, second in zip(together, alone, strict=True):
        assert first["rewards"] == pytest.approx(second["rewards"], abs=2e-4)
        assert first["offsets"] == second["offsets"]


@pytest.mark.parametrize(
    "item",
    [
        {"prompt": "p", "response": "\ud800"},
        {"prompt": "\udfff", "response": "r"},
        {"id": "\ud800", "prompt": "p", "response": "r"},
        {"prompt": [{"role": "\ud800", "content": "c"}], "response": "r"},
        {"prompt": "p", "response": "r", "\ud800": 1},
    ],
)
def test_a_lone_surrogate_is_refused_and_not_retryable(ask: Ask, item: dict[str, Any]) -> None:
    content = json.dumps({"items": [GOOD, item]}).encode()  # escaped, so valid JSON
    response = ask("POST", "/v1/score", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 422, response.text
    assert response.json()["error"]["retryable"] is False
    assert "items.1" in response.json()["error"]["message"]


def test_more_offsets_than_bytes_are_refused_at_once(ask: Ask) -> None:
    item = {"prompt": "p", "response": "x" * 50, "token_offsets": [[0, 50]] * 100_000}
    assert items_of(ask("POST", "/v1/score", json={"items": [item]}))[0]["error"]["code"] == "bad_offsets"


def test_ids_with_an_end_token_cannot_be_unfinished(ask: Ask, bundle: Bundle) -> None:
    ids = {
        "prompt": "p",
        "response_ids": [7, 0],
        "finished": False,
        "tokenizer_fingerprint": bundle.tokenizer_fingerprint,
    }
    assert items_of(ask("POST", "/v1/score", json={"items": [ids]}))[0]["error"]["code"] == "bad_ids"
