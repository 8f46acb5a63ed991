"""An answer to another request is never taken for the answer to this one; both clients, real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from redline import (
    NO_RETRY,
    AnswerMismatchError,
    AsyncRewardClient,
    ConnectionFailedError,
    ProtocolError,
    RedlineError,
    RetryPolicy,
    RewardClient,
)
from redline.wire import REQUEST_ID_HEADER
from tests.redline.raw_server import RawServer, http, receive_request

AT_ONCE = RetryPolicy(max_attempts=3, first_wait_s=0.0, longest_wait_s=0.0)
# what became of a call: its score, or the error
Outcome = float | RedlineError


@pytest.fixture(params=[False, True], ids=["blocking", "asyncio"])
def is_async(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def correct_answer(request: bytes, *, echoes_request: bool, echoes_items: bool, chunked: bool = False) -> bytes:
    """What a service answers for which the score of a digit is the digit; its ids are optional."""
    head, _, body = request.partition(b"\r\n\r\n")
    items = []
    for item in json.loads(body)["items"]:
        value = float(item["response"])
        scored = {"score": value, "rewards": [value], "offsets": [[0, 1]]}
        items.append({"id": item["id"], **scored} if echoes_items and "id" in item else scored)
    answer = {
        "model": {"name": "default", "digest": "sha256:1", "kind": "seq2seq"},
        "options": {"aggregate": "sum", "calibrated": False},
        "items": items,
        "usage": {"scored_tokens": 1, "batch_tokens": 1},
    }
    content = json.dumps(answer).encode()
    headers = [f"{REQUEST_ID_HEADER}: {request_id(head)}"] if echoes_request else []
    if chunked:
        content = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
        return http(content, "Transfer-Encoding: chunked", *headers, has_length=False)
    return http(content, *headers)


def request_id(head: bytes) -> str:
    name = REQUEST_ID_HEADER.lower().encode() + b": "
    (value,) = [line[len(name) :] for line in head.split(b"\r\n") if line.lower().startswith(name)]
    return value.decode()


def outcomes(is_async: bool, url: str, digits: str, between_s: float = 0.0, **settings: Any) -> list[Outcome]:
    """One call for each digit by one client, one after the other."""
    settings = {"retry": NO_RETRY, "timeout_s": 5.0, **settings}
    items = [{"prompt": "p", "response": digit} for digit in digits]

    async def main() -> list[Outcome]:
        outcomes: list[Outcome] = []
        async with AsyncRewardClient(url, **settings) as client:
            for item in items:
                try:
                    outcomes.append((await client.score([item])).scored()[0].score)
                except RedlineError as error:
                    outcomes.append(error)
                await asyncio.sleep(between_s)
        return outcomes

    if is_async:
        return asyncio.run(main())
    outcomes: list[Outcome] = []
    with RewardClient(url, **settings) as client:
        for item in items:
            try:
                outcomes.append(client.score([item]).scored()[0].score)
            except RedlineError as error:
                outcomes.append(error)
    return outcomes


Server = Callable[[Callable[[bytes], bytes]], Callable[[socket.socket], None]]


def answers_twice(answer: Callable[[bytes], bytes]) -> Callable[[socket.socket], None]:
    """Two answers to every request, in one piece."""

    def serve(connection: socket.socket) -> None:
        while True:
            connection.sendall(2 * answer(receive_request(connection)))

    return serve


def answers_the_request_before(answer: Callable[[bytes], bytes]) -> Callable[[socket.socket], None]:
    """The first request rightly, every later one with the answer to the one before it."""

    def serve(connection: socket.socket) -> None:
        before = request = receive_request(connection)
        while True:
            connection.sendall(answer(before))
            before, request = request, receive_request(connection)

    return serve


ECHOES = [(True, True), (True, False), (False, True)]


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize(("echoes_request", "echoes_items"), [*ECHOES, (False, False)])
def test_a_duplicate_answer_is_not_used_for_the_next_request(
    echoes_request: bool, echoes_items: bool, chunked: bool, is_async: bool
) -> None:
    def answer(request: bytes) -> bytes:
        return correct_answer(request, echoes_request=echoes_request, echoes_items=echoes_items, chunked=chunked)

    with RawServer(answers_twice(answer)) as server:
        assert outcomes(is_async, server.url, "123") == [1.0, 2.0, 3.0]
        assert server.connections == 3  # none was used again


@pytest.mark.parametrize(("echoes_request", "echoes_items"), ECHOES)
def test_the_answer_to_an_earlier_request_is_an_error(echoes_request: bool, echoes_items: bool, is_async: bool) -> None:
    def answer(request: bytes) -> bytes:
        return correct_answer(request, echoes_request=echoes_request, echoes_items=echoes_items)

    with RawServer(answers_the_request_before(answer)) as server:
        first, second = outcomes(is_async, server.url, "12")
    assert first == 1.0
    assert isinstance(second, AnswerMismatchError if echoes_request else ProtocolError)
    assert "\n" not in str(second)


def test_after_a_wrong_answer_the_request_is_repeated_on_a_new_connection(is_async: bool) -> None:
    def answer(request: bytes) -> bytes:
        return correct_answer(request, echoes_request=True, echoes_items=True)

    with RawServer(answers_the_request_before(answer)) as server:
        assert outcomes(is_async, server.url, "123", retry=AT_ONCE) == [1.0, 2.0, 3.0]


def test_a_late_answer_is_not_used_for_the_next_request(is_async: bool) -> None:
    def serve(connection: socket.socket) -> None:
        request = receive_request(connection)
        if server.connections == 1:
            server.wait_s(0.5)
        connection.sendall(correct_answer(request, echoes_request=False, echoes_items=False))
        receive_request(connection)

    with RawServer(serve) as server:
        late, right = outcomes(is_async, server.url, "12", timeout_s=0.3)
    assert isinstance(late, ConnectionFailedError)
    assert right == 2.0


def test_every_request_has_a_unique_id(is_async: bool) -> None:
    ids: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        ids.append(request.headers[REQUEST_ID_HEADER])
        return httpx.Response(503, json={"error": {"code": "overloaded", "message": "m", "retryable": True}})

    outcomes(is_async, "http://redline.test", "12", transport=httpx.MockTransport(answer), retry=AT_ONCE)
    assert len(ids) == len(set(ids)) == 6


def echoing(*ids: str | None) -> httpx.MockTransport:
    """Answers rightly, with each of ``ids`` in turn as the request id; None is the right one."""
    remaining_ids = list(ids)

    def answer(request: httpx.Request) -> httpx.Response:
        sent = f"POST / HTTP/1.1\r\n{REQUEST_ID_HEADER}: {request.headers[REQUEST_ID_HEADER]}\r\n\r\n".encode()
        answer_bytes = correct_answer(sent + request.read(), echoes_request=False, echoes_items=False)
        answer_id = remaining_ids.pop(0)
        return httpx.Response(
            200,
            content=answer_bytes.partition(b"\r\n\r\n")[2],
            headers={REQUEST_ID_HEADER: request.headers[REQUEST_ID_HEADER] if answer_id is None else answer_id},
        )

    return httpx.MockTransport(answer)


def test_a_proxy_that_replaces_the_id_is_accepted(is_async: bool) -> None:
    assert outcomes(is_async, "http://redline.test", "12", transport=echoing("3f6a", "3f6b")) == [1.0, 2.0]


@pytest.mark.parametrize("other", ["3f6a", "redline-" + "0" * 32])
def test_a_server_that_returned_an_id_must_return_every_id(other: str, is_async: bool) -> None:
    first, second = outcomes(is_async, "http://redline.test", "12", transport=echoing(None, other))
    assert first == 1.0
    assert isinstance(second, AnswerMismatchError)


def test_another_client_s_id_is_always_refused(is_async: bool) -> None:
    (only,) = outcomes(is_async, "http://redline.test", "1", transport=echoing("redline-" + "0" * 32))
    assert isinstance(only, AnswerMismatchError)


def test_generated_item_ids_are_not_returned(is_async: bool) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        sent = f"POST / HTTP/1.1\r\n{REQUEST_ID_HEADER}: x\r\n\r\n".encode() + request.read()
        answer_bytes = correct_answer(sent, echoes_request=False, echoes_items=True)
        return httpx.Response(200, content=answer_bytes.partition(b"\r\n\r\n")[2])

    items: Any = [{"prompt": "p", "response": "1"}, {"id": "mine", "prompt": "p", "response": "2"}]
    transport = httpx.MockTransport(answer)
    if is_async:

        async def main() -> Any:
            async with AsyncRewardClient(transport=transport) as client:
                return await client.score(items)

        result = asyncio.run(main())
    else:
        with RewardClient(transport=transport) as client:
            result = client.score(items)
    assert [item.id for item in result.scored()] == [None, "mine"]
    assert "id" not in items[0]
