"""An answer is read up to ``max_answer_bytes`` and no further, compressed or not; both clients, real sockets."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from redline import AnswerTooLargeError, ConnectionFailedError, ProtocolError, RedlineError
from redline.http import exchange
from redline.http.answer_body import AnswerReader
from tests.redline.raw_server import RawServer, call, http, receive_request

MIB = 2**20
EMPTY = json.dumps({"models": []}).encode()


@pytest.fixture(params=[False, True], ids=["blocking", "asyncio"])
def is_async(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def models(is_async: bool, answer: bytes | Callable[[socket.socket], None], **settings: Any) -> Any:
    """``client.models()``, answered with ``answer``."""

    def send(connection: socket.socket) -> None:
        receive_request(connection)
        if callable(answer):
            answer(connection)
        else:
            connection.sendall(answer)

    with RawServer(send) as server:
        return call(is_async, lambda client: client.models(), url=server.url, timeout_s=60.0, **settings)


def padded(size: int) -> bytes:
    """An answer of ``size`` bytes that is right."""
    return EMPTY + b" " * (size - len(EMPTY))


def zeros_in_gzip(mebibytes: int) -> bytes:
    """What ``gzip`` makes of that many zeros, without going through them all."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = deflate.compress(bytes(MIB)) + deflate.flush(zlib.Z_FULL_FLUSH)
    end = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS).flush()
    check = 0
    for _ in range(mebibytes):
        check = zlib.crc32(bytes(MIB), check)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + block * mebibytes + end + struct.pack("<II", check, mebibytes * MIB)


GZIP = "Content-Encoding: gzip"


def plain(body: bytes) -> bytes:
    return http(body)


def until_closed(body: bytes) -> bytes:
    return http(body, has_length=False)


def chunked(body: bytes) -> bytes:
    return http(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body), "Transfer-Encoding: chunked", has_length=False)


def compressed(body: bytes) -> bytes:
    return http(gzip.compress(body, mtime=0), GZIP)


@pytest.mark.parametrize("sent", [plain, until_closed, chunked, compressed])
def test_an_answer_of_exactly_the_limit_is_accepted_and_one_byte_more_refused(
    sent: Callable[[bytes], bytes], is_async: bool
) -> None:
    assert models(is_async, sent(padded(5000)), max_answer_bytes=5000) == []
    with pytest.raises(AnswerTooLargeError, match=r"more than 5000 bytes \(max_answer_bytes\)"):
        models(is_async, sent(padded(5001)), max_answer_bytes=5000)


def test_the_default_limit_is_64_mib(is_async: bool) -> None:
    with pytest.raises(AnswerTooLargeError, match=f"more than {64 * MIB} bytes"):
        models(is_async, http(b"", f"Content-Length: {64 * MIB + 1}", has_length=False))


def test_an_endless_answer_is_not_read_to_its_end(is_async: bool) -> None:
    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(1000):
            connection.sendall(b" " * MIB)

    with pytest.raises(AnswerTooLargeError):
        models(is_async, endless, max_answer_bytes=3 * MIB)


@pytest.mark.parametrize("status", ["404 Not Found", "503 Busy"])
def test_refusals_are_bounded_too(status: str, is_async: bool) -> None:
    with pytest.raises(AnswerTooLargeError):
        models(is_async, http(b" " * 5001, status=status), max_answer_bytes=5000)


def test_endless_headers_are_not_read_to_their_end(is_async: bool) -> None:
    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        for n in range(1000):
            connection.sendall(b"X-%d: " % n + b"x" * 65536 + b"\r\n")

    with pytest.raises(ConnectionFailedError):
        models(is_async, endless)


def peak_of_a_bomb(is_async: bool, mebibytes: int, limit: int) -> int:
    """Bytes allocated at the most while ``mebibytes`` of zeros are refused."""
    bomb = http(zeros_in_gzip(mebibytes), GZIP)
    tracemalloc.start()
    try:
        with pytest.raises(AnswerTooLargeError):
            models(is_async, bomb, max_answer_bytes=limit)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_gzip_bomb_costs_no_more_than_the_limit_and_a_little(is_async: bool) -> None:
    assert peak_of_a_bomb(is_async, mebibytes=128, limit=4 * MIB) < 4 * MIB + 6 * MIB


def test_half_a_gibibyte_of_zeros_costs_no_more_than_the_default_limit_and_a_little(is_async: bool) -> None:
    assert peak_of_a_bomb(is_async, mebibytes=512, limit=64 * MIB) < (64 + 16) * MIB


def test_gzip_with_several_members_is_read_completely(is_async: bool) -> None:
    assert models(is_async, http(gzip.compress(EMPTY[:5], mtime=0) + gzip.compress(EMPTY[5:], mtime=0), GZIP)) == []


@pytest.mark.parametrize("piece", [1, 2, 7, 1000])
def test_gzip_in_pieces_of_any_size_is_the_same_text(piece: int) -> None:
    text = json.dumps([n * n for n in range(30_000)]).encode()
    data = gzip.compress(text, mtime=0)
    response = httpx.Response(200, headers={"Content-Encoding": "gzip"}, request=httpx.Request("GET", "http://x"))
    reader = AnswerReader(response, 2 * len(text))
    for start in range(0, len(data), piece):
        reader.add(data[start : start + piece])
    assert bytes(reader.answer().body) == text


@pytest.mark.parametrize(
    "encoding", ["br", "zstd", "deflate", "compress", "gzip, gzip", "gzip, identity, br", "x" * 500, "\xe9"]
)
def test_encodings_that_were_not_requested_are_refused(encoding: str, is_async: bool) -> None:
    with pytest.raises(ProtocolError, match="encoding that was not requested") as caught:
        models(is_async, http(gzip.compress(EMPTY, mtime=0), f"Content-Encoding: {encoding}"))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("encoding", ["identity", "", "identity, identity"])
def test_every_spelling_of_no_encoding_is_accepted(encoding: str, is_async: bool) -> None:
    assert models(is_async, http(EMPTY, f"Content-Encoding: {encoding}")) == []


@pytest.mark.parametrize(
    "body",
    [
        EMPTY,
        gzip.compress(EMPTY, mtime=0)[:-1],
        gzip.compress(EMPTY, mtime=0)[:12],
        gzip.compress(EMPTY, mtime=0) + b"more",
        b"\x1f\x8b",
    ],
)
def test_invalid_or_incomplete_gzip_is_an_error(body: bytes, is_async: bool) -> None:
    with pytest.raises(ProtocolError, match="gzip"):
        models(is_async, http(body, GZIP))


def test_only_gzip_is_requested(is_async: bool) -> None:
    heads: list[bytes] = []

    def note(connection: socket.socket) -> None:
        heads.append(receive_request(connection))
        connection.sendall(http(EMPTY))

    with RawServer(note) as server:
        call(is_async, lambda client: client.models(), url=server.url)
    assert b"\r\naccept-encoding: gzip\r\n" in heads[0].lower()


def test_answers_of_a_transport_in_memory_are_bounded_too(is_async: bool) -> None:
    def whole(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=padded(5001))

    def in_pieces(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=pieces())

    def pieces() -> Iterator[bytes]:
        for _ in range(6):
            yield b" " * 1000

    for answer in [whole] if is_async else [whole, in_pieces]:
        with pytest.raises(AnswerTooLargeError):
            call(
                is_async,
                lambda client: client.models(),
                transport=httpx.MockTransport(answer),
                max_answer_bytes=5000,
            )


def answer_about(text: str, **more: Any) -> bytes:
    """A right answer about ``text``: a token of the model's for each of its bytes, with rewards of many digits."""
    spans = [[n, n + 1] for n, character in enumerate(text) for _ in character.encode()]
    rewards = [-1.2345678901234567e-100] * len(spans)
    item = {"score": sum(rewards), "rewards": rewards, "offsets": spans, **more}
    answer = {
        "model": {"name": "default", "digest": "sha256:1", "kind": "seq2seq"},
        "options": {"aggregate": "sum", "calibrated": False},
        "usage": {"scored_tokens": 1, "batch_tokens": 1},
        "items": [item],
    }
    return json.dumps(answer).encode()


def scored_about(is_async: bool, text: str, body: bytes, **settings: Any) -> Any:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=body))
    items = [{"prompt": "p", "response": text}]
    return call(is_async, lambda client: client.score(items), transport=transport, **settings)


def test_the_size_limit_depends_on_the_request(is_async: bool) -> None:
    body = answer_about("yes")
    assert len(scored_about(is_async, "yes", body + b" " * 2**19).scored()) == 1
    with pytest.raises(AnswerTooLargeError, match="the most that a valid answer can have") as caught:
        scored_about(is_async, "yes", body + b" " * 2 * MIB)
    assert "max_answer_bytes" not in str(caught.value)
    with pytest.raises(AnswerTooLargeError, match="max_answer_bytes"):
        scored_about(is_async, "yes", body + b" " * 2 * MIB, max_answer_bytes=MIB // 2)


@pytest.mark.parametrize("text", ["a" * 60_000, "é" * 30_000, "世" * 20_000, "🙂" * 15_000])
def test_a_valid_answer_with_a_token_for_each_byte_fits(text: str, is_async: bool) -> None:
    body = answer_about(text)
    assert len(body) > 2 * MIB
    assert len(scored_about(is_async, text, body).scored()[0].rewards) == 60_000


def test_reading_an_answer_counts_towards_the_timeout(is_async: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "check_answer", lambda *args, **settings: time.sleep(0.3))
    assert scored_about(is_async, "yes", answer_about("yes"), timeout_s=5.0).items
    with pytest.raises(ConnectionFailedError, match=r"within 0\.2 s"):
        scored_about(is_async, "yes", answer_about("yes"), timeout_s=0.2)


def test_a_large_answer_is_parsed_outside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []

    def note(*args: Any, **settings: Any) -> None:
        threads.append(threading.current_thread() is threading.main_thread())

    monkeypatch.setattr(exchange, "check_answer", note)
    scored_about(True, "a" * 10_000, answer_about("a" * 10_000))
    scored_about(True, "a", answer_about("a"))
    assert threads == [False, True]


def test_a_limit_of_zero_is_refused(is_async: bool) -> None:
    with pytest.raises(ValueError, match="max_answer_bytes"):
        call(is_async, lambda client: client.models(), max_answer_bytes=0)


def test_an_answer_that_is_too_large_is_a_protocol_error() -> None:
    assert issubclass(AnswerTooLargeError, ProtocolError)
    assert issubclass(AnswerTooLargeError, RedlineError)


@pytest.mark.parametrize(
    "items", ["[" + "{}," * 300_000 + "{}]", '[{"score":1,"offsets":[],"rewards":[' + '"",' * 300_000 + '""]}]']
)
def test_millions_of_wrong_elements_are_one_error(items: str, is_async: bool) -> None:
    body = (
        '{"model": {"name": "default", "digest": "sha256:1", "kind": "seq2seq"},'
        ' "options": {"aggregate": "sum", "calibrated": false},'
        ' "usage": {"scored_tokens": 1, "batch_tokens": 1}, "items": ' + items + "}"
    ).encode()
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError) as caught:
            call(
                is_async,
                lambda client: client.score([{"prompt": "p", "response": "r"}]),
                transport=httpx.MockTransport(lambda request: httpx.Response(200, content=body)),
            )
        error_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error_bytes < 20 * MIB
    assert isinstance(caught.value.__cause__, ValidationError)
    assert caught.value.__cause__.error_count() < 10
