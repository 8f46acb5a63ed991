"""Both clients, by the same tests: the blocking one and the asyncio one behave alike."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import httpx
import pytest

from redline import (
    NO_RETRY,
    AsyncRewardClient,
    ConnectionFailedError,
    ItemError,
    ItemScore,
    ItemsFailedError,
    ModelInfo,
    ProtocolError,
    RedlineError,
    RetryPolicy,
    RewardClient,
    ScoreItem,
    ScoreOptions,
    ScoreResult,
    ServiceError,
)
from redline.wire import ERROR_TABLE, MODELS_PATH, READY_PATH, SCORE_PATH, ErrorBody, ErrorCode

URL = "http://redline.test"
AT_ONCE = RetryPolicy(max_attempts=4, first_wait_s=0.0, longest_wait_s=0.0)
T = TypeVar("T")
Handler = Callable[[httpx.Request], httpx.Response]
MODEL = {
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
    "calibration": {},
    "dtype": "float32",
    "device": "cpu",
}


class Awaited:
    """The asyncio client with the blocking one's methods: one event loop and one client a call."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings

    def _run(self, use: Callable[[AsyncRewardClient], Awaitable[T]]) -> T:
        async def main() -> T:
            async with AsyncRewardClient(**self._settings) as client:
                return await use(client)

        return asyncio.run(main())

    def score(
        self,
        items: Iterable[ScoreItem | dict[str, Any]],
        *,
        model: str = "default",
        options: ScoreOptions | None = None,
    ) -> ScoreResult:
        return self._run(lambda client: client.score(items, model=model, options=options))

    def score_one(self, prompt: Any, response: str, *, finished: bool = True) -> ItemScore:
        return self._run(lambda client: client.score_one(prompt, response, finished=finished))

    def models(self) -> list[ModelInfo]:
        return self._run(lambda client: client.models())

    def model(self, name: str = "default") -> ModelInfo:
        return self._run(lambda client: client.model(name))

    def wait_until_ready(self, timeout_s: float = 120.0, poll_s: float = 0.2) -> None:
        self._run(lambda client: client.wait_until_ready(timeout_s, poll_s))


Client = RewardClient | Awaited


class Connect:
    """Makes the client under test, speaking to ``handler`` instead of a network.

    ``slowly`` has every answer held back for ``delay_s(request)``, as each client waits: a thread or a task.
    """

    def __init__(self, is_async: bool) -> None:
        self.is_async = is_async

    def __call__(self, handler: Handler, url: str = URL, **settings: Any) -> Client:
        return self._make(httpx.MockTransport(handler), url, settings)

    def slowly(self, handler: Handler, delay_s: Callable[[httpx.Request], float], **settings: Any) -> Client:
        def hold(request: httpx.Request) -> httpx.Response:
            time.sleep(delay_s(request))
            return handler(request)

        async def hold_async(request: httpx.Request) -> httpx.Response:
            await asyncio.sleep(delay_s(request))
            return handler(request)

        return self._make(httpx.MockTransport(hold_async if self.is_async else hold), URL, settings)

    def _make(self, transport: httpx.MockTransport, url: str, settings: dict[str, Any]) -> Client:
        settings = {"url": url, "transport": transport, "retry": AT_ONCE, **settings}
        return Awaited(**settings) if self.is_async else RewardClient(**settings)


@pytest.fixture(params=[False, True], ids=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Connect:
    return Connect(request.param)


# --- a service in a few lines: the score of a response is its length, each character a reward of 1 --------


def scored(response: str, token_offsets: list[list[int]] | None = None) -> dict[str, Any]:
    offsets = token_offsets or [[n, n + 1] for n in range(len(response))]
    return {
        "score": float(len(response)),
        "rewards": [float(end - start) for start, end in offsets],
        "offsets": offsets,
    }


def failed(code: ErrorCode) -> dict[str, Any]:
    return {"error": ErrorBody.of(code, f"it is {code.value}").model_dump()}


def answer(
    items: list[dict[str, Any]],
    digest: str = "sha256:1",
    name: str = "default",
    options: dict[str, Any] | None = None,
) -> httpx.Response:
    body = {
        "model": {"name": name, "digest": digest, "kind": "seq2seq"},
        "options": {"mode": "paper", "aggregate": "sum", "calibrated": False, **(options or {})},
        "items": items,
        "usage": {"scored_tokens": 1, "batch_tokens": 2},
    }
    return httpx.Response(200, json=body)


def refuse(code: ErrorCode, headers: dict[str, str] | None = None) -> httpx.Response:
    body = {"error": ErrorBody.of(code, f"it is {code.value}").model_dump()}
    return httpx.Response(ERROR_TABLE[code].status, json=body, headers=headers)


def responses_in(request: httpx.Request) -> list[str]:
    return [item["response"] for item in json.loads(request.content)["items"]]


class Service:
    """Scores by length and remembers what it was asked.

    ``script``: answers given instead, one a request, until it is used up.
    ``items``: answers to single items instead, by response, each list used up in order.
    """

    def __init__(
        self,
        script: Iterable[httpx.Response | Exception] = (),
        items: dict[str, list[dict[str, Any]]] | None = None,
        digest: str = "sha256:1",
    ) -> None:
        self.requests: list[httpx.Request] = []
        self.times: list[float] = []
        self.digest = digest
        self._script = list(script)
        self._items = items or {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.times.append(time.monotonic())
        if self._script:
            scripted = self._script.pop(0)
            if isinstance(scripted, Exception):
                raise scripted
            return httpx.Response(
                scripted.status_code, headers=scripted.headers, content=scripted.content
            )  # a new one: a client binds the one it gets to its own kind of stream
        assert (request.method, request.url.path) == ("POST", SCORE_PATH)
        request_body = json.loads(request.content)
        options = {"calibrated": request_body["options"]["calibrated"]}
        return answer(
            [self._score_item(item) for item in request_body["items"]], self.digest, request_body["model"], options
        )

    def _score_item(self, item: dict[str, Any]) -> dict[str, Any]:
        waiting = self._items.get(item["response"])
        return waiting.pop(0) if waiting else scored(item["response"], item.get("token_offsets"))

    @property
    def batches(self) -> list[list[str]]:
        return [responses_in(request) for request in self.requests]


def items_for(*responses: str) -> list[ScoreItem | dict[str, Any]]:
    return [{"prompt": "Say it.", "response": response} for response in responses]


def scores(result: ScoreResult) -> list[float]:
    return [item.score for item in result.scored()]


# --- batches ---------------------------------------------------------------------------------------------


def test_a_large_batch_is_split_and_its_order_kept(connect: Connect) -> None:
    service = Service()
    lengths = [5, 3, 9, 1, 7, 2, 8, 4, 6, 10]
    items = items_for(*("x" * n for n in lengths))

    def earlier_is_slower(request: httpx.Request) -> float:
        return 0.06 if "x" * 5 in responses_in(request) else 0.0

    client = connect.slowly(service, earlier_is_slower, items_per_request=4)
    assert scores(client.score(items)) == lengths
    assert sorted(map(len, service.batches)) == [2, 4, 4]
    assert len(service.batches[-1][0]) == 5  # the first part did answer last
    assert sorted(len(response) for batch in service.batches for response in batch) == sorted(lengths)  # each item once


def test_a_batch_that_fits_is_one_request(connect: Connect) -> None:
    service = Service()
    connect(service, items_per_request=3).score(items_for("a", "b", "c"))
    assert service.batches == [["a", "b", "c"]]


def test_no_more_requests_are_under_way_than_allowed(connect: Connect) -> None:
    lock = threading.Lock()
    under_way: set[int] = set()
    most = 0
    service = Service()

    def delay_s(request: httpx.Request) -> float:
        nonlocal most
        with lock:
            under_way.add(id(request))
            most = max(most, len(under_way))
        return 0.02

    def handler(request: httpx.Request) -> httpx.Response:
        with lock:
            under_way.discard(id(request))
        return service(request)

    client = connect.slowly(handler, delay_s, items_per_request=1, concurrency=3)
    assert scores(client.score(items_for(*"abcdefghi"))) == [1.0] * 9
    assert most == 3


def test_no_items_are_no_request(connect: Connect) -> None:
    service = Service()
    result = connect(service).score([])
    assert service.requests == []
    assert result == ScoreResult(items=[], model=None, options=None, digests=())
    assert result.scored() == []
    assert result.failures == []


def test_items_may_come_from_a_generator_and_as_objects(connect: Connect) -> None:
    service = Service()
    item = ScoreItem(prompt="Say it.", response="yes", token_offsets=[(0, 3), (3, 3)])
    same = {"prompt": "Say it.", "response": "yes", "token_offsets": [[0, 3], [3, 3]]}
    connect(service).score(item for item in (item, same))
    first, second = json.loads(service.requests[0].content)["items"]
    assert {**first, "id": None} == {**second, "id": None} == {**same, "finished": True, "id": None}
    assert first["id"] != second["id"]


def test_items_and_options_arrive_unchanged(connect: Connect) -> None:
    service = Service()
    options = ScoreOptions(mode="paper", calibrated=True, on_too_long="truncate")
    connect(service).score(items_for("naïve 世界 🙂\u2028"), model="other/one", options=options)
    body = json.loads(service.requests[0].content)
    assert body["model"] == "other/one"
    assert body["items"][0]["response"] == "naïve 世界 🙂\u2028"
    assert body["options"] == {
        "mode": "paper",
        "correction": False,
        "calibrated": True,
        "on_too_long": "truncate",
    }


def test_every_field_of_an_answer_is_returned(connect: Connect) -> None:
    result = connect(Service()).score(items_for("ab"))
    assert result.model is not None
    assert (result.model.name, result.model.kind) == ("default", "seq2seq")
    assert result.options is not None
    assert (result.options.mode, result.options.aggregate) == ("paper", "sum")
    assert result.scored()[0].offsets == [(0, 1), (1, 2)]


def test_one_response_has_one_score(connect: Connect) -> None:
    service = Service()
    score = connect(service).score_one([{"role": "user", "content": "Say it."}], "done", finished=False)
    assert (score.score, score.rewards) == (4.0, [1.0] * 4)
    (sent,) = json.loads(service.requests[0].content)["items"]
    assert sent.pop("id")  # one that the client made up
    assert sent == {
        "prompt": [{"role": "user", "content": "Say it."}],
        "response": "done",
        "finished": False,
    }


# --- digests ---------------------------------------------------------------------------------------------


def test_one_bundle_is_one_digest_however_many_requests(connect: Connect) -> None:
    result = connect(Service(digest="sha256:7"), items_per_request=1).score(items_for("a", "b", "c"))
    assert result.digests == ("sha256:7",)


def test_a_model_change_between_requests_shows_both_digests(connect: Connect) -> None:
    script = [answer([scored("a")], "sha256:old"), answer([scored("b")], "sha256:new")]
    client = connect(Service(script), items_per_request=1, concurrency=1)
    result = client.score(items_for("a", "b"))
    assert result.digests == ("sha256:old", "sha256:new")


def test_a_model_change_before_an_item_is_repeated_shows_both_digests(connect: Connect) -> None:
    script = [
        answer([scored("a"), failed(ErrorCode.OUT_OF_MEMORY)], "sha256:old"),
        answer([scored("b")], "sha256:new"),
    ]
    assert connect(Service(script)).score(items_for("a", "b")).digests == ("sha256:old", "sha256:new")


# --- errors of items -------------------------------------------------------------------------------------


def test_an_item_that_cannot_be_scored_has_its_error_in_its_place(connect: Connect) -> None:
    service = Service(items={"bb": [failed(ErrorCode.TOO_LONG)], "dddd": [failed(ErrorCode.NON_FINITE)]})
    result = connect(service, items_per_request=3).score(items_for("a", "bb", "ccc", "dddd", "eeeee"))
    assert [item.score if isinstance(item, ItemScore) else item.error.code for item in result.items] == [
        1.0,
        "too_long",
        3.0,
        "non_finite",
        5.0,
    ]
    assert [(position, error.code) for position, error in result.failures] == [
        (1, "too_long"),
        (3, "non_finite"),
    ]
    with pytest.raises(ItemsFailedError, match=r"item 1 .*it is too_long.*1 more") as caught:
        result.scored()
    assert caught.value.failures == result.failures
    assert len(service.requests) == 2  # neither may pass: nothing was sent again


def test_the_one_response_that_cannot_be_scored_raises(connect: Connect) -> None:
    service = Service(items={"": [failed(ErrorCode.EMPTY_RESPONSE)]})
    with pytest.raises(ItemsFailedError, match=r"item 0 .*empty_response"):
        connect(service).score_one("Say it.", "")


def test_an_item_with_a_retryable_error_is_sent_again_alone(connect: Connect) -> None:
    out_of_memory = failed(ErrorCode.OUT_OF_MEMORY)
    service = Service(
        items={
            "bb": [out_of_memory, out_of_memory],
            "ccc": [failed(ErrorCode.TOO_LONG)],
            "dddd": [failed(ErrorCode.TIMED_OUT)],
        }
    )
    result = connect(service).score(items_for("a", "bb", "ccc", "dddd"))
    assert service.batches == [["a", "bb", "ccc", "dddd"], ["bb", "dddd"], ["bb"]]
    assert [item.score if isinstance(item, ItemScore) else item.error.code for item in result.items] == [
        1.0,
        2.0,
        "too_long",
        4.0,
    ]


def test_an_item_that_always_fails_keeps_its_error(connect: Connect) -> None:
    service = Service(items={"bb": [failed(ErrorCode.OUT_OF_MEMORY)] * 9})
    waits: list[RedlineError] = []
    client = connect(service, on_wait=lambda error, wait_s: waits.append(error))
    result = client.score(items_for("a", "bb"))
    assert service.batches == [["a", "bb"], ["bb"], ["bb"], ["bb"]]  # four tries in all
    assert [error.code for error in waits if isinstance(error, ServiceError)] == ["out_of_memory"] * 3
    assert isinstance(result.items[1], ItemError)
    assert result.items[1].error.code == "out_of_memory"


def test_items_are_tried_a_few_times_even_without_a_time_limit(connect: Connect) -> None:
    service = Service(items={"bb": [failed(ErrorCode.OUT_OF_MEMORY)] * 100})
    endless = RetryPolicy(max_attempts=None, max_elapsed_s=None, first_wait_s=0.0, longest_wait_s=0.0)
    result = connect(service, retry=endless).score(items_for("a", "bb"))
    assert service.batches == [["a", "bb"], *[["bb"]] * 4]
    assert [position for position, _ in result.failures] == [1]


def test_without_retry_an_item_is_sent_once(connect: Connect) -> None:
    service = Service(items={"bb": [failed(ErrorCode.OUT_OF_MEMORY)]})
    result = connect(service, retry=NO_RETRY).score(items_for("a", "bb"))
    assert service.batches == [["a", "bb"]]
    assert [position for position, _ in result.failures] == [1]


# --- errors of requests ----------------------------------------------------------------------------------


def test_retry_after_of_an_overloaded_service_is_honoured(connect: Connect) -> None:
    busy = {"Retry-After": "0.04"}
    service = Service([refuse(ErrorCode.OVERLOADED, busy), refuse(ErrorCode.OVERLOADED, {"Retry-After": "60"})])
    waits: list[tuple[RedlineError, float]] = []
    retry = RetryPolicy(first_wait_s=0.0, longest_wait_s=0.06)
    client = connect(service, retry=retry, on_wait=lambda error, wait_s: waits.append((error, wait_s)))
    assert scores(client.score(items_for("abc"))) == [3.0]
    assert [wait_s for _, wait_s in waits] == [0.04, 0.06]  # honoured; capped
    assert [error.code for error, _ in waits if isinstance(error, ServiceError)] == ["overloaded"] * 2
    first, second, third = service.times
    assert second - first >= 0.04
    assert third - second >= 0.06


@pytest.mark.parametrize("value", ["soon", "Wed, 21 Oct 2037 07:28:00 GMT", "-5", "nan", ""])
def test_an_invalid_retry_after_is_ignored(connect: Connect, value: str) -> None:
    service = Service([refuse(ErrorCode.OVERLOADED, {"Retry-After": value})])
    assert scores(connect(service).score(items_for("abc"))) == [3.0]


@pytest.mark.parametrize("code", [code for code in ErrorCode if ERROR_TABLE[code].retryable])
def test_a_retryable_refusal_is_retried(connect: Connect, code: ErrorCode) -> None:
    service = Service([refuse(code), refuse(code)])
    assert scores(connect(service).score(items_for("abc"))) == [3.0]
    assert len(service.requests) == 3


@pytest.mark.parametrize("code", [code for code in ErrorCode if not ERROR_TABLE[code].retryable])
def test_a_final_refusal_is_not_retried(connect: Connect, code: ErrorCode) -> None:
    service = Service([refuse(code, {"X-Request-Id": "r-1"})])
    with pytest.raises(ServiceError, match=f"it is {code.value}") as caught:
        connect(service).score(items_for("abc"))
    assert len(service.requests) == 1
    error = caught.value
    assert (error.code, error.status, error.is_retryable) == (code.value, ERROR_TABLE[code].status, False)
    assert error.request_id == "r-1"


def test_the_last_refusal_is_raised_after_the_last_attempt(connect: Connect) -> None:
    service = Service([refuse(ErrorCode.NOT_READY)] * 9)
    with pytest.raises(ServiceError) as caught:
        connect(service).score(items_for("abc"))
    assert caught.value.code == "not_ready"
    assert len(service.requests) == 4


def test_a_refusal_of_one_part_fails_the_call(connect: Connect) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if responses_in(request) == ["b"]:
            return refuse(ErrorCode.INVALID_REQUEST)
        return answer([scored(response) for response in responses_in(request)])

    with pytest.raises(ServiceError, match="invalid_request"):
        connect(handler, items_per_request=1).score(items_for("a", "b", "c"))


# --- requests that take the service too long --------------------------------------------------------------


class SlowService(Service):
    """Answers in time only if it is asked about at most ``most`` items."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __call__(self, request: httpx.Request) -> httpx.Response:
        fitting = super().__call__(request)
        return fitting if len(responses_in(request)) <= self.most else refuse(ErrorCode.TIMED_OUT)


@pytest.mark.parametrize(("count", "most"), [(8, 4), (8, 1), (7, 2), (3, 2), (2, 1)])
def test_a_request_that_times_out_in_the_service_is_sent_in_halves(connect: Connect, count: int, most: int) -> None:
    service = SlowService(most)
    result = connect(service).score(items_for(*("x" * n for n in range(1, count + 1))))
    assert scores(result) == [float(n) for n in range(1, count + 1)]
    accepted = [batch for batch in service.batches if len(batch) <= most]
    assert sorted(len(response) for batch in accepted for response in batch) == list(range(1, count + 1))
    refused = [len(batch) for batch in service.batches if len(batch) > most]
    assert len(refused) == len(accepted) - 1  # every refusal made two of one, and none was repeated


def test_a_single_item_that_times_out_is_sent_again(connect: Connect) -> None:
    service = SlowService(most=0)
    with pytest.raises(ServiceError, match="timed_out"):
        connect(service).score(items_for("abc"))
    assert service.batches == [["abc"]] * 4


# --- another side that is no Redline service -------------------------------------------------------------


SINGLE_ITEM = [scored("abc")]
OPTIONS = {"mode": None, "aggregate": "sum", "calibrated": False}
REF = {"name": "default", "digest": "sha256:1", "kind": "seq2seq"}
USAGE = {"scored_tokens": 1, "batch_tokens": 1}


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, html="<h1>It works!</h1>"),
        httpx.Response(200, content=b""),
        httpx.Response(200, content=b"\xff\xfe\x00"),
        httpx.Response(204),
        httpx.Response(200, json=[1.0]),
        httpx.Response(200, json={"rewards": [1.0]}),
        httpx.Response(200, json={"options": OPTIONS, "items": SINGLE_ITEM, "usage": USAGE}),
        httpx.Response(200, json={"model": REF, "options": OPTIONS, "items": [{"id": "a"}], "usage": USAGE}),
        httpx.Response(200, json={"model": REF, "options": OPTIONS, "items": [None], "usage": USAGE}),
        httpx.Response(200, content=answer(SINGLE_ITEM).content.replace(b"3.0", b"NaN")),
        httpx.Response(200, content=answer(SINGLE_ITEM).content[:-1]),
        answer([]),
        answer(SINGLE_ITEM * 2),
    ],
)
def test_a_malformed_answer_is_an_error_and_not_a_score(connect: Connect, response: httpx.Response) -> None:
    service = Service([response])
    with pytest.raises(ProtocolError):
        connect(service).score(items_for("abc"))
    assert len(service.requests) == 1  # it would answer so again


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(404, html="not found"),
        httpx.Response(404, json={"detail": "Not Found"}),
        httpx.Response(500, text="Internal Server Error"),
        httpx.Response(401, json={"error": "who are you?"}),
        httpx.Response(302, headers={"Location": "http://elsewhere.test/"}),
    ],
)
def test_a_server_that_is_not_redline_is_reported(connect: Connect, response: httpx.Response) -> None:
    service = Service([response])
    with pytest.raises(ProtocolError, match=f"{URL}{SCORE_PATH} answered HTTP {response.status_code}"):
        connect(service).score(items_for("abc"))
    assert len(service.requests) == 1


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_proxy_without_its_service_is_retried(connect: Connect, status: int) -> None:
    service = Service([httpx.Response(status, html="Bad Gateway")] * 2)
    assert scores(connect(service).score(items_for("abc"))) == [3.0]
    service = Service([httpx.Response(status, html="Bad Gateway")] * 9)
    with pytest.raises(ConnectionFailedError, match=f"HTTP {status}"):
        connect(service).score(items_for("abc"))


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("Connection refused"),
        httpx.ConnectTimeout("slow"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("Server disconnected"),
        httpx.ReadError(""),
    ],
)
def test_an_unreachable_service_is_retried_and_then_reported(connect: Connect, error: Exception) -> None:
    service = Service([error] * 2)
    assert scores(connect(service).score(items_for("abc"))) == [3.0]

    service = Service([error] * 9)
    with pytest.raises(ConnectionFailedError, match=URL):
        connect(service).score(items_for("abc"))
    assert len(service.requests) == 4

    with pytest.raises(ConnectionFailedError, match=URL) as caught:
        connect(Service([error] * 9)).models()
    assert isinstance(caught.value.__cause__, type(error))


@pytest.mark.parametrize(
    "url",
    [
        *["ftp://redline.test", "redline.test", "", "http://[::1", "http://redline.test:port"],
        *["http://redline.test:99999", "http://xn--.test", "http://redline.test/\x00"],
    ],
)
def test_an_invalid_address_is_reported_and_not_retried(connect: Connect, url: str) -> None:
    waits: list[float] = []
    with pytest.raises(ProtocolError, match=r"not an http\(s\) address"):
        # no transport in place of the network: httpx itself refuses before it connects
        connect(Service(), url=url, transport=None, on_wait=lambda error, wait_s: waits.append(wait_s)).score(
            items_for("abc")
        )
    assert waits == []


# --- keys and malformed items ----------------------------------------------------------------------------


def test_the_key_is_sent_as_a_bearer_token_on_every_route(connect: Connect) -> None:
    script = [
        answer([scored("a")]),
        httpx.Response(200, json={"models": []}),
        httpx.Response(200, json=MODEL),
    ]
    service = Service([*script, httpx.Response(200, json={"status": "ready"})])
    client = connect(service, key="s3cret")
    client.score(items_for("a"))
    client.models()
    client.model()
    client.wait_until_ready()
    assert [request.headers.get("Authorization") for request in service.requests] == ["Bearer s3cret"] * 4


def test_without_a_key_no_authorization_is_sent(connect: Connect) -> None:
    service = Service()
    connect(service).score(items_for("a"))
    assert "Authorization" not in service.requests[0].headers


def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(connect: Connect) -> None:
    service = Service()
    with pytest.raises(ProtocolError, match="the key") as caught:
        connect(service, key="clé").score(items_for("a"))
    assert "clé" not in str(caught.value)
    assert service.requests == []


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"prompt": "Say it."}, "exactly one of 'response' and 'response_ids'"),
        ({"prompt": "Say it.", "response": 7}, "response: "),
        ({"prompt": "Say it.", "response": "a", "respnse": "b"}, "respnse: Extra inputs"),
        ({"prompt": "Say it.", "response": "a", "token_offsets": [[0]]}, "token_offsets.0"),
        ({"prompt_ids": [1], "response_ids": [2]}, "ids need 'tokenizer_fingerprint'"),
        ({"prompt": [{"role": "user"}], "response": "a"}, "prompt"),
        ({"prompt": "Say it.", "response": "cut in two: \ud83d"}, "half a surrogate pair"),
        ({"prompt": [{"role": "user", "content": "\ud83d"}], "response": "a"}, "prompt"),
        ("Say it.", "dictionary"),
    ],
)
def test_a_malformed_item_is_named_before_anything_is_sent(connect: Connect, item: Any, reason: str) -> None:
    service = Service()
    with pytest.raises(ProtocolError, match=r"^item 2: ") as caught:
        connect(service, items_per_request=1).score([*items_for("a", "b"), item, *items_for("c")])
    assert reason in str(caught.value)
    assert service.requests == []


# --- models and readiness --------------------------------------------------------------------------------


def test_models_are_listed_and_fetched_by_name(connect: Connect) -> None:
    service = Service([httpx.Response(200, json={"models": [MODEL]}), httpx.Response(200, json=MODEL)])
    client = connect(service)
    assert client.models() == [ModelInfo.model_validate(MODEL)]
    assert client.model("default") == ModelInfo.model_validate(MODEL)
    assert [(request.method, request.url.path) for request in service.requests] == [
        ("GET", MODELS_PATH),
        ("GET", f"{MODELS_PATH}/default"),
    ]


def test_an_unknown_model_is_a_refusal(connect: Connect) -> None:
    with pytest.raises(ServiceError, match="model_not_found"):
        connect(Service([refuse(ErrorCode.MODEL_NOT_FOUND)])).model("other")


def test_a_path_before_the_routes_is_kept(connect: Connect) -> None:
    service = Service([httpx.Response(200, json={"models": []})])
    connect(service, url=f"{URL}/keyed/abc/").models()
    assert str(service.requests[0].url) == f"{URL}/keyed/abc{MODELS_PATH}"


def test_wait_until_ready_ends_as_soon_as_the_service_is_ready(connect: Connect) -> None:
    script: list[httpx.Response | Exception] = [
        httpx.ConnectError("Connection refused"),
        httpx.Response(502, html="Bad Gateway"),
        refuse(ErrorCode.NOT_READY, {"Retry-After": "60"}),  # for scorers; readiness is polled
        httpx.Response(200, json={"status": "ready"}),
    ]
    service = Service(script)
    connect(service).wait_until_ready(timeout_s=30.0, poll_s=0.01)
    assert [request.url.path for request in service.requests] == [READY_PATH] * 4
    assert service.times[-1] - service.times[0] < 10.0


def test_wait_until_ready_ends_in_time_with_the_reason(connect: Connect) -> None:
    service = Service([refuse(ErrorCode.NOT_READY)] * 1000)
    started = time.monotonic()
    with pytest.raises(ConnectionFailedError, match=r"not ready within 0\.1 s: it is not_ready") as caught:
        connect(service).wait_until_ready(timeout_s=0.1, poll_s=0.02)
    assert time.monotonic() - started < 5.0
    assert 2 <= len(service.requests) <= 6
    assert isinstance(caught.value.__cause__, ServiceError)
