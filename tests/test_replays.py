"""Recorded requests of frameworks that cannot be installed with the tests, sent to a ``redline serve`` process.

The bytes are those that requests 2.32, aiohttp 3.13 and orjson send for the calls in align-anything 3f9decc, slime
0.3.1 and NeMo-Gym 0.5.1. Timeouts and numbers of attempts are those of the frameworks; pauses are shorter.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from redline import RewardClient
from tests.conftest import build_causal, build_scorer, build_tokenizer, write_bundle
from tests.ports import free_port
from tests.test_whole_loop import Service

pytestmark = pytest.mark.loop
PROMPT = "How do I reset my router?"
RESPONSE = "Hold the round button. 世界"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replays") / "rm"
    tokenizer = build_tokenizer()
    write_bundle(folder, build_scorer("seq2seq", build_causal(len(tokenizer)), tokenizer))
    return folder


@pytest.fixture(scope="module")
def service(bundle: Path) -> Iterator[Service]:
    served = Service(bundle, free_port()).ready()
    yield served
    assert served.stop() == 0


def client_scores(service: Service, *responses: str, prompt: Any = PROMPT) -> list[float]:
    with RewardClient(service.url) as client:
        return [item.score for item in client.score([{"prompt": prompt, "response": r} for r in responses]).scored()]


def requests_bytes(host: str, path: str, body: Any) -> bytes:
    """``requests.post(url, json=body, headers={"Content-Type": "application/json"})``."""
    data = json.dumps(body, allow_nan=False).encode()
    head = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        "User-Agent: python-requests/2.32.5",
        "Accept-Encoding: gzip, deflate",
        "Accept: */*",
        "Connection: keep-alive",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
    ]
    return "\r\n".join([*head, "", ""]).encode() + data


def aiohttp_bytes(host: str, path: str, data: bytes, *more: str) -> bytes:
    """``session.post(url, json=...)`` of aiohttp."""
    head = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        *more,
        "Accept: */*",
        "Accept-Encoding: gzip, deflate",
        "User-Agent: Python/3.12 aiohttp/3.13.2",
        f"Content-Length: {len(data)}",
        "Content-Type: application/json",
    ]
    return "\r\n".join([*head, "", ""]).encode() + data


class Connection:
    """A keep-alive connection that sends raw bytes."""

    def __init__(self, url: str, limit_s: float) -> None:
        self.host = urlsplit(url).netloc
        address, port = self.host.split(":")
        self._socket = socket.create_connection((address, int(port)), timeout=limit_s)

    def send(self, raw: bytes) -> tuple[int, http.client.HTTPResponse, bytes]:
        self._socket.sendall(raw)
        answer = http.client.HTTPResponse(self._socket)
        answer.begin()
        return answer.status, answer, answer.read()

    def close(self) -> None:
        self._socket.close()


def test_align_anything_s_micro_batches(service: Service) -> None:
    connection = Connection(service.url, 100)
    for responses in ([RESPONSE, "I am sorry."], ["Hold."], []):
        body = {"prompts": [PROMPT] * len(responses), "responses": responses}
        status, answer, data = connection.send(requests_bytes(connection.host, "/get_reward", body))
        assert status == 200
        assert answer.headers["Content-Type"] == "application/json"
        assert json.loads(data) == {"rewards": pytest.approx(client_scores(service, *responses), rel=1e-4)}
    connection.close()


def test_slime_s_64_connections_and_10_tries_under_overload(bundle: Path) -> None:
    served = Service(bundle, free_port(), "--max-queued-requests", "12").ready()
    rewards: dict[str, float] = {}
    refused = []

    def caller(name: int) -> None:
        for n in range(2):
            text = f"Hold the button for {name} and {n} seconds."
            body = {"prompt": PROMPT, "response": text + "<|end|>", "label": None}
            for attempt in range(10):
                connection = Connection(served.url, 120)
                raw = aiohttp_bytes(connection.host, "/get_reward", json.dumps(body).encode())
                status, answer, data = connection.send(raw)
                connection.close()
                if status == 200:
                    rewards[text] = json.loads(data)
                    break
                refused.append((status, answer.headers["Retry-After"]))
                time.sleep(min(2**attempt, 30) * 0.1)

    threads = [threading.Thread(target=caller, args=(n,)) for n in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rewards) == 128, f"{128 - len(rewards)} lost, {len(refused)} refusals"
    assert refused, "the queue was never full, so the test is void"
    assert {status for status, _ in refused} == {503}
    assert all(wait for _, wait in refused)
    assert list(rewards.values()) == pytest.approx(client_scores(served, *rewards), rel=1e-3, abs=1e-4)
    assert served.stop() == 0


def test_nemo_gym_s_session_and_verification_with_cookies(service: Service) -> None:
    connection = Connection(service.url, 30)
    row = {
        "responses_create_params": {"input": [{"role": "user", "content": PROMPT, "type": "message"}]},
        "agent_ref": {"type": "responses_api_agents", "name": "simple_agent"},
        "difficulty": 0.5,
    }
    raw = json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode()
    cookie = "Cookie: session=eyJzZXNzaW9uX2lkIjogIjEifQ==.aQ.x"
    status, _, data = connection.send(aiohttp_bytes(connection.host, "/seed_session", raw, cookie))
    assert (status, json.loads(data)) == (200, {})
    content = [{"annotations": [], "text": RESPONSE, "type": "output_text", "logprobs": None}]
    message = {"id": "msg_1", "content": content, "role": "assistant", "status": "completed", "type": "message"}
    tokens = {"prompt_token_ids": [1, 2], "generation_token_ids": [3], "generation_log_probs": [-0.1]}
    response = {
        "id": "resp_1",
        "created_at": 1.0,
        "model": "m",
        "object": "response",
        "output": [{**message, **tokens}],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "error": None,
        "status": None,
    }
    raw = json.dumps({**row, "response": response}, separators=(",", ":"), ensure_ascii=False).encode()
    status, _, data = connection.send(aiohttp_bytes(connection.host, "/verify", raw, cookie))
    verified = json.loads(data)
    assert status == 200
    [score] = client_scores(service, RESPONSE, prompt=[{"role": "user", "content": PROMPT}])
    assert verified.pop("reward") == pytest.approx(score, rel=1e-4)
    assert verified == {**row, "response": response}
    connection.close()


def test_a_key_before_the_path_stays_out_of_the_real_server_s_logs(bundle: Path, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        served = Service(bundle, free_port(), "--key", "secret-1", "--log-level", "debug", stdout=log).ready()
        connection = Connection(served.url, 30)
        body = {"prompts": [PROMPT], "responses": [RESPONSE]}
        statuses = [
            connection.send(requests_bytes(connection.host, path, body))[0]
            for path in (
                *("/key/secret-1/get_reward", "//key/secret-1//get_reward/", "/key/secret-1/nowhere", "/key/secret-1"),
                *("/keys/secret-1", "/get_reward?key=secret-1", "/key/secret-1/key/secret-1", "/key%2Fsecret-1/x"),
            )
        ]
        connection.close()
        served.process.terminate()
        _, errors = served.process.communicate(timeout=60)
    written = (tmp_path / "log").read_text() + errors
    assert statuses == [200, 200, 404, 405, 404, 401, 404, 404]
    assert '"POST /get_reward" 200' in written
    assert "secret-1" not in written
