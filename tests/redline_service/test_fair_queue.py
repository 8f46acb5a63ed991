"""The fair queue: callers and their requests share evenly, and the jobs of a request keep their order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redline_service.scheduling.fair_queue import FairQueue


def test_an_item_waits_for_at_most_one_item_of_each_other_caller() -> None:
    queue: FairQueue[str] = FairQueue()
    for n in range(1000):
        queue.push(f"greedy{n}", caller="greedy", request=n)  # a thousand calls of one item each
    for _ in range(10):
        queue.pop(1.0)
    queue.push("modest", caller="modest", request=0)
    assert "modest" in [queue.pop(1.0), queue.pop(1.0)]


def test_requests_of_one_caller_take_turns() -> None:
    queue: FairQueue[str] = FairQueue()
    for n in range(1000):
        queue.push(f"big{n}", caller="a", request="big")
    queue.pop(1.0)
    queue.push("small", caller="a", request="small")
    assert "small" in [queue.pop(1.0), queue.pop(1.0)]


def test_shares_are_measured_in_cost_and_not_in_items() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(100):
        queue.push("long", caller="a", request=0)
        queue.push("short", caller="b", request=0)
    first = [queue.pop(10.0 if queue.peek() == "long" else 1.0) for _ in range(55)]
    assert first.count("short") == pytest.approx(10 * first.count("long"), abs=10)


def test_idling_earns_no_credit() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(50):
        queue.push("a", caller="a", request=0)
    for _ in range(40):
        queue.pop(1.0)
    for _ in range(20):
        queue.push("b", caller="b", request=0)
    first = [queue.pop(1.0) for _ in range(10)]
    assert first.count("a") == pytest.approx(5, abs=1)


@pytest.mark.parametrize("is_one_caller", [True, False])
def test_an_endless_stream_of_new_requests_does_not_starve_a_long_one(is_one_caller: bool) -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(100):
        queue.push("long", caller="long", request="long")
    served = []
    for n in range(1000):  # there are always eight quick requests, each of them new
        while len(queue) < 108 - served.count("long"):
            queue.push("quick", caller="long" if is_one_caller else f"quick{n}", request=(n, len(queue)))
        served.append(queue.pop(1.0))
    assert served.count("long") >= 50


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.floats(0.1, 100)), max_size=60), st.randoms())
def test_no_job_is_lost_and_a_request_keeps_its_order(jobs: list[tuple[int, int, float]], draw: random.Random) -> None:
    queue: FairQueue[tuple[int, int, int]] = FairQueue()
    popped = []
    for number, (caller, request, cost) in enumerate(jobs):
        queue.push((caller, request, number), caller=caller, request=request)
        if draw.random() < 0.4:
            popped.append(queue.pop(0.0 if draw.random() < 0.2 else cost))
    while queue:
        expected = queue.peek()
        popped.append(queue.pop(1.0))
        assert popped[-1] == expected
    assert sorted(n for *_, n in popped) == list(range(len(jobs)))
    for flow in {(c, r) for c, r, _ in popped}:
        numbers = [n for c, r, n in popped if (c, r) == flow]
        assert numbers == sorted(numbers)
    with pytest.raises(IndexError):
        queue.pop(1.0)
