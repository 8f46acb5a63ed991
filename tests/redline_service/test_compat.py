"""Compatible endpoints: the requests of other frameworks get the scores of ``/v1/score`` in their own formats."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from redline_model.bundle.bundle import Bundle
from redline_model.bundle.manifest import CalibrationFit
from redline_model.errors import UnsupportedError
from redline_model.scorer import Scorer
from redline_service.http.app import load_bundle
from redline_service.http.logs import KeyRedactor
from redline_service.settings import ServiceSettings
from tests.conftest import write_bundle
from tests.redline_service.conftest import with_service

Ask = Callable[..., httpx.Response]
PROMPT = "<|system|>Be brief.<|end|><|user|>How do I reset my router?<|end|><|assistant|>"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How do I reset my router?"}]
RESPONSE = "Hold the round button. 世界"
OTHER = "I am sorry."
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def native(bundle: Bundle) -> dict[str, Any]:
    """Results of ``/v1/score`` for some items, by name."""
    items = {
        "finished": {"prompt": CHAT, "response": RESPONSE},
        "unfinished": {"prompt": CHAT, "response": RESPONSE, "finished": False},
        "other": {"prompt": CHAT, "response": OTHER},
        "plain": {"prompt": "How do I reset my router?", "response": RESPONSE},
        "empty": {"prompt": CHAT, "response": "", "token_offsets": [[0, 0]]},
    }

    async def work(http: httpx.AsyncClient) -> dict[str, Any]:
        response = await http.post("/v1/score", json={"items": list(items.values())})
        return dict(zip(items, response.json()["items"], strict=True))

    return with_service(bundle, work)


def close(numbers: Any) -> Any:
    return pytest.approx(numbers, rel=1e-5, abs=1e-6)


# --- /get_reward -----------------------------------------------------------------------------------------


def test_openrlhf_one_sample(ask: Ask, native: dict[str, Any]) -> None:
    body = {"query": [PROMPT + RESPONSE + "<|end|>"], "prompts": [PROMPT], "labels": [None]}
    response = ask("POST", "/get_reward", json=body)
    assert response.status_code == 200
    reply, item = response.json(), native["finished"]
    assert reply["rewards"] == reply["scores"] == close([item["score"]])
    assert reply["extra_logs"] == {
        "redline_tokens": [float(len(item["rewards"]))],
        "redline_blamed_share": close([sum(reward < 0 for reward in item["rewards"]) / len(item["rewards"])]),
        "redline_beyond_clamp": [float(abs(item["score"]) > 10)],
    }
    assert all(isinstance(value, float) for value in reply["rewards"])


def test_openrlhf_batch_with_an_unfinished_and_an_empty_response(ask: Ask, native: dict[str, Any]) -> None:
    responses = [RESPONSE + "<|end|>", RESPONSE, OTHER + "<|end|>", "<|end|>"]
    body = {
        "query": [PROMPT + response for response in responses],
        "prompts": [PROMPT] * 4,
        "labels": ["a", 1, [2], {}],
    }
    expected = [native[name]["score"] for name in ("finished", "unfinished", "other", "empty")]
    assert ask("POST", "/get_reward", json=body).json()["rewards"] == close(expected)


def test_openrlhf_query_without_prompts(ask: Ask, native: dict[str, Any]) -> None:
    body = {"query": [PROMPT + RESPONSE + "<|end|>"]}
    assert ask("POST", "/get_reward", json=body).json()["rewards"] == close([native["finished"]["score"]])


def test_openrlhf_empty_batch_has_the_same_keys(ask: Ask) -> None:
    full = ask("POST", "/get_reward", json={"query": [PROMPT + "x<|end|>"], "prompts": [PROMPT], "labels": [""]})
    response = ask("POST", "/get_reward", json={"query": [], "prompts": [], "labels": []})
    assert response.status_code == 200
    reply = response.json()
    assert (reply["rewards"], reply["scores"]) == ([], [])
    assert reply["extra_logs"] == {name: [] for name in full.json()["extra_logs"]}


def test_align_anything(ask: Ask, native: dict[str, Any]) -> None:
    body = {"prompts": ["How do I reset my router?"] * 2, "responses": [RESPONSE, RESPONSE]}
    assert ask("POST", "/get_reward", json=body).json() == {"rewards": close([native["plain"]["score"]] * 2)}


@pytest.mark.parametrize("prompt", [PROMPT, CHAT])
def test_slime_gets_a_bare_number(ask: Ask, native: dict[str, Any], prompt: Any) -> None:
    body = {"prompt": prompt, "response": RESPONSE + "<|end|>", "label": {"any": "thing"}}
    response = ask("POST", "/get_reward", json=body)
    assert response.headers["content-type"] == "application/json"
    assert response.json() == close(native["finished"]["score"])
    assert ask("POST", "/get_reward", json={**body, "response": RESPONSE}).json() == close(
        native["unfinished"]["score"]
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"texts": ["a"]}, "the body must have a field"),
        ({"query": ["a b"], "prompts": ["c"], "labels": [""]}, "does not begin with its prompt"),
        ({"query": ["a", "b"], "prompts": ["a"]}, "1 prompts for 2 queries"),
        ({"prompts": ["a"], "responses": []}, "1 prompts for 0 responses"),
        ({"query": ["how are you"]}, "no known markup"),
    ],
)
def test_a_body_that_cannot_be_scored_is_refused_with_the_reason(ask: Ask, body: dict[str, Any], reason: str) -> None:
    response = ask("POST", "/get_reward", json=body)
    assert response.status_code == 422
    assert reason in response.json()["error"]["message"]


def test_one_bad_sample_fails_the_whole_request(ask: Ask) -> None:
    body = {"prompts": ["Why?", "Why?"], "responses": ["So.", "word " * 2000]}
    response = ask("POST", "/get_reward", json=body)
    assert response.status_code == 413
    assert response.json()["error"]["message"].startswith("item 1: ")


# --- LLaMA-Factory, engines, NeMo-Gym --------------------------------------------------------------------


def test_llama_factory(ask: Ask, native: dict[str, Any]) -> None:
    texts = [PROMPT + RESPONSE + "<|end|>", "<|end|><|end|>" + PROMPT + OTHER + "<|end|><|end|>"]
    reply = ask("POST", "/v1/score/evaluation", json={"model": "model", "messages": texts}).json()
    assert reply["scores"] == close([native["finished"]["score"], native["other"]["score"]])
    assert reply["object"] == "score.evaluation"
    assert ask("POST", "/v1/score/evaluation", json={"model": "model", "messages": []}).json()["scores"] == []


@pytest.mark.parametrize("extra", [{"use_activation": False}, {"activation": False}, {}])
def test_verl_s_request_to_vllm(ask: Ask, native: dict[str, Any], extra: dict[str, Any]) -> None:
    body = {"model": "/some/path", "input": PROMPT + RESPONSE + "<|end|>", **extra}
    reply = ask("POST", "/classify", json=body).json()
    assert reply["data"][-1]["probs"][-1] == close(native["finished"]["score"])
    assert (reply["object"], reply["data"][0]["index"], reply["data"][0]["num_classes"]) == ("list", 0, 1)


def test_an_activation_is_applied_only_if_requested(ask: Ask, native: dict[str, Any]) -> None:
    body = {"input": [PROMPT + OTHER + "<|end|>"], "use_activation": True}
    value = ask("POST", "/classify", json=body).json()["data"][0]["probs"][0]
    assert value == close(1 / (1 + math.exp(-native["other"]["score"])))


def test_vllm_messages_ids_and_empty_input(ask: Ask, native: dict[str, Any], tokenizer: Any) -> None:
    messages = [*CHAT, {"role": "assistant", "content": RESPONSE}]
    assert ask("POST", "/classify", json={"messages": messages}).json()["data"][0]["probs"] == close(
        [native["finished"]["score"]]
    )
    ids = tokenizer(PROMPT + RESPONSE + "<|end|>")["input_ids"]
    for input_ids in (ids, [ids]):
        reply = ask("POST", "/classify", json={"input": input_ids}).json()
        assert reply["data"][0]["probs"] == close([native["finished"]["score"]])
    assert ask("POST", "/classify", json={"input": []}).json()["data"] == []
    assert ask("POST", "/classify", json={"input": [5000]}).status_code == 422


@pytest.mark.parametrize("is_sent_as_ids", [False, True])
def test_pooling_returns_one_row_per_token_of_the_input(
    ask: Ask, native: dict[str, Any], tokenizer: Any, is_sent_as_ids: bool
) -> None:
    texts = [PROMPT + RESPONSE + "<|end|>", PROMPT + RESPONSE]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    body = {"model": "m", "task": "token_classify", "input": ids if is_sent_as_ids else texts}
    rows = ask("POST", "/pooling", json=body).json()["data"]
    for row, token_ids, name in zip(rows, ids, ("finished", "unfinished"), strict=True):
        rewards = [value for [value] in row["data"]]
        expected = native[name]["rewards"]
        assert len(rewards) == len(token_ids)
        start = len(tokenizer(PROMPT)["input_ids"])
        # the tokens are those of the model's tokenizer, so each has the reward of the model's own token
        assert rewards[start:] == close(expected)
        assert rewards[:start] == [0.0] * start
        assert math.fsum(rewards) == close(native[name]["score"])


def test_pooling_with_one_score_per_input_and_with_messages(ask: Ask, native: dict[str, Any]) -> None:
    body = {"task": "classify", "input": PROMPT + RESPONSE + "<|end|>"}
    assert ask("POST", "/pooling", json=body).json()["data"][0]["data"] == close([native["finished"]["score"]])
    messages = [*CHAT, {"role": "assistant", "content": RESPONSE}]
    assert ask("POST", "/pooling", json={"task": "token_classify", "messages": messages}).status_code == 422
    assert ask("POST", "/pooling", json={"task": "embed", "input": "x"}).status_code == 422


def test_sglang_returns_an_object_for_one_sample_and_a_list_for_several(
    ask: Ask, native: dict[str, Any], tokenizer: Any
) -> None:
    text = PROMPT + RESPONSE + "<|end|>"
    score = close([native["finished"]["score"]])
    assert ask("POST", "/classify", json={"model": "m", "text": text}).json()["embedding"] == score
    assert [row["embedding"] for row in ask("POST", "/classify", json={"text": [text]}).json()] == [score]
    ids = tokenizer(text)["input_ids"]
    assert ask("POST", "/classify", json={"input_ids": ids}).json()["embedding"] == score
    assert ask("POST", "/classify", json={"text": []}).json() == []


def test_verl_s_request_to_sglang(ask: Ask, native: dict[str, Any]) -> None:
    reply = ask("POST", "/v1/embeddings", json={"model": "any", "input": PROMPT + RESPONSE + "<|end|>"}).json()
    assert reply["data"][-1]["embedding"][-1] == close(native["finished"]["score"])


@pytest.mark.parametrize("path", ["/classify", "/pooling", "/v1/embeddings"])
def test_a_body_without_input_is_refused(ask: Ask, path: str) -> None:
    for body in ({}, {"input": None}):
        assert ask("POST", path, json=body).status_code == 422


@pytest.mark.parametrize(
    "change",
    [
        {"response": {"output": 5}},
        {"responses_create_params": {"input": 5}},
        {"response": {"output": [{"role": "assistant", "content": [{"text": 12}]}]}},
    ],
)
def test_invalid_nemo_gym_bodies_are_refused(ask: Ask, change: dict[str, Any]) -> None:
    body = {
        "responses_create_params": {"input": "Why?"},
        "response": {"output": [{"type": "message", "role": "assistant", "content": "So."}]},
    }
    assert ask("POST", "/verify", json=body).status_code == 200
    assert (
        ask("POST", "/verify", content=json.dumps({**body, "note": "\ud800"}), headers=JSON).json()["note"] == "\ud800"
    )
    assert ask("POST", "/verify", json={**body, **change}).status_code == 422


def test_nemo_gym_gets_its_body_back_with_a_reward(ask: Ask, native: dict[str, Any]) -> None:
    message = {"id": "m", "type": "message", "role": "assistant", "status": "completed"}
    content = [{"type": "output_text", "text": RESPONSE, "annotations": []}]
    body = {
        "responses_create_params": {"input": [{**turn, "type": "message"} for turn in CHAT]},
        "response": {
            "id": "r",
            "created_at": 1.0,
            "model": "m",
            "object": "response",
            "output": [{"type": "reasoning", "id": "t", "summary": []}, {**message, "content": content}],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        },
        "difficulty": 3,
    }
    reply = ask("POST", "/verify", json=body).json()
    assert reply.pop("reward") == close(native["finished"]["score"])
    assert reply == body
    assert ask("POST", "/seed_session", json=body).json() == {}
    body["response"]["output"] = []  # type: ignore[index]
    assert ask("POST", "/verify", json=body).status_code == 422


# --- settings, keys, load --------------------------------------------------------------------------------


def test_the_setting_scalar_chooses_how_a_response_is_scored(ask: Ask, native: dict[str, Any], bundle: Bundle) -> None:
    body = {"prompts": ["How do I reset my router?"], "responses": [RESPONSE]}
    rewards = native["plain"]["rewards"]
    for scalar, expected in (
        ("sum", math.fsum(rewards)),
        ("mean", math.fsum(rewards) / len(rewards)),
        ("last", rewards[-1]),
    ):
        reply = ask("POST", "/get_reward", settings={"scalar": scalar}, json=body).json()
        assert reply["rewards"] == close([expected]), scalar


def test_scalar_calibrated_needs_a_calibrated_bundle(tmp_path: Path, causal_scorer: Scorer[Any]) -> None:
    bundle = write_bundle(tmp_path / "rm", causal_scorer)
    assert not bundle.manifest.calibration
    with pytest.raises(UnsupportedError, match="no calibration for logprob/sum"):
        load_bundle(ServiceSettings(bundle=str(tmp_path / "rm"), scalar="calibrated"))
    fit = CalibrationFit(temperature=2.0, mean=-3.0, std=1.0, expected_calibration_error=0.1)
    manifest = bundle.manifest.model_copy(update={"calibration": {"logprob/sum": fit}})
    calibrated = Bundle(tmp_path / "rm", manifest, bundle.scorer, bundle.load_options)

    async def work(http: httpx.AsyncClient) -> tuple[float, float]:
        body = {"prompts": ["Why?"], "responses": [RESPONSE]}
        item = {"prompt": "Why?", "response": RESPONSE}
        score = (await http.post("/v1/score", json={"items": [item]})).json()["items"][0]["score"]
        return (await http.post("/get_reward", json=body)).json()["rewards"][0], score

    reward, score = with_service(calibrated, work, scalar="calibrated")
    assert reward == close((score + 3.0) / 2.0)


def test_a_too_long_prompt_is_truncated_unless_the_setting_is_error(ask: Ask) -> None:
    body = {"prompts": ["word " * 2000], "responses": ["So."]}
    assert ask("POST", "/get_reward", json=body).status_code == 200
    refused = ask("POST", "/get_reward", settings={"dropin_too_long": "error"}, json=body)
    assert refused.status_code == 413


def test_the_setting_caller_end_names_an_unusual_end_token(ask: Ask, native: dict[str, Any]) -> None:
    body = {"prompt": "How do I reset my router?", "response": RESPONSE + "[STOP]"}
    reward = ask("POST", "/get_reward", settings={"caller_end": "[STOP]"}, json=body).json()
    assert reward == close(native["plain"]["score"])


@pytest.mark.parametrize("key", ["secret", "a/b c%é"])
def test_a_key_can_be_sent_before_the_path(ask: Ask, key: str) -> None:
    body = {"prompts": ["Why?"], "responses": ["So."]}
    settings = {"keys": [key]}
    assert ask("POST", "/get_reward", settings=settings, json=body).status_code == 401
    assert ask("POST", f"/key/{quote(key, safe='')}/get_reward", settings=settings, json=body).status_code == 200
    assert ask("POST", "/key/wrong/get_reward", settings=settings, json=body).status_code == 401
    assert ask("GET", f"/key/{quote(key, safe='')}/v1/models", settings=settings).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["//key/secret/get_reward", "/key//secret//get_reward", "/%6bey/secret/get_reward/", "/Key/secret/get_reward"],
)
def test_a_key_before_the_path_is_found_in_carelessly_joined_urls(ask: Ask, path: str) -> None:
    body = {"prompts": ["Why?"], "responses": ["So."]}
    assert ask("POST", f"http://test{path}", settings={"keys": ["secret"]}, json=body).status_code == 200


def redacted(message: str, *keys: str, error: Exception | None = None) -> str:
    info = None if error is None else (type(error), error, None)
    return KeyRedactor("%(message)s", keys).format(logging.LogRecord("x", 20, "", 0, message, None, info))


def percent_encoded(text: str, pattern: str = "%{:02x}") -> str:
    return "".join(pattern.format(ord(character)) for character in text)


@pytest.mark.parametrize(
    "encode",
    [
        *(str, str.upper, quote, percent_encoded),
        *(lambda key: percent_encoded(key, "%{:02X}"), lambda key: percent_encoded(key, "%25{:02x}")),
    ],
)
@pytest.mark.parametrize("key", ["secret", "a/b+c?d", 'x"y\\z', "a.c"])
def test_keys_are_redacted_from_log_lines_in_every_encoding(key: str, encode: Callable[[str], str]) -> None:
    assert redacted(f"GET /key/{encode(key)}/x?key={encode(key)}", "other", key) == "GET /key/***/x?key=***"
    assert redacted(f"{encode(key)!r}", key).strip("'\"") == "***"


def test_keys_and_nothing_else_are_redacted_from_tracebacks() -> None:
    line = redacted("failed", "a.c", error=ValueError("no a.c, but abc"))
    assert "a.c" not in line
    assert "abc" in line
    assert redacted("secretive a%c") == "secretive a%c"


def test_a_key_in_the_path_appears_in_no_log_and_no_metric(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    async def work(http: httpx.AsyncClient) -> str:
        for path in ("/key/secret/get_reward", "/key/secret/nowhere", "/key/secret", "/key/secret/get_reward/"):
            response = await http.post(path, json={"query": [1]}, follow_redirects=False)
            assert "secret" not in response.text + str(response.headers), path
        return (await http.get("/metrics")).text

    with caplog.at_level(logging.DEBUG):
        metrics = with_service(bundle, work, keys=["secret"])
    service_records = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert "secret" not in metrics + " ".join(record.getMessage() for record in service_records)


def test_a_thousand_concurrent_requests_get_their_own_scores(bundle: Bundle) -> None:
    words = ["open", "the", "network", "panel", "hold", "round", "button", "and", "wait", "ten", "seconds"]
    texts = [" ".join([words[n % 11], words[n // 11 % 11], words[n // 121 % 11]]) for n in range(1000)]

    async def work(http: httpx.AsyncClient) -> tuple[list[float], list[float]]:
        bodies = [{"query": [f"{PROMPT}{text}<|end|>"], "prompts": [PROMPT], "labels": [""]} for text in texts]
        responses = await asyncio.gather(*(http.post("/get_reward", json=body) for body in bodies))
        assert {response.status_code for response in responses} == {200}
        items = [{"prompt": CHAT, "response": text} for text in texts]
        batch = await http.post("/v1/score", json={"items": items})
        rewards = [response.json()["rewards"][0] for response in responses]
        return rewards, [item["score"] for item in batch.json()["items"]]

    rewards, expected = with_service(bundle, work)
    assert rewards == close(expected)


def test_overload_is_503_with_retry_after(bundle: Bundle) -> None:
    async def work(http: httpx.AsyncClient) -> list[httpx.Response]:
        body = {"prompts": ["Why?"], "responses": ["So. " * 50]}
        return await asyncio.gather(*(http.post("/get_reward", json=body) for _ in range(20)))

    responses = with_service(bundle, work, max_queued_requests=2)
    refused = [response for response in responses if response.status_code != 200]
    assert refused
    assert {response.status_code for response in refused} == {503}
    assert all("retry-after" in response.headers for response in refused)


def test_responses_contain_no_nan_or_infinity(ask: Ask) -> None:
    response = ask("POST", "/get_reward", json={"prompts": ["Why?"], "responses": ["So."]})
    json.loads(response.text, parse_constant=pytest.fail)
