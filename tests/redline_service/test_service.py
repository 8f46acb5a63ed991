"""Around scoring: keys, probes, metrics, overload, deadlines, callers that leave, memory that runs out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
import torch

from redline_model.bundle.bundle import Bundle
from redline_model.encoding.encoder import EncodedItem, Item
from redline_model.errors import OutOfMemoryError
from redline_model.scorer import Scorer
from redline_model.scorers.seq2seq import Seq2SeqScorer
from redline_service.engine import Engine
from redline_service.scheduling.worker import Timed, Worker
from tests.redline_service.conftest import with_service

Ask = Callable[..., httpx.Response]
BODY = {"items": [{"prompt": "How do I reset my router?", "response": "Hold the round button."}]}


def several(count: int, tag: str = "") -> list[dict[str, str]]:
    """Items of which no two are alike."""
    return [{"prompt": "How do I reset my router?", "response": f"Hold button {n} {tag}"} for n in range(count)]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/default", "/v1/score"])
def test_keys_guard_what_scores_and_describes(ask: Ask, path: str) -> None:
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


def test_model_info_tells_what_a_caller_needs(ask: Ask, bundle: Bundle) -> None:
    info = ask("GET", "/v1/models").json()["models"][0]
    assert info["digest"] == bundle.digest
    assert info["tokenizer_fingerprint"] == bundle.tokenizer_fingerprint
    assert info["limits"]["max_tokens"] == 512
    assert info["default_mode"] in info["modes"]


def test_the_request_id_is_taken_or_made(ask: Ask) -> None:
    assert ask("GET", "/healthz", headers={"X-Request-Id": "mine-1"}).headers["X-Request-Id"] == "mine-1"
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


class Slow:
    """A bundle's scorer whose forward pass waits for a gate, and which notes what it was given."""

    def __init__(self, bundle: Bundle) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.seen: list[str] = []
        self._scorer = bundle.scorer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[Any]]:
        self.gate.wait(20)
        self.seen += [item.text for item in items]
        return self._scorer.start_forward(items)


@pytest.fixture
def slow(bundle: Bundle) -> tuple[Bundle, Slow]:
    scorer = Slow(bundle)
    return Bundle(bundle.folder, bundle.manifest, scorer, bundle.load_options), scorer


def test_beyond_the_bound_requests_are_refused_at_once_and_none_is_lost(slow: tuple[Bundle, Slow]) -> None:
    bundle, scorer = slow

    async def work(http: httpx.AsyncClient) -> list[httpx.Response]:
        scorer.gate.clear()
        asyncio.get_running_loop().call_later(0.5, scorer.gate.set)
        return list(await asyncio.gather(*(http.post("/v1/score", json=BODY) for _ in range(12))))

    answers = with_service(bundle, work, max_queued_requests=4)
    assert sorted(a.status_code for a in answers) == [200] * 4 + [503] * 8
    for refused in (a for a in answers if a.status_code == 503):
        assert refused.json()["error"] == {
            "code": "overloaded",
            "message": "4 requests are being answered",
            "retryable": True,
        }
        assert int(refused.headers["Retry-After"]) >= 1


def test_the_queue_is_bounded_in_tokens_too(slow: tuple[Bundle, Slow]) -> None:
    bundle, scorer = slow

    async def work(http: httpx.AsyncClient) -> list[int]:
        scorer.gate.clear()
        asyncio.get_running_loop().call_later(0.8, scorer.gate.set)
        statuses = []

        async def post(number: int) -> None:
            statuses.append((await http.post("/v1/score", json={"items": several(3, f"of {number}")})).status_code)

        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(post(number))
                await asyncio.sleep(0.05)
        return statuses

    statuses = with_service(bundle, work, max_queued_tokens=400)
    assert set(statuses) == {200, 503}


def test_a_request_past_its_deadline_is_shed(slow: tuple[Bundle, Slow]) -> None:
    bundle, scorer = slow

    async def work(http: httpx.AsyncClient) -> httpx.Response:
        scorer.gate.clear()
        response = await http.post("/v1/score", json=BODY)
        scorer.gate.set()
        return response

    response = with_service(bundle, work, deadline_s=0.3)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "timed_out"


def test_work_whose_caller_has_gone_is_dropped(slow: tuple[Bundle, Slow]) -> None:
    bundle, scorer = slow

    def body(text: str) -> dict[str, Any]:
        return {"items": [{"prompt": "p", "response": text}]}

    async def work(http: httpx.AsyncClient) -> None:
        scorer.gate.clear()
        first = asyncio.create_task(http.post("/v1/score", json=body("first")))
        await asyncio.sleep(0.2)
        leaver = asyncio.create_task(http.post("/v1/score", json=body("leaver")))
        stayer = asyncio.create_task(http.post("/v1/score", json=body("stayer")))
        await asyncio.sleep(0.2)
        leaver.cancel()
        await asyncio.sleep(0.1)
        scorer.gate.set()
        assert (await first).status_code == (await stayer).status_code == 200

    with_service(bundle, work)
    assert "stayer" in scorer.seen
    assert "leaver" not in scorer.seen


class Fussy:
    """Runs out of memory beyond ``room`` items, and cannot take some items at all."""

    def __init__(self, scorer: Scorer[Any], room: int) -> None:
        self._scorer = scorer
        self._room = room
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[Any]]:
        self.sizes.append(len(items))
        if any("giant" in item.text for item in items):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        if any("cursed" in item.text for item in items):
            raise ValueError("no reason at all")
        if len(items) > self._room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._scorer.start_forward(items)


def test_a_batch_that_does_not_fit_is_split_and_only_what_cannot_fit_fails(
    causal_scorer: Scorer[Any],
) -> None:
    fussy = Fussy(causal_scorer, room=2)
    texts = ["a", "b", "giant", "c", "cursed", "d", "e"]
    items = [causal_scorer.encoder.encode(Item("p", text)) for text in texts]
    outputs = Worker(fussy).forward(items).values
    assert [type(m).__name__ for m in outputs] == [
        {"giant": "OutOfMemoryError", "cursed": "ValueError"}.get(text, "TokenStatistics") for text in texts
    ]
    assert isinstance(outputs[2], OutOfMemoryError)
    assert fussy.sizes[0] == 7
    good = Worker(causal_scorer).forward(items[:2]).values
    assert torch.allclose(good[0].logprob, outputs[0].logprob, atol=1e-4)


def test_the_prefix_cache_is_emptied_before_anything_fails_for_want_of_memory(bundle: Bundle) -> None:
    loaded = Bundle.load(bundle.folder, prefix_cache_tokens=1000)
    [cache] = loaded.scorer.planner.prefix_caches
    body = {"items": several(3)}

    class Short:
        """Has no memory for a pass as long as the cache holds something."""

        def __getattr__(self, name: str) -> Any:
            return getattr(loaded.scorer, name)

        def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[Any]]:
            if is_short and cache.bytes:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return loaded.scorer.start_forward(items)

    is_short = False
    short = Bundle(loaded.folder, loaded.manifest, Short(), loaded.load_options)

    async def work(http: httpx.AsyncClient) -> tuple[float, Any]:
        nonlocal is_short
        await http.post("/v1/score", json=BODY)
        text = (await http.get("/metrics")).text
        held = float(
            next(line for line in text.splitlines() if line.startswith("redline_prefix_cache_bytes ")).split()[1]
        )
        is_short = True
        return held, (await http.post("/v1/score", json=body)).json()["items"]

    held, items = with_service(short, work)
    assert held > 0
    assert all("score" in item for item in items)


def test_out_of_memory_is_a_retryable_error_of_its_item(bundle: Bundle) -> None:
    fussy = Bundle(bundle.folder, bundle.manifest, Fussy(bundle.scorer, room=1), bundle.load_options)
    body = {"items": [{"prompt": "p", "response": text} for text in ("fine", "giant", "cursed", "good")]}

    async def work(http: httpx.AsyncClient) -> Any:
        return (await http.post("/v1/score", json=body)).json()["items"]

    fine, giant, cursed, good = with_service(fussy, work)
    assert "score" in fine
    assert "score" in good
    assert giant["error"]["code"] == "out_of_memory"
    assert giant["error"]["retryable"] is True
    assert cursed["error"]["code"] == "internal"
    assert "no reason" not in cursed["error"]["message"]


def test_a_fault_in_a_round_costs_that_round_only(slow: tuple[Bundle, Slow], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, scorer = slow
    real = Worker.forward
    faults = iter([True])

    def short(self: Worker, items: Sequence[EncodedItem]) -> Timed[list[Any]]:
        return Timed([], 0.0) if scorer.seen and next(faults, False) else real(self, items)

    monkeypatch.setattr(Worker, "forward", short)

    async def work(http: httpx.AsyncClient) -> list[Any]:
        return [(await http.post("/v1/score", json=BODY)).json()["items"][0] for _ in range(2)]

    broken, fine = with_service(bundle, work)
    assert broken["error"]["code"] == "internal"
    assert "score" in fine


def test_a_failure_inside_has_the_one_shape_and_its_id(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(http: httpx.AsyncClient) -> httpx.Response:
        def broken(self: Engine, request: Any) -> None:
            raise RuntimeError("secret detail")

        monkeypatch.setattr(Engine, "_plan", broken)
        return await http.post("/v1/score", json=BODY, headers={"X-Request-Id": "mine"})

    response = with_service(bundle, work)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal"
    assert response.headers["X-Request-Id"] == "mine"
    assert "secret" not in response.text


def test_callers_that_left_do_not_keep_others_out(slow: tuple[Bundle, Slow]) -> None:
    bundle, scorer = slow

    async def work(http: httpx.AsyncClient) -> list[int]:
        scorer.gate.clear()
        first = asyncio.create_task(http.post("/v1/score", json=BODY))
        await asyncio.sleep(0.2)
        leaver = asyncio.create_task(http.post("/v1/score", json={"items": several(20)}))
        await asyncio.sleep(0.2)
        refused = (await http.post("/v1/score", json=BODY)).status_code
        leaver.cancel()
        await asyncio.sleep(0.1)
        asyncio.get_running_loop().call_later(0.2, scorer.gate.set)
        admitted = (await http.post("/v1/score", json=BODY)).status_code
        await first
        return [refused, admitted]

    assert with_service(bundle, work, max_queued_tokens=900) == [503, 200]


def test_readiness_waits_for_a_model_that_scores(bundle: Bundle) -> None:
    from redline_service.http.app import create_app
    from redline_service.settings import ServiceSettings

    async def run() -> tuple[int, str]:
        app = create_app(ServiceSettings(bundle="unused"), bundle)  # its lifespan has not begun
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://s") as http:
            response = await http.get("/readyz")
        return response.status_code, response.json()["error"]["code"]

    assert asyncio.run(run()) == (503, "not_ready")


def test_the_event_loop_is_free_while_the_model_works(slow: tuple[Bundle, Slow]) -> None:
    bundle, scorer = slow

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


def test_a_served_bundle_keeps_prompts_warm_as_its_settings_say(bundle: Bundle) -> None:
    from redline_service.http.app import load_bundle
    from redline_service.settings import ServiceSettings

    loaded = load_bundle(ServiceSettings(bundle=str(bundle.folder), prefix_cache_tokens=123, device="cpu"))
    assert isinstance(loaded.scorer, Seq2SeqScorer)
    assert loaded.scorer._forward.forward.cache.max_tokens == 123


def test_a_caller_s_deadline_is_kept_and_nonsense_refused(slow: tuple[Bundle, Slow]) -> None:
    bundle, scorer = slow

    async def work(http: httpx.AsyncClient) -> list[httpx.Response]:
        scorer.gate.clear()
        late = await http.post("/v1/score", json=BODY, headers={"X-Deadline-S": "0.2"})
        scorer.gate.set()
        odd = [await http.post("/v1/score", json=BODY, headers={"X-Deadline-S": x}) for x in ("soon", "nan", "-1")]
        return [late, *odd]

    late, *odd = with_service(bundle, work)
    assert late.json()["error"]["code"] == "timed_out"
    assert [answer.json()["error"]["code"] for answer in odd] == ["invalid_request"] * 3
