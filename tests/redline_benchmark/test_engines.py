"""Scorers behind vLLM, SGLang and OpenRLHF: their requests, and answers in the forms of these engines."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from redline.benchmark.engine_http import EngineHTTP
from redline.benchmark.engines import EngineKind, EngineScorer, token_positions
from redline.benchmark.prompt_texts import PromptTexts
from redline.benchmark.scorers import Scored, Unscored
from redline.errors import ConnectionFailedError, ProtocolError
from redline.http.retry import NO_RETRY, RetryPolicy

Answer = Callable[[str, Any], Any]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def scorer(kind: EngineKind, answer: Answer, tokenizer: Any = None, **options: Any) -> EngineScorer:
    """A scorer of an engine whose answer to each request is ``answer(path, body)``, an object or a response."""

    def handle(request: httpx.Request) -> httpx.Response:
        found = answer(request.url.path, json.loads(request.content) if request.content else None)
        return found if isinstance(found, httpx.Response) else httpx.Response(200, json=found)

    retry = options.pop("retry", NO_RETRY)
    url = options.pop("url", "http://engine")
    http = EngineHTTP(url, transport=httpx.MockTransport(handle), retry=retry, key="secret")
    return EngineScorer(kind, http, texts=PromptTexts(tokenizer), **options)


def language_model(path: str, body: Any) -> Any:
    """vLLM's completion of one text, one token per character; the log-probability of the n-th is -n."""
    if path == "/v1/models":
        return {"object": "list", "data": [{"id": "served", "object": "model"}]}
    assert path == "/v1/completions"
    assert body["model"] == "served"
    assert (body["prompt_logprobs"], body["max_tokens"]) == (0, 1)
    entries: list[Any] = [None] if body["add_special_tokens"] else []
    for n, letter in enumerate(body["prompt"]):
        entries.append({str(ord(letter)): {"logprob": -float(n), "rank": 1, "decoded_token": letter}})
    return {"choices": [{"index": 0, "text": "x", "logprobs": None, "prompt_logprobs": entries}]}


def test_a_token_without_text_gets_the_text_between_its_neighbours() -> None:
    def answer(path: str, body: Any) -> Any:
        found = language_model(path, body)
        found["choices"][0]["prompt_logprobs"][-2]["121"]["decoded_token"] = None
        return found

    found = only(scorer("vllm", answer, model="served").score([("ab", "xyz")]))
    assert found.offsets == [(0, 1), (1, 2), (2, 3)]
    assert found.rewards == [-4.0, -5.0, -6.0]


def only(results: list[Scored | Unscored]) -> Scored:
    (result,) = results
    assert isinstance(result, Scored), result
    return result


def test_log_probabilities_of_the_response_only() -> None:
    engine = scorer("vllm", language_model)
    assert engine.identity() == {"kind": "vllm", "model": "served", "has_template": False, "aggregate": "sum"}
    found = only(engine.score([("ab", "xyz")]))
    # "ab", a blank line, then the response at positions 4 to 6
    assert found == Scored(-15.0, [-4.0, -5.0, -6.0], [(0, 1), (1, 2), (2, 3)])
    mean = scorer("vllm", language_model, aggregate="mean", model="served")
    assert only(mean.score([("ab", "xyz")])).score == -5.0


def test_a_chat_template_renders_the_prompt(tokenizer: Any) -> None:
    prompts: list[Any] = []

    def answer(path: str, body: Any) -> Any:
        prompts.append(body["prompt"])
        assert body["add_special_tokens"] is False, "the template writes them"
        return language_model(path, body)

    found = only(scorer("vllm", answer, tokenizer, model="served").score([(CHAT, "No.")]))
    assert prompts == ["<|system|>Be brief.<|end|><|user|>Why?<|end|><|assistant|>No."]
    assert found.offsets == [(0, 1), (1, 2), (2, 3)]


def test_results_are_in_the_order_of_the_items() -> None:
    engine = scorer("vllm", language_model, model="served")
    found = engine.score([("a", "x" * n) for n in range(1, 40)])
    assert [len(item.rewards or ()) for item in found if isinstance(item, Scored)] == list(range(1, 40))


@pytest.mark.parametrize(
    ("text", "tokens", "spans"),
    [
        ("ab cd", ["ab", " cd"], [(0, 2), (2, 5)]),
        # a token before the text, and blanks that are lost when one token is decoded
        ("ab cd", ["<s>", "ab", "cd"], [(0, 0), (0, 2), (2, 5)]),
        # bytes of one character
        ("a世b", ["a", "�", "�", "b"], [(0, 1), (1, 2), (1, 2), (2, 3)]),
        ("a世", ["a", "�", ""], [(0, 1), (1, 2), (1, 2)]),
    ],
)
def test_positions_of_tokens(text: str, tokens: list[str], spans: list[Any]) -> None:
    assert token_positions(text, tokens) == spans


def test_scores_of_a_reward_model_behind_vllm(tokenizer: Any) -> None:
    bodies: list[Any] = []

    def answer(path: str, body: Any) -> Any:
        assert path == "/classify"
        bodies.append(body)
        return {"data": [{"index": 0, "label": "LABEL_0", "probs": [1.5], "num_classes": 1}]}

    assert only(scorer("vllm-classify", answer).score([("Why?", "No.")])) == Scored(1.5)
    assert only(scorer("vllm-classify", answer, tokenizer, model="rm").score([("Why?", "No.")])) == Scored(1.5)
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "No."}]
    assert bodies[0] == {"use_activation": False, "messages": messages}
    assert bodies[1]["input"] == "<|user|>Why?<|end|><|assistant|>No.<|end|>"
    assert bodies[1]["model"] == "rm"


@pytest.mark.parametrize("url", ["http://engine", "http://engine/get_reward"])
def test_scores_of_openrlhf(tokenizer: Any, url: str) -> None:
    def answer(path: str, body: Any) -> Any:
        assert path == "/get_reward"
        assert body["query"] == ["<|user|>Why?<|end|><|assistant|>No.<|end|>"]
        assert body["prompts"] == ["<|user|>Why?<|end|><|assistant|>"]
        return {"rewards": [[0.25]], "scores": [0.25], "extra_logs": {}}

    assert only(scorer("openrlhf", answer, tokenizer, url=url).score([("Why?", "No.")])) == Scored(0.25)


@pytest.mark.parametrize("is_list", [True, False])
def test_scores_of_sglang(is_list: bool) -> None:
    def answer(path: str, body: Any) -> Any:
        assert (path, body) == ("/classify", {"text": "Why?\n\nNo."})
        row = {"embedding": [-2], "meta_info": {"id": "1"}}
        return [row] if is_list else row

    assert only(scorer("sglang", answer).score([("Why?", "No.")])) == Scored(-2.0)


@pytest.mark.parametrize("kind", ["vllm", "vllm-classify", "openrlhf", "sglang"])
@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        {"data": [], "rewards": [], "embedding": [], "choices": []},
        {"data": [{"probs": [None]}], "rewards": ["1"], "embedding": [True], "choices": [{"prompt_logprobs": None}]},
        {
            "data": [{"probs": [math.inf]}],
            "rewards": [math.nan],
            "embedding": [math.nan],
            "choices": [{"prompt_logprobs": [{"1": {"logprob": math.nan, "decoded_token": "a"}}]}],
        },
    ],
)
def test_answers_of_another_form_are_refused(kind: EngineKind, answer: Any) -> None:
    response = httpx.Response(200, content=json.dumps(answer))
    with pytest.raises(ProtocolError, match="another form"):
        scorer(kind, lambda path, body: response, model="m").score([("a", "b")])


def test_an_item_that_is_too_long_does_not_stop_the_others() -> None:
    def answer(path: str, body: Any) -> Any:
        if len(body["text"]) > 20:
            return httpx.Response(400, json={"error": {"message": "the input is too long", "input": body["text"]}})
        return {"embedding": [1.0]}

    first, second = scorer("sglang", answer).score([("a" * 30, "b"), ("a", "b")])
    assert first == Unscored("http://engine/classify answered HTTP 400: the input is too long")
    assert second == Scored(1.0)


def test_reasons_do_not_repeat_the_text_of_the_request() -> None:
    detail = [{"type": "bad", "input": "rude words"}]
    (found,) = scorer("sglang", lambda *_: httpx.Response(422, json={"detail": detail})).score([("rude words", "b")])
    assert found == Unscored("http://engine/classify answered HTTP 422")


def test_requests_are_repeated_while_the_engine_is_busy() -> None:
    answers = [httpx.Response(503), httpx.Response(429), httpx.Response(200, json={"embedding": [3.0]})]
    retry = RetryPolicy(first_wait_s=0.001)
    assert only(scorer("sglang", lambda *_: answers.pop(0), retry=retry).score([("a", "b")])) == Scored(3.0)
    with pytest.raises(ConnectionFailedError, match="HTTP 503"):
        scorer("sglang", lambda *_: httpx.Response(503)).score([("a", "b")])


def test_a_missing_endpoint_stops_the_run() -> None:
    with pytest.raises(ProtocolError, match="HTTP 404: Not Found"):
        scorer("sglang", lambda *_: httpx.Response(404, json={"detail": "Not Found"})).score([("a", "b")])
