"""The service around scoring: keys, probes, metrics, overload, deadlines, disconnects, lack of memory."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
import pytest
import torch

from redline_model.bundle.bundle import Bundle
from redline_model.encoding.items import EncodedItem, Item
from redline_model.errors import OutOfMemoryError
from redline_model.scorer import Scorer
from redline_model.scorers.seq2seq import Seq2SeqScorer
from redline_service.engine import Engine
from redline_service.scheduling.worker import Timed, Worker
from tests.redline_service.conftest import with_service

Ask = Callable[..., httpx.Response]
BODY = {"items": [{"prompt": "How do I reset my router?", "response": "Hold the round button."}]}


def distinct_items(count: int, tag: str = "") -> list[dict[str, str]]:
    """Items with different responses."""
    return [{"prompt": "How do I reset my router?", "response": f"Hold button {n} {tag}"} for n in range(count)]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/default", "/v1/score"])
def test_scoring_and_model_routes_require_a_key(ask: Ask, path: str) -> None:
    method = "POST" if path.endswith("score") else "GET"
    settings = {"keys": ["secret-a", "secret-b"]}
    for headers, status in [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "secret-a"}, 401),
        ({"Authorization": "Bearer secret-b"}, 200),
    ]:
        response = ask(method, path, json=BODY if method == "POST" else None, headers=headers, settings=settings)
        assert response.status_code == status
        assert "secret" not in response.text


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json"])
def test_probes_need_no_key(ask: Ask, path: str) -> None:
    assert ask("GET", path, settings={"keys": ["secret"]}).status_code == 200


def test_model_info_has_digest_fingerprint_limits_and_modes(ask: Ask, bundle: Bundle) -> None:
    info = ask("GET", "/v1/models").json()["models"][0]
    assert info["digest"] == bundle.digest
    assert info["tokenizer_fingerprint"] == bundle.tokenizer_fingerprint
    assert info["limits"]["max_tokens"] == 512
    assert info["default_mode"] in info["modes"]


def test_a_valid_request_id_is_kept_and_an_invalid_one_replaced(ask: Ask) -> None:
    assert ask("GET", "/healthz", headers={"X-Request-Id": "id-1"}).headers["X-Request-Id"] == "id-1"
    assert ask("GET", "/healthz", headers={"X-Request-Id": "a b"}).headers["X-Request-Id"] != "a b"


def test_server_timing_and_metrics_count(bundle: Bundle) -> None:
    async def work(http: httpx.AsyncClient) -> tuple[httpx.Response, str]:
        scored = await http.post("/v1/score", json=BODY)
        await http.post("/v1/score", json={"items": [{"prompt": "p", "response": ""}]})
        return scored, (await http.get("/metrics")).text

    scored, metrics = with_service(bundle, work)
    assert {part.split(";")[0] for part in scored.headers["Server-Timing"].split(", ")} == {
        "tokenize",
        "queue",
        "inference",
    }
    assert 'redline_requests_total{route="/v1/score",status="200"} 2.0' in metrics
    assert 'redline_items_total{outcome="scored"} 1.0' in metrics
    assert 'redline_items_total{outcome="empty_response"} 1.0' in metrics


class GatedScorer:
    """A scorer whose forward pass waits for ``gate``, and which records the texts that it scores."""

    def __init__(self, bundle: Bundle) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.scored_texts: list[str] = []
        self._scorer = bundle.scorer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[Any]]:
        self.gate.wait(20)
        self.scored_texts += [item.text for item in items]
        return self._scorer.start_forward(items)


@pytest.fixture
def gated(bundle: Bundle) -> tuple[Bundle, GatedScorer]:
    scorer = GatedScorer(bundle)
    return Bundle(bundle.folder, bundle.manifest, scorer, bundle.load_options), scorer


def test_requests_beyond_the_limit_are_refused_and_none_is_lost(gated: tuple[Bundle, GatedScorer]) -> None:
    bundle, scorer = gated

    async def work(http: httpx.AsyncClient) -> list[httpx.Response]:
        scorer.gate.clear()
        asyncio.get_running_loop().call_later(0.5, scorer.gate.set)
        return list(await asyncio.gather(*(http.post("/v1/score", json=BODY) for _ in range(12))))

    responses = with_service(bundle, work, max_queued_requests=4)
    assert sorted(response.status_code for response in responses) == [200] * 4 + [503] * 8
    for refused in (response for response in responses if response.status_code == 503):
        assert refused.json()["error"] == {
            "code": "overloaded",
            "message": "4 requests are being answered",
            "retryable": True,
        }
        assert int(refused.headers["Retry-After"]) >= 1


MODEL_PATHS = [
    *("/v1/score", "/v1/correct"),
    *("/get_reward", "/v1/score/evaluation", "/classify", "/v1/embeddings", "/pooling", "/verify"),  # compatible
]
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("path", MODEL_PATHS)
def test_without_a_free_slot_a_request_is_refused_before_its_body_is_read(
    gated: tuple[Bundle, GatedScorer], path: str
) -> None:
    bundle, scorer = gated
    read_chunks = 0

    async def invalid_body() -> AsyncIterator[bytes]:
        nonlocal read_chunks
        read_chunks += 1
        yield b"{"

    async def work(http: httpx.AsyncClient) -> tuple[httpx.Response, int, httpx.Response]:
        scorer.gate.clear()
        holding_the_slot = asyncio.create_task(http.post("/v1/score", json=BODY))
        await asyncio.sleep(0.1)
        refused = await http.post(path, content=invalid_body(), headers=JSON)
        chunks_of_refused = read_chunks
        scorer.gate.set()
        await holding_the_slot
        return refused, chunks_of_refused, await http.post(path, content=invalid_body(), headers=JSON)

    refused, chunks_of_refused, parsed = with_service(bundle, work, max_queued_requests=1)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
    assert chunks_of_refused == 0
    assert (parsed.status_code, read_chunks) == (422, 1)


@pytest.mark.parametrize("path", MODEL_PATHS)
def test_a_body_that_arrives_when_no_slot_is_free_is_not_parsed(gated: tuple[Bundle, GatedScorer], path: str) -> None:
    bundle, scorer = gated

    async def work(http: httpx.AsyncClient) -> httpx.Response:
        slot_is_taken = asyncio.Event()

        async def late_invalid_body() -> AsyncIterator[bytes]:
            await slot_is_taken.wait()
            yield b"{"

        refused = asyncio.create_task(http.post(path, content=late_invalid_body(), headers=JSON))
        await asyncio.sleep(0.1)
        scorer.gate.clear()
        holding_the_slot = asyncio.create_task(http.post("/v1/score", json=BODY))
        await asyncio.sleep(0.1)
        slot_is_taken.set()
        response = await refused
        scorer.gate.set()
        await holding_the_slot
        return response

    response = with_service(bundle, work, max_queued_requests=1)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")


def test_the_number_of_queued_tokens_is_limited(gated: tuple[Bundle, GatedScorer]) -> None:
    bundle, scorer = gated

    async def work(http: httpx.AsyncClient) -> list[int]:
        scorer.gate.clear()
        asyncio.get_running_loop().call_later(0.8, scorer.gate.set)
        statuses = []

        async def post(number: int) -> None:
            statuses.append(
                (await http.post("/v1/score", json={"items": distinct_items(3, f"of {number}")})).status_code
            )

        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(post(number))
                await asyncio.sleep(0.05)
        return statuses

    statuses = with_service(bundle, work, max_queued_tokens=400)
    assert set(statuses) == {200, 503}


def test_a_request_that_exceeds_its_deadline_gets_timed_out(gated: tuple[Bundle, GatedScorer]) -> None:
    bundle, scorer = gated

    async def work(http: httpx.AsyncClient) -> httpx.Response:
        scorer.gate.clear()
        response = await http.post("/v1/score", json=BODY)
        scorer.gate.set()
        return response

    response = with_service(bundle, work, deadline_s=0.3)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "timed_out"


def test_an_item_is_not_scored_if_its_caller_has_disconnected(gated: tuple[Bundle, GatedScorer]) -> None:
    bundle, scorer = gated

    def body(text: str) -> dict[str, Any]:
        return {"items": [{"prompt": "p", "response": text}]}

    async def work(http: httpx.AsyncClient) -> None:
        scorer.gate.clear()
        first = asyncio.create_task(http.post("/v1/score", json=body("first")))
        await asyncio.sleep(0.2)
        cancelled = asyncio.create_task(http.post("/v1/score", json=body("cancelled")))
        kept = asyncio.create_task(http.post("/v1/score", json=body("kept")))
        await asyncio.sleep(0.2)
        cancelled.cancel()
        await asyncio.sleep(0.1)
        scorer.gate.set()
        assert (await first).status_code == (await kept).status_code == 200

    with_service(bundle, work)
    assert "kept" in scorer.scored_texts
    assert "cancelled" not in scorer.scored_texts


class FailingScorer:
    """Runs out of memory with more than ``max_items`` items, and always fails with some items.

    "giant" in a text causes a lack of memory, "invalid" another error.
    """

    def __init__(self, scorer: Scorer[Any], max_items: int) -> None:
        self._scorer = scorer
        self._max_items = max_items
        self.batch_sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[Any]]:
        self.batch_sizes.append(len(items))
        if any("giant" in item.text for item in items):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        if any("invalid" in item.text for item in items):
            raise ValueError("secret detail")
        if len(items) > self._max_items:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._scorer.start_forward(items)


def test_a_batch_too_large_for_memory_is_split_and_only_items_at_fault_fail(
    causal_scorer: Scorer[Any],
) -> None:
    failing_scorer = FailingScorer(causal_scorer, max_items=2)
    texts = ["a", "b", "giant", "c", "invalid", "d", "e"]
    items = [causal_scorer.encoder.encode(Item("p", text)) for text in texts]
    outputs = Worker(failing_scorer).forward(items).values
    assert [type(output).__name__ for output in outputs] == [
        {"giant": "OutOfMemoryError", "invalid": "ValueError"}.get(text, "TokenStatistics") for text in texts
    ]
    assert isinstance(outputs[2], OutOfMemoryError)
    assert failing_scorer.batch_sizes[0] == 7
    expected = Worker(causal_scorer).forward(items[:2]).values
    assert torch.allclose(expected[0].logprob, outputs[0].logprob, atol=1e-4)


def test_the_prefix_cache_is_cleared_before_an_item_fails_for_lack_of_memory(bundle: Bundle) -> None:
    loaded = Bundle.load(bundle.folder, prefix_cache_tokens=1000)
    [cache] = loaded.scorer.planner.prefix_caches
    body = {"items": distinct_items(3)}

    class ScorerShortOfMemory:
        """Runs out of memory if the prefix cache is not empty."""

        def __getattr__(self, name: str) -> Any:
            return getattr(loaded.scorer, name)

        def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[Any]]:
            if is_short and cache.bytes:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return loaded.scorer.start_forward(items)

    is_short = False
    served = Bundle(loaded.folder, loaded.manifest, ScorerShortOfMemory(), loaded.load_options)

    async def work(http: httpx.AsyncClient) -> tuple[float, Any]:
        nonlocal is_short
        await http.post("/v1/score", json=BODY)
        text = (await http.get("/metrics")).text
        cache_bytes = float(
            next(line for line in text.splitlines() if line.startswith("redline_prefix_cache_bytes ")).split()[1]
        )
        is_short = True
        return cache_bytes, (await http.post("/v1/score", json=body)).json()["items"]

    cache_bytes, items = with_service(served, work)
    assert cache_bytes > 0
    assert all("score" in item for item in items)


def test_out_of_memory_is_a_retryable_error_of_its_item(bundle: Bundle) -> None:
    failing_scorer = FailingScorer(bundle.scorer, max_items=1)
    served = Bundle(bundle.folder, bundle.manifest, failing_scorer, bundle.load_options)
    body = {"items": [{"prompt": "p", "response": text} for text in ("first", "giant", "invalid", "last")]}

    async def work(http: httpx.AsyncClient) -> Any:
        return (await http.post("/v1/score", json=body)).json()["items"]

    first, giant, invalid, last = with_service(served, work)
    assert "score" in first
    assert "score" in last
    assert giant["error"]["code"] == "out_of_memory"
    assert giant["error"]["retryable"] is True
    assert invalid["error"]["code"] == "internal"
    assert "secret" not in invalid["error"]["message"]


def test_an_unexpected_error_fails_one_batch_only(
    gated: tuple[Bundle, GatedScorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, scorer = gated
    real_forward = Worker.forward
    first_call = iter([True])

    def forward(self: Worker, items: Sequence[EncodedItem]) -> Timed[list[Any]]:
        # after the start-up's own item: one call returns fewer results than items
        is_faulty = scorer.scored_texts and next(first_call, False)
        return Timed([], 0.0) if is_faulty else real_forward(self, items)

    monkeypatch.setattr(Worker, "forward", forward)

    async def work(http: httpx.AsyncClient) -> list[Any]:
        return [(await http.post("/v1/score", json=BODY)).json()["items"][0] for _ in range(2)]

    failed, scored = with_service(bundle, work)
    assert failed["error"]["code"] == "internal"
    assert "score" in scored


def test_an_internal_error_has_the_common_format_and_a_request_id(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(http: httpx.AsyncClient) -> httpx.Response:
        def fail(self: Engine, request: Any) -> None:
            raise RuntimeError("secret detail")

        monkeypatch.setattr(Engine, "_resolve_options", fail)
        return await http.post("/v1/score", json=BODY, headers={"X-Request-Id": "id-1"})

    response = with_service(bundle, work)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal"
    assert response.headers["X-Request-Id"] == "id-1"
    assert "secret" not in response.text


def test_queued_tokens_of_disconnected_callers_are_freed(gated: tuple[Bundle, GatedScorer]) -> None:
    bundle, scorer = gated

    async def work(http: httpx.AsyncClient) -> list[int]:
        scorer.gate.clear()
        first = asyncio.create_task(http.post("/v1/score", json=BODY))
        await asyncio.sleep(0.2)
        cancelled = asyncio.create_task(http.post("/v1/score", json={"items": distinct_items(20)}))
        await asyncio.sleep(0.2)
        refused = (await http.post("/v1/score", json=BODY)).status_code
        cancelled.cancel()
        await asyncio.sleep(0.1)
        asyncio.get_running_loop().call_later(0.2, scorer.gate.set)
        accepted = (await http.post("/v1/score", json=BODY)).status_code
        await first
        return [refused, accepted]

    assert with_service(bundle, work, max_queued_tokens=900) == [503, 200]


def test_the_service_is_not_ready_before_the_model_has_scored(bundle: Bundle) -> None:
    from redline_service.http.app import create_app
    from redline_service.settings import ServiceSettings

    async def run() -> tuple[int, str]:
        app = create_app(ServiceSettings(bundle="unused"), bundle)  # its lifespan has not started
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://s") as http:
            response = await http.get("/readyz")
        return response.status_code, response.json()["error"]["code"]

    assert asyncio.run(run()) == (503, "not_ready")


def test_the_event_loop_is_not_blocked_by_a_forward_pass(gated: tuple[Bundle, GatedScorer]) -> None:
    bundle, scorer = gated

    async def work(http: httpx.AsyncClient) -> float:
        scorer.gate.clear()
        scoring = asyncio.create_task(http.post("/v1/score", json=BODY))
        await asyncio.sleep(0.1)
        started = time.perf_counter()
        assert (await http.get("/healthz")).status_code == 200
        seconds = time.perf_counter() - started
        scorer.gate.set()
        await scoring
        return seconds

    assert with_service(bundle, work) < 5


def test_the_size_of_the_prefix_cache_is_a_setting(bundle: Bundle) -> None:
    from redline_service.http.app import load_bundle
    from redline_service.settings import ServiceSettings

    loaded = load_bundle(ServiceSettings(bundle=str(bundle.folder), prefix_cache_tokens=123, device="cpu"))
    assert isinstance(loaded.scorer, Seq2SeqScorer)
    assert loaded.scorer._forward.forward.cache.max_tokens == 123


def test_the_caller_s_deadline_is_kept_and_an_invalid_one_refused(gated: tuple[Bundle, GatedScorer]) -> None:
    bundle, scorer = gated

    async def work(http: httpx.AsyncClient) -> list[httpx.Response]:
        scorer.gate.clear()
        late = await http.post("/v1/score", json=BODY, headers={"X-Deadline-S": "0.2"})
        scorer.gate.set()
        values = ("soon", "nan", "-1")
        invalid = [await http.post("/v1/score", json=BODY, headers={"X-Deadline-S": value}) for value in values]
        return [late, *invalid]

    late, *invalid = with_service(bundle, work)
    assert late.json()["error"]["code"] == "timed_out"
    assert [response.json()["error"]["code"] for response in invalid] == ["invalid_request"] * 3
