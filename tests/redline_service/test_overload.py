"""Overload and unequal callers, with a model of exactly known speed: it sleeps for each token."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from redline_model.encoding.items import EncodedItem
from redline_service.scheduling.batcher import ARRIVAL_DEADLINE_SHARE, Batcher
from redline_service.scheduling.errors import DeadlineExceededError, OverloadedError
from redline_service.scheduling.throughput import Throughput

_TOKENS_PER_S = 20_000
_PASS_TOKENS = 1000  # 50 ms


class Device:
    type = "cpu"


class Model:
    device = Device()


class SleepingScorer:
    """A scorer whose passes take 1 ms and 50 microseconds per token."""

    model = Model()
    prefix_caches = ()

    def __init__(self) -> None:
        self.passes: list[int] = []
        self.planner = self

    def length(self, item: EncodedItem) -> int:
        return len(item.target_ids)

    def prefix(self, item: EncodedItem) -> None:
        return None

    def cost(self, item: EncodedItem, present: Any) -> int:
        return len(item.target_ids)

    def batches(self, items: Sequence[EncodedItem], max_tokens: int) -> Iterator[list[int]]:
        yield list(range(len(items)))

    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[Any]]:
        self.passes.append(len(items))
        time.sleep(0.001 + sum(map(self.length, items)) / _TOKENS_PER_S)
        return lambda: [1.0] * len(items)


_serial = iter(range(10**9))


def item(tokens: int) -> EncodedItem:
    return EncodedItem([next(_serial)], [1], [], [1] * tokens, [(0, 1)] * tokens, "x")


async def open_loop(batcher: Batcher, load: float, items: int, seconds: float, deadline_s: float) -> tuple[int, int]:
    """Send requests with ``items`` of 100 tokens as a Poisson process.

    Returns the number of items scored in time and the number of requests that timed out.
    """
    rng = random.Random(0)
    scored = late = 0

    async def send() -> None:
        nonlocal scored, late
        sent = time.perf_counter()
        try:
            async with asyncio.timeout(deadline_s):
                batcher.admit(100 * items, "a", deadline_s, deadline_share=ARRIVAL_DEADLINE_SHARE)
                await batcher.run([item(100) for _ in range(items)], [100] * items, caller="a", deadline_s=deadline_s)
            if sent > started + deadline_s:
                scored += items
        except OverloadedError:
            pass
        except TimeoutError:
            late += 1

    started = time.perf_counter()
    tasks = []
    while time.perf_counter() < started + deadline_s + seconds:
        tasks.append(asyncio.create_task(send()))
        await asyncio.sleep(rng.expovariate(load * _TOKENS_PER_S / 100 / items))
    await asyncio.gather(*tasks)
    return scored, late


@pytest.mark.parametrize("items", [1, 8])
def test_goodput_at_twice_the_capacity_is_most_of_the_capacity(items: int) -> None:
    async def work() -> tuple[int, int]:
        batcher = Batcher(SleepingScorer(), max_batch_tokens=_PASS_TOKENS, max_queued_tokens=10**7)  # type: ignore[arg-type]
        batcher.start()
        try:
            return await open_loop(batcher, 2.0, items, seconds=3.0, deadline_s=0.8)
        finally:
            await batcher.stop()

    scored, late = asyncio.run(work())
    capacity = 3.0 * _TOKENS_PER_S / 100
    assert scored >= 0.7 * capacity
    assert late <= 0.05 * scored / items


def test_short_items_are_not_delayed_by_another_caller_s_long_ones() -> None:
    async def work() -> tuple[list[float], list[float]]:
        batcher = Batcher(SleepingScorer(), max_batch_tokens=_PASS_TOKENS, max_queued_tokens=10**7)  # type: ignore[arg-type]
        batcher.start()

        async def latencies(count: int) -> list[float]:
            seconds = []
            for _ in range(count):
                started = time.perf_counter()
                await batcher.run([item(40)], [40], caller="short")
                seconds.append(time.perf_counter() - started)
                await asyncio.sleep(0.003)
            return seconds

        async def send_long() -> None:
            while True:
                await batcher.run([item(450)], [450], caller="long")

        try:
            alone = await latencies(20)
            background = [asyncio.create_task(send_long()) for _ in range(8)]
            await asyncio.sleep(0.1)
            together = await latencies(30)
            for task in background:
                task.cancel()
            return sorted(alone), sorted(together)
        finally:
            await batcher.stop()

    alone, together = asyncio.run(work())
    batch_s = _PASS_TOKENS / _TOKENS_PER_S
    assert together[28] <= 3 * alone[18] + batch_s


def test_long_items_are_not_starved_by_another_caller_s_short_ones() -> None:
    async def work() -> tuple[int, int]:
        batcher = Batcher(SleepingScorer(), max_batch_tokens=_PASS_TOKENS, max_queued_tokens=10**7)  # type: ignore[arg-type]
        batcher.start()
        tokens = {"short": 0, "long": 0}

        async def send(caller: str, size: int) -> None:
            while True:
                await batcher.run([item(size)], [size], caller=caller)
                tokens[caller] += size

        tasks = [asyncio.create_task(send("short", 20)) for _ in range(100)]
        tasks += [asyncio.create_task(send("long", 500)) for _ in range(4)]
        await asyncio.sleep(2.0)
        for task in tasks:
            task.cancel()
        await batcher.stop()
        return tokens["short"], tokens["long"]

    short, long = asyncio.run(work())
    assert 0.5 < long / short < 2.0


def test_items_that_can_no_longer_be_finished_are_dropped_at_no_cost() -> None:
    async def work() -> tuple[list[Any], int]:
        scorer = SleepingScorer()
        batcher = Batcher(scorer, max_batch_tokens=_PASS_TOKENS, max_queued_tokens=10**7)  # type: ignore[arg-type]
        batcher.start()
        first = [asyncio.create_task(batcher.run([item(1000)], [1000], caller="a")) for _ in range(4)]
        await asyncio.sleep(0.01)
        # no throughput was observed yet, so these are accepted; their deadline passes while they are queued
        late = [asyncio.create_task(batcher.run([item(100)], [100], caller="a", deadline_s=0.06)) for _ in range(5)]
        results = await asyncio.gather(*late, return_exceptions=True)
        await asyncio.gather(*first)
        await batcher.stop()
        return results, sum(scorer.passes)

    results, scored = asyncio.run(work())
    assert all(isinstance(result, DeadlineExceededError) for result in results)
    assert scored == 4


def test_the_throughput_estimate_follows_recent_passes() -> None:
    throughput = Throughput()
    assert throughput.tokens_per_s == throughput.seconds_for(100) == 0
    for _ in range(100):
        throughput.observe(1000, 0.1)
    assert throughput.tokens_per_s == pytest.approx(10_000)
    assert throughput.pass_s == pytest.approx(0.1)
    assert throughput.seconds_for(5000) == pytest.approx(0.5)
    for _ in range(60):
        throughput.observe(500, 0.1)
    assert 5000 < throughput.tokens_per_s < 6500
