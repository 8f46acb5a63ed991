"""Limits for each caller (slots, memory for bodies, sizes of texts and bodies), and what identifies a caller."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from typing import Any

import pytest
from pydantic import SecretStr, TypeAdapter, ValidationError

from redline.text.chat_markup import PromptBoundaryError
from redline.wire import ScoreItem
from redline_service.compat.openai_responses import to_chat_messages
from redline_service.engine import _tokenisation_slices
from redline_service.http.admission import caller_id
from redline_service.http.connections import ConnectionLimits, Connections
from redline_service.http.limiter import BodyMemory, ConcurrencyLimiter
from redline_service.http.request_body import parse_body
from redline_service.http.routes.compat import ClassifyRequest
from redline_service.http.server import uvicorn_config
from redline_service.scheduling.errors import OverloadedError
from redline_service.settings import ServiceSettings

CLIENT = ("10.0.0.1", 1234)


def test_the_last_eighth_of_the_slots_is_reserved_for_callers_with_few_requests() -> None:
    limiter = ConcurrencyLimiter(16)
    with ExitStack() as stack:
        for _ in range(14):
            stack.enter_context(limiter.slot("greedy"))
        with pytest.raises(OverloadedError):
            limiter.check("greedy")
        stack.enter_context(limiter.slot("other"))
        stack.enter_context(limiter.slot("third"))
        with pytest.raises(OverloadedError):
            limiter.check("fourth")
    limiter.check("greedy")
    assert limiter.in_use == 0


def test_a_single_slot_is_available_to_every_caller() -> None:
    limiter = ConcurrencyLimiter(1)
    with limiter.slot("a"), pytest.raises(OverloadedError):
        limiter.check("b")
    with limiter.slot("b"):
        pass


def test_a_caller_gets_at_most_half_of_the_free_memory_for_bodies() -> None:
    memory = BodyMemory(800)
    with memory.reservation("a") as first, memory.reservation("a") as second, memory.reservation("b") as other:
        first.add(300)
        second.add(100)
        with pytest.raises(OverloadedError):
            second.add(1)
        other.add(200)
        with pytest.raises(OverloadedError):
            other.add(1)
        assert memory.in_use == 600
        first.release()
        other.add(100)
        assert memory.in_use == 400
    assert memory.in_use == 0


@pytest.mark.parametrize("spelling", [b"Bearer secret", b"bearer secret", b"BEARER   secret ", b"Bearer\tsecret"])
def test_all_spellings_of_a_key_are_one_caller(spelling: bytes) -> None:
    settings = ServiceSettings(bundle="any", keys=[SecretStr("other"), SecretStr("secret")])
    expected = (1, "10.0.0.1") if b"\t" not in spelling else (None, "10.0.0.1")
    assert caller_id(settings, spelling, CLIENT) == expected
    assert caller_id(ServiceSettings(bundle="any"), spelling, CLIENT) == (None, "10.0.0.1")


@pytest.mark.parametrize("name", ["deadline_s", "body_timeout_s", "header_timeout_s", "idle_timeout_s"])
@pytest.mark.parametrize("value", ["inf", "nan", "0", "-1"])
def test_a_time_limit_is_a_finite_number_of_seconds(name: str, value: str) -> None:
    with pytest.raises(ValidationError, match=name):
        ServiceSettings.model_validate({"bundle": "any", name: value})


def test_items_are_tokenised_in_short_slices() -> None:
    items = [ScoreItem(prompt="p" * 15_000, response="r" * 4_900) for _ in range(5)]
    items += [ScoreItem(prompt=[{"role": "user", "content": "p" * 50_000}], response="r")]  # type: ignore[list-item]
    items += [ScoreItem(prompt_ids=[1], response_ids=[2], tokenizer_fingerprint="sha256:0") for _ in range(250)]
    slice_lengths = [len(part) for part in _tokenisation_slices(items)]
    assert slice_lengths == [2, 2, 2, 200, 50]
    assert not list(_tokenisation_slices([]))


@pytest.mark.parametrize(
    "body", [b'{"a": "\\ud800", "b": ' + b"[" * 400 + b"]" * 400 + b"}", b'{"a": "\\ud800", "b": ' + b"9" * 5000 + b"}"]
)
def test_the_parser_s_limits_apply_to_bodies_with_lone_surrogates(body: bytes) -> None:
    with pytest.raises(Exception) as caught:
        parse_body(body, TypeAdapter(Any), 10)
    assert type(caught.value).__name__ == "RequestError"


def test_each_list_of_ids_counts_as_one_item() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(ClassifyRequest)
    assert parse_body(b'{"input": [1, 2, 3]}', adapter, 2).inputs() == [[1, 2, 3]]
    for body in (b'{"input": [[1], [2], [3]]}', b'{"input_ids": [[1], [2], [3]]}', b'{"text": ["a", "b", "c"]}'):
        with pytest.raises(Exception, match="at most 2 are allowed"):
            parse_body(body, adapter, 2)


def test_a_text_far_longer_than_the_model_reads_is_refused_early(ask: Any) -> None:
    long_text = "<|user|>" + "a b " * 500_000
    started = time.perf_counter()
    for path, body in (
        ("/classify", {"text": long_text}),
        ("/pooling", {"input": [long_text]}),
        ("/get_reward", {"query": [long_text]}),
    ):
        answer = ask("POST", path, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_long"), path
    assert time.perf_counter() - started < 10


def test_the_first_of_two_authorization_headers_counts(ask: Any) -> None:
    settings = {"keys": ["good"]}
    for order, status in ((("Bearer good", "Bearer bad"), 200), (("Bearer bad", "Bearer good"), 401)):
        headers = [("Authorization", value) for value in order]
        body = {"items": [{"prompt": "a", "response": "b"}]}
        assert ask("POST", "/v1/score", settings=settings, headers=headers, json=body).status_code == status
        assert ask("GET", "/v1/models", settings=settings, headers=headers).status_code == status


@pytest.mark.parametrize("path", ["/", "/health", "/health/live", "/health/ready", "/healthz", "/readyz"])
def test_probes_can_use_head(ask: Any, path: str) -> None:
    assert ask("HEAD", path).status_code == 200


@pytest.mark.parametrize(
    ("proxies", "expected"),
    [(None, "10.0.0.1"), ("10.0.0.1", "192.0.2.7"), ("10.0.0.9,10.0.0.1", "192.0.2.7"), ("10.0.0.9", "10.0.0.1")],
)
def test_x_forwarded_for_is_read_only_from_configured_proxies(
    monkeypatch: pytest.MonkeyPatch, proxies: str | None, expected: str
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # a variable of uvicorn
    client_addresses: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        client_addresses.append(scope["client"][0])

    config = uvicorn_config(
        ServiceSettings(bundle="any", forwarded_allow_ips=proxies), app, Connections(ConnectionLimits())
    )
    config.load()
    scope = {"type": "http", "client": CLIENT, "scheme": "http", "headers": [(b"x-forwarded-for", b"192.0.2.7")]}
    asyncio.run(config.loaded_app(scope, None, None))  # type: ignore[arg-type]
    assert client_addresses == [expected]


@pytest.mark.parametrize("kind", [[], {}, ["text"], {"text": 1}, 1, True, None, "image"])
def test_a_content_part_of_unknown_type_is_refused_on_every_route(ask: Any, kind: Any) -> None:
    message = {"role": "user", "content": [{"type": kind, "text": "x"}]}
    answer = {"role": "assistant", "content": "y"}
    bodies: dict[str, Any] = {
        "/v1/score": {"items": [{"prompt": [message], "response": "a"}]},
        "/v1/correct": {"items": [{"prompt": [message], "response": "a"}]},
        "/get_reward": {"prompt": [message], "response": "a", "label": 1},
        "/classify": {"messages": [message, answer]},
        "/pooling": {"messages": [message, answer], "task": "classify"},
        "/verify": {"responses_create_params": {"input": [message]}, "response": {"output": [answer]}},
    }
    for path, body in bodies.items():
        assert ask("POST", path, json=body).status_code == 422, path


def test_the_number_of_items_of_a_conversation_is_limited() -> None:
    calls = [{"type": "function_call", "name": "f"}] * 10_000
    assert len(to_chat_messages(calls[:1_500])[0].model_extra["tool_calls"]) == 1_500  # type: ignore[index]
    with pytest.raises(ValidationError, match="more than 10000 values"):
        to_chat_messages(calls)
    with pytest.raises(PromptBoundaryError, match="10001 items"):
        to_chat_messages([*calls, calls[0]])
    reasoning = [{"type": "reasoning", "summary": [{"text": "t" * 1000}]}] * 9_000
    assert len(to_chat_messages([*reasoning, {"role": "assistant", "content": "a"}])) == 1


@pytest.mark.parametrize("field", ["tools", "tool_calls", "name"])
def test_very_long_integers_are_refused_early(ask: Any, field: str) -> None:
    huge = '[{"function": {"x": [' + ", ".join(["9" * 4000] * 500) + "]}}]"
    message = '{"role": "user", "content": "q"' + (f', "{field}": {huge}' if field != "tools" else "") + "}"
    tools = f', "tools": {huge}' if field == "tools" else ""
    body = f'{{"items": [{{"prompt": [{message}], "response": "a"{tools}}}]}}'
    started = time.perf_counter()
    answer = ask("POST", "/v1/score", content=body.encode(), headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert "integer" in answer.text
    assert time.perf_counter() - started < 10
