"""Whatever a caller sends, it is answered, and what is wrong with it is never the service's fault."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.mutations import Mutator
from tests.attacks.server import BODIES, Attacked, exchange, serving

pytestmark = pytest.mark.loop
_CONNECTIONS = 4


def statuses_of(service: Attacked, seed: int, requests: int) -> Counter[int]:
    """Send mutated requests over a kept connection, a new one where it was closed; count the statuses."""
    mutator = Mutator(seed)
    found: Counter[int] = Counter()
    connection: socket.socket | None = None
    for number in range(requests):
        raw = mutator.request()
        connection = connection or service.connect()
        answer = exchange(connection, raw, 30)
        found[answer.status] += 1
        assert answer.status < 500 or answer.status == 503, f"seed {seed}, request {number}: {raw!r} -> {answer}"
        assert answer.status != 0, f"seed {seed}, request {number}: {raw!r} was not answered"
        if answer.status == 400 or answer.unsent or answer.headers.get("connection") == "close":
            connection.close()
            connection = None
    if connection is not None:
        connection.close()
    return found


def fuzz(folder: Path, requests: int, first_seed: int) -> Counter[int]:
    found: Counter[int] = Counter()
    failures: list[BaseException] = []

    def run(seed: int) -> None:
        try:
            found.update(statuses_of(service, seed, requests // _CONNECTIONS))
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
    return found


def test_two_thousand_mutated_requests_without_a_500(folder: Path) -> None:
    found = fuzz(folder, 2000, 0)
    assert found[200] > 100  # they are nearly right
    assert found[422] > 500


@pytest.mark.faults
def test_twenty_thousand_mutated_requests_without_a_500(folder: Path) -> None:
    assert sum(fuzz(folder, 20_000, 1000).values()) == 20_000


def test_the_generator_repeats_itself_and_reaches_every_route() -> None:
    first, second = Mutator(7), Mutator(7)
    requests = [first.request() for _ in range(500)]
    assert requests == [second.request() for _ in range(500)]
    reached: set[Any] = {raw.split(b" ", 2)[1].decode("latin-1") for raw in requests}
    assert set(BODIES) <= reached
