"""Random, almost valid requests: every one is answered, and none causes an error inside the service."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.mutations import Mutator
from tests.attacks.server import BODIES, ServiceProcess, exchange, serving

pytestmark = pytest.mark.loop
_CONNECTIONS = 4


def statuses_of(service: ServiceProcess, seed: int, requests: int) -> Counter[int]:
    """Send mutated requests on a kept connection, which is reopened if it was closed; count the statuses."""
    mutator = Mutator(seed)
    statuses: Counter[int] = Counter()
    connection: socket.socket | None = None
    for number in range(requests):
        raw = mutator.request()
        connection = connection or service.connect()
        response = exchange(connection, raw, 30)
        statuses[response.status] += 1
        assert response.status < 500 or response.status == 503, f"seed {seed}, request {number}: {raw!r} -> {response}"
        assert response.status != 0, f"seed {seed}, request {number}: {raw!r} was not answered"
        if response.status == 400 or response.unsent or response.headers.get("connection") == "close":
            connection.close()
            connection = None
    if connection is not None:
        connection.close()
    return statuses


def fuzz(folder: Path, requests: int, first_seed: int) -> Counter[int]:
    statuses: Counter[int] = Counter()
    failures: list[BaseException] = []

    def run(seed: int) -> None:
        try:
            statuses.update(statuses_of(service, seed, requests // _CONNECTIONS))
        except BaseException as error:
            failures.append(error)

    with serving(folder) as service:
        threads = [threading.Thread(target=run, args=(first_seed + n,)) for n in range(_CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        metrics = service.get("/metrics").body.decode()
        assert 'status="500"' not in metrics
        assert 'outcome="internal"' not in metrics
        for path, body in BODIES.items():
            assert service.json(path, body).status == 200
    return statuses


def test_two_thousand_mutated_requests_cause_no_500(folder: Path) -> None:
    statuses = fuzz(folder, 2000, 0)
    assert statuses[200] > 100  # many mutated requests are still valid
    assert statuses[422] > 500


@pytest.mark.faults
def test_twenty_thousand_mutated_requests_cause_no_500(folder: Path) -> None:
    assert sum(fuzz(folder, 20_000, 1000).values()) == 20_000


def test_mutated_requests_are_reproducible_and_reach_every_route() -> None:
    first, second = Mutator(7), Mutator(7)
    requests = [first.request() for _ in range(500)]
    assert requests == [second.request() for _ in range(500)]
    paths: set[Any] = {raw.split(b" ", 2)[1].decode("latin-1") for raw in requests}
    assert set(BODIES) <= paths
