"""Every loop's real request gets the number that the native endpoint gives, in the shape that the loop reads."""

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
    """The native endpoint's items, by name."""
    items = {
        "done": {"prompt": CHAT, "response": RESPONSE},
        "cut": {"prompt": CHAT, "response": RESPONSE, "finished": False},
        "other": {"prompt": CHAT, "response": OTHER},
        "plain": {"prompt": "How do I reset my router?", "response": RESPONSE},
        "silent": {"prompt": CHAT, "response": "", "token_offsets": [[0, 0]]},
    }

    async def work(http: httpx.AsyncClient) -> dict[str, Any]:
        answer = await http.post("/v1/score", json={"items": list(items.values())})
        return dict(zip(items, answer.json()["items"], strict=True))

    return with_service(bundle, work)


def close(numbers: Any) -> Any:
    return pytest.approx(numbers, rel=1e-5, abs=1e-6)


# --- /get_reward -----------------------------------------------------------------------------------------


def test_openrlhf_one_sample(ask: Ask, native: dict[str, Any]) -> None:
    body = {"query": [PROMPT + RESPONSE + "<|end|>"], "prompts": [PROMPT], "labels": [None]}
    answer = ask("POST", "/get_reward", json=body)
    assert answer.status_code == 200
    told, item = answer.json(), native["done"]
    assert told["rewards"] == told["scores"] == close([item["score"]])
    assert told["extra_logs"] == {
        "redline_tokens": [float(len(item["rewards"]))],
        "redline_blamed_share": close([sum(r < 0 for r in item["rewards"]) / len(item["rewards"])]),
        "redline_beyond_clamp": [float(abs(item["score"]) > 10)],
    }
    assert all(isinstance(value, float) for value in told["rewards"])


def test_openrlhf_batch_with_a_truncated_and_a_silent_sample(ask: Ask, native: dict[str, Any]) -> None:
    responses = [RESPONSE + "<|end|>", RESPONSE, OTHER + "<|end|>", "<|end|>"]
    body = {"query": [PROMPT + one for one in responses], "prompts": [PROMPT] * 4, "labels": ["a", 1, [2], {}]}
    expected = [native[name]["score"] for name in ("done", "cut", "other", "silent")]
    assert ask("POST", "/get_reward", json=body).json()["rewards"] == close(expected)


def test_openrlhf_query_alone(ask: Ask, native: dict[str, Any]) -> None:
    body = {"query": [PROMPT + RESPONSE + "<|end|>"]}
    assert ask("POST", "/get_reward", json=body).json()["rewards"] == close([native["done"]["score"]])


def test_openrlhf_empty_shard_has_the_same_keys(ask: Ask) -> None:
    full = ask("POST", "/get_reward", json={"query": [PROMPT + "x<|end|>"], "prompts": [PROMPT], "labels": [""]})
    answer = ask("POST", "/get_reward", json={"query": [], "prompts": [], "labels": []})
    assert answer.status_code == 200
    told = answer.json()
    assert (told["rewards"], told["scores"]) == ([], [])
    assert told["extra_logs"] == {name: [] for name in full.json()["extra_logs"]}


def test_align_anything(ask: Ask, native: dict[str, Any]) -> None:
    body = {"prompts": ["How do I reset my router?"] * 2, "responses": [RESPONSE, RESPONSE]}
    assert ask("POST", "/get_reward", json=body).json() == {"rewards": close([native["plain"]["score"]] * 2)}


@pytest.mark.parametrize("prompt", [PROMPT, CHAT])
def test_slime_gets_a_bare_number(ask: Ask, native: dict[str, Any], prompt: Any) -> None:
    body = {"prompt": prompt, "response": RESPONSE + "<|end|>", "label": {"any": "thing"}}
    answer = ask("POST", "/get_reward", json=body)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == close(native["done"]["score"])
    assert ask("POST", "/get_reward", json={**body, "response": RESPONSE}).json() == close(native["cut"]["score"])


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
def test_what_cannot_be_scored_is_refused_with_its_reason(ask: Ask, body: dict[str, Any], reason: str) -> None:
    answer = ask("POST", "/get_reward", json=body)
    assert answer.status_code == 422
    assert reason in answer.json()["error"]["message"]


def test_one_bad_sample_is_never_given_a_number(ask: Ask) -> None:
    body = {"prompts": ["Why?", "Why?"], "responses": ["So.", "word " * 2000]}
    answer = ask("POST", "/get_reward", json=body)
    assert answer.status_code == 413
    assert answer.json()["error"]["message"].startswith("item 1: ")


# --- LLaMA-Factory, engines, NeMo-Gym --------------------------------------------------------------------


def test_llama_factory(ask: Ask, native: dict[str, Any]) -> None:
    texts = [PROMPT + RESPONSE + "<|end|>", "<|end|><|end|>" + PROMPT + OTHER + "<|end|><|end|>"]
    told = ask("POST", "/v1/score/evaluation", json={"model": "model", "messages": texts}).json()
    assert told["scores"] == close([native["done"]["score"], native["other"]["score"]])
    assert told["object"] == "score.evaluation"
    assert ask("POST", "/v1/score/evaluation", json={"model": "model", "messages": []}).json()["scores"] == []


@pytest.mark.parametrize("extra", [{"use_activation": False}, {"activation": False}, {}])
def test_verl_s_request_to_vllm(ask: Ask, native: dict[str, Any], extra: dict[str, Any]) -> None:
    body = {"model": "/some/path", "input": PROMPT + RESPONSE + "<|end|>", **extra}
    told = ask("POST", "/classify", json=body).json()
    assert told["data"][-1]["probs"][-1] == close(native["done"]["score"])
    assert (told["object"], told["data"][0]["index"], told["data"][0]["num_classes"]) == ("list", 0, 1)


def test_an_activation_is_applied_only_when_asked_for(ask: Ask, native: dict[str, Any]) -> None:
    body = {"input": [PROMPT + OTHER + "<|end|>"], "use_activation": True}
    value = ask("POST", "/classify", json=body).json()["data"][0]["probs"][0]
    assert value == close(1 / (1 + math.exp(-native["other"]["score"])))


def test_vllm_messages_ids_and_nothing(ask: Ask, native: dict[str, Any], tokenizer: Any) -> None:
    messages = [*CHAT, {"role": "assistant", "content": RESPONSE}]
    assert ask("POST", "/classify", json={"messages": messages}).json()["data"][0]["probs"] == close(
        [native["done"]["score"]]
    )
    ids = tokenizer(PROMPT + RESPONSE + "<|end|>")["input_ids"]
    for given in (ids, [ids]):
        told = ask("POST", "/classify", json={"input": given}).json()
        assert told["data"][0]["probs"] == close([native["done"]["score"]])
    assert ask("POST", "/classify", json={"input": []}).json()["data"] == []
    assert ask("POST", "/classify", json={"input": [5000]}).status_code == 422


@pytest.mark.parametrize("as_ids", [False, True])
def test_pooling_gives_a_row_a_token_of_the_input(
    ask: Ask, native: dict[str, Any], tokenizer: Any, as_ids: bool
) -> None:
    texts = [PROMPT + RESPONSE + "<|end|>", PROMPT + RESPONSE]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    body = {"model": "m", "task": "token_classify", "input": ids if as_ids else texts}
    told = ask("POST", "/pooling", json=body).json()["data"]
    for row, own, name in zip(told, ids, ("done", "cut"), strict=True):
        rewards = [value for [value] in row["data"]]
        expected = native[name]["rewards"]
        assert len(rewards) == len(own)
        start = len(tokenizer(PROMPT)["input_ids"])
        assert rewards[start:] == close(expected)  # the tokenizer is the model's own
        assert rewards[:start] == [0.0] * start
        assert math.fsum(rewards) == close(native[name]["score"])


def test_pooling_of_whole_inputs_and_of_messages(ask: Ask, native: dict[str, Any]) -> None:
    body = {"task": "classify", "input": PROMPT + RESPONSE + "<|end|>"}
    assert ask("POST", "/pooling", json=body).json()["data"][0]["data"] == close([native["done"]["score"]])
    messages = [*CHAT, {"role": "assistant", "content": RESPONSE}]
    assert ask("POST", "/pooling", json={"task": "token_classify", "messages": messages}).status_code == 422
    assert ask("POST", "/pooling", json={"task": "embed", "input": "x"}).status_code == 422


def test_sglang_answers_one_with_an_object_and_many_with_a_list(
    ask: Ask, native: dict[str, Any], tokenizer: Any
) -> None:
    text = PROMPT + RESPONSE + "<|end|>"
    score = close([native["done"]["score"]])
    assert ask("POST", "/classify", json={"model": "m", "text": text}).json()["embedding"] == score
    assert [one["embedding"] for one in ask("POST", "/classify", json={"text": [text]}).json()] == [score]
    ids = tokenizer(text)["input_ids"]
    assert ask("POST", "/classify", json={"input_ids": ids}).json()["embedding"] == score
    assert ask("POST", "/classify", json={"text": []}).json() == []


def test_verl_s_request_to_sglang(ask: Ask, native: dict[str, Any]) -> None:
    told = ask("POST", "/v1/embeddings", json={"model": "any", "input": PROMPT + RESPONSE + "<|end|>"}).json()
    assert told["data"][-1]["embedding"][-1] == close(native["done"]["score"])


@pytest.mark.parametrize("path", ["/classify", "/pooling", "/v1/embeddings"])
def test_a_body_that_asks_for_nothing_is_refused(ask: Ask, path: str) -> None:
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
def test_nemo_gym_bodies_of_no_sense_are_refused(ask: Ask, change: dict[str, Any]) -> None:
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
    told = ask("POST", "/verify", json=body).json()
    assert told.pop("reward") == close(native["done"]["score"])
    assert told == body
    assert ask("POST", "/seed_session", json=body).json() == {}
    body["response"]["output"] = []  # type: ignore[index]
    assert ask("POST", "/verify", json=body).status_code == 422


# --- settings, keys, load --------------------------------------------------------------------------------


def test_the_scalar_is_the_server_s_setting(ask: Ask, native: dict[str, Any], bundle: Bundle) -> None:
    body = {"prompts": ["How do I reset my router?"], "responses": [RESPONSE]}
    rewards = native["plain"]["rewards"]
    for scalar, expected in (
        ("sum", math.fsum(rewards)),
        ("mean", math.fsum(rewards) / len(rewards)),
        ("last", rewards[-1]),
    ):
        told = ask("POST", "/get_reward", settings={"scalar": scalar}, json=body).json()["rewards"]
        assert told == close([expected]), scalar


def test_a_calibrated_scalar_needs_a_calibrated_bundle(tmp_path: Path, causal_scorer: Scorer[Any]) -> None:
    bundle = write_bundle(tmp_path / "rm", causal_scorer)
    assert not bundle.manifest.calibration
    with pytest.raises(UnsupportedError, match="no calibration for margin/sum"):
        load_bundle(ServiceSettings(bundle=str(tmp_path / "rm"), scalar="calibrated"))
    fit = CalibrationFit(temperature=2.0, mean=-3.0, std=1.0, expected_calibration_error=0.1)
    manifest = bundle.manifest.model_copy(update={"calibration": {"margin/sum": fit}})
    calibrated = Bundle(tmp_path / "rm", manifest, bundle.scorer, bundle.load_options)

    async def work(http: httpx.AsyncClient) -> tuple[float, float]:
        body = {"prompts": ["Why?"], "responses": [RESPONSE]}
        item = {"prompt": "Why?", "response": RESPONSE}
        raw = (await http.post("/v1/score", json={"items": [item]})).json()["items"][0]["score"]
        return (await http.post("/get_reward", json=body)).json()["rewards"][0], raw

    told, raw = with_service(calibrated, work, scalar="calibrated")
    assert told == close((raw + 3.0) / 2.0)


def test_a_prompt_that_is_too_long_is_cut_unless_told_otherwise(ask: Ask) -> None:
    body = {"prompts": ["word " * 2000], "responses": ["So."]}
    assert ask("POST", "/get_reward", json=body).status_code == 200
    refused = ask("POST", "/get_reward", settings={"dropin_too_long": "error"}, json=body)
    assert refused.status_code == 413


def test_an_unusual_end_token_can_be_named(ask: Ask, native: dict[str, Any]) -> None:
    body = {"prompt": "How do I reset my router?", "response": RESPONSE + "[STOP]"}
    told = ask("POST", "/get_reward", settings={"caller_end": "[STOP]"}, json=body).json()
    assert told == close(native["plain"]["score"])


@pytest.mark.parametrize("key", ["secret", "a/b c%é"])
def test_a_key_may_stand_before_the_path(ask: Ask, key: str) -> None:
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
def test_addresses_that_were_joined_carelessly_still_carry_their_key(ask: Ask, path: str) -> None:
    body = {"prompts": ["Why?"], "responses": ["So."]}
    assert ask("POST", f"http://test{path}", settings={"keys": ["secret"]}, json=body).status_code == 200


def logged(message: str, *keys: str, error: Exception | None = None) -> str:
    info = None if error is None else (type(error), error, None)
    return KeyRedactor("%(message)s", keys).format(logging.LogRecord("x", 20, "", 0, message, None, info))


def percent(text: str, form: str = "%{:02x}") -> str:
    return "".join(form.format(ord(character)) for character in text)


@pytest.mark.parametrize(
    "form", [str, str.upper, quote, percent, lambda key: percent(key, "%{:02X}"), lambda key: percent(key, "%25{:02x}")]
)
@pytest.mark.parametrize("key", ["secret", "a/b+c?d", 'x"y\\z', "a.c"])
def test_keys_are_struck_out_of_log_lines_in_every_form(key: str, form: Callable[[str], str]) -> None:
    assert logged(f"GET /key/{form(key)}/x?key={form(key)}", "other", key) == "GET /key/***/x?key=***"
    assert logged(f"{form(key)!r}", key).strip("'\"") == "***"


def test_keys_are_struck_out_of_tracebacks_and_nothing_else_is() -> None:
    line = logged("failed", "a.c", error=ValueError("no a.c, but abc"))
    assert "a.c" not in line
    assert "abc" in line
    assert logged("secretive a%c") == "secretive a%c"


def test_a_key_in_the_path_reaches_no_log_and_no_metric(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    async def work(http: httpx.AsyncClient) -> str:
        for path in ("/key/secret/get_reward", "/key/secret/nowhere", "/key/secret", "/key/secret/get_reward/"):
            answer = await http.post(path, json={"query": [1]}, follow_redirects=False)
            assert "secret" not in answer.text + str(answer.headers), path
        return (await http.get("/metrics")).text

    with caplog.at_level(logging.DEBUG):
        metrics = with_service(bundle, work, keys=["secret"])
    own = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert "secret" not in metrics + " ".join(record.getMessage() for record in own)


def test_a_thousand_callers_at_once_all_get_their_own_number(bundle: Bundle) -> None:
    words = ["open", "the", "network", "panel", "hold", "round", "button", "and", "wait", "ten", "seconds"]
    texts = [" ".join([words[n % 11], words[n // 11 % 11], words[n // 121 % 11]]) for n in range(1000)]

    async def work(http: httpx.AsyncClient) -> tuple[list[float], list[float]]:
        bodies = [{"query": [f"{PROMPT}{t}<|end|>"], "prompts": [PROMPT], "labels": [""]} for t in texts]
        answers = await asyncio.gather(*(http.post("/get_reward", json=body) for body in bodies))
        assert {answer.status_code for answer in answers} == {200}
        alone = await http.post("/v1/score", json={"items": [{"prompt": CHAT, "response": t} for t in texts]})
        return [a.json()["rewards"][0] for a in answers], [item["score"] for item in alone.json()["items"]]

    told, expected = with_service(bundle, work)
    assert told == close(expected)


def test_overload_is_503_with_retry_after(bundle: Bundle) -> None:
    async def work(http: httpx.AsyncClient) -> list[httpx.Response]:
        body = {"prompts": ["Why?"], "responses": ["So. " * 50]}
        return await asyncio.gather(*(http.post("/get_reward", json=body) for _ in range(20)))

    answers = with_service(bundle, work, max_queued_requests=2)
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    assert {answer.status_code for answer in refused} == {503}
    assert all("retry-after" in answer.headers for answer in refused)


def test_no_answer_holds_what_is_not_json(ask: Ask) -> None:
    answer = ask("POST", "/get_reward", json={"prompts": ["Why?"], "responses": ["So."]})
    json.loads(answer.text, parse_constant=pytest.fail)
