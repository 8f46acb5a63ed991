"""Full passes out of many requests: fairness, equal items once, prompts together, rewrites and scoring in turns."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import pytest

from redline_model.correction.rewriter import PackedRewriter
from redline_model.encoding.encoder import EncodedItem, Item
from redline_model.scorer import Scorer, correct_all
from redline_service.scheduling.batcher import Batcher
from redline_service.scheduling.errors import OverloadedError
from redline_service.scheduling.jobs import JobResult
from tests.conftest import build_causal, build_scorer

T = TypeVar("T")


class Watched:
    """A scorer that notes each pass and can be held."""

    def __init__(self, scorer: Scorer[Any]) -> None:
        self._scorer = scorer
        self.passes: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[Any]]:
        self.gate.wait(20)
        self.passes.append([item.text for item in items])
        return self._scorer.start_forward(items)


class Bench:
    """A batcher around a watched scorer, and a short way to send it things."""

    def __init__(self, scorer: Scorer[Any], **options: Any) -> None:
        self.scorer = Watched(scorer)
        self.batcher = Batcher(self.scorer, **({"max_batch_tokens": 400, "max_queued_tokens": 1_000_000} | options))

    def encode(self, text: str, prompt: str = "How do I reset my router?") -> EncodedItem:
        return self.scorer._scorer.encoder.encode(Item(prompt, text))

    async def send(
        self, texts: Sequence[str], prompt: str = "How do I reset my router?", **how: Any
    ) -> list[JobResult]:
        items = [self.encode(text, prompt) for text in texts]
        return await self.batcher.run(items, [self.scorer.planner.length(item) for item in items], **how)

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        async def everything() -> T:
            self.batcher.start()
            try:
                return await work()
            finally:
                self.scorer.gate.set()
                await self.batcher.stop()

        return asyncio.run(everything())


@pytest.fixture
def bench(tokenizer: Any) -> Bench:
    model = build_causal(len(tokenizer))
    return Bench(build_scorer("seq2seq", model, tokenizer, prefix_cache_tokens=2048))


async def held(bench: Bench) -> asyncio.Task[Any]:
    """The model busy with something, so that whatever comes next has to wait."""
    bench.scorer.gate.clear()
    task = asyncio.create_task(bench.send(["occupied"], prompt="Something else"))
    await asyncio.sleep(0.05)
    return task


def test_one_caller_s_many_items_do_not_starve_another_s_one(bench: Bench) -> None:
    async def work() -> None:
        first = await held(bench)
        greedy = [
            asyncio.create_task(bench.send([f"greedy {n}"], prompt=f"Prompt {n}", caller="greedy")) for n in range(60)
        ]
        await asyncio.sleep(0.05)
        modest = asyncio.create_task(bench.send(["modest"], prompt="Mine", caller="modest"))
        await asyncio.sleep(0.05)
        bench.scorer.gate.set()
        await asyncio.gather(first, modest, *greedy)

    bench.run(work)
    at = next(i for i, texts in enumerate(bench.scorer.passes) if "modest" in texts)
    assert len(bench.scorer.passes) >= 8
    assert at <= 3  # the pass that ran, one that was formed already, and its turn


def test_equal_items_under_way_are_computed_once_and_everybody_is_told(bench: Bench) -> None:
    async def work() -> list[list[JobResult]]:
        first = await held(bench)
        callers = [asyncio.create_task(bench.send(["same", f"own {n % 2}", "same"], caller=n)) for n in range(6)]
        await asyncio.sleep(0.05)
        bench.scorer.gate.set()
        await first
        return [await caller for caller in callers]

    answers = bench.run(work)
    computed = [text for texts in bench.scorer.passes for text in texts]
    assert sorted(computed) == ["occupied", "own 0", "own 1", "same"]
    logprobs = {tuple(result.output.logprob.tolist()) for answer in answers for result in (answer[0], answer[2])}
    assert len(logprobs) == 1


def test_an_equal_item_survives_the_caller_who_sent_it_first(bench: Bench) -> None:
    async def work() -> list[JobResult]:
        first = await held(bench)
        leaver = asyncio.create_task(bench.send(["same"], caller=1))
        await asyncio.sleep(0.02)
        stayer = asyncio.create_task(bench.send(["same"], caller=2))
        await asyncio.sleep(0.02)
        leaver.cancel()
        await asyncio.sleep(0.02)
        bench.scorer.gate.set()
        await first
        return await stayer

    (result,) = bench.run(work)
    assert not isinstance(result.output, Exception)
    assert bench.batcher.queued_tokens == bench.batcher.queued_items == 0


def test_responses_to_one_prompt_go_together_and_the_prompt_is_computed_once(bench: Bench) -> None:
    seen: list[int] = []
    bench.scorer.model.get_input_embeddings().register_forward_pre_hook(lambda m, args: seen.append(args[0].numel()))
    prompts = [f"A longer prompt, number {n}, that several responses share." for n in range(4)]
    texts = [f"Answer {n}." for n in range(4)]

    async def work() -> None:
        first = await held(bench)
        pairs = [(text, prompt) for text in texts for prompt in prompts]  # prompts take turns in arriving
        tasks = [asyncio.create_task(bench.send([t], prompt=p, caller=0)) for t, p in pairs]
        await asyncio.sleep(0.05)
        bench.scorer.gate.set()
        await asyncio.gather(first, *tasks)

    bench.run(work)
    items = {prompt: bench.encode(texts[0], prompt) for prompt in prompts}
    whole = sum(len(item.prefix_ids) for item in items.values())
    own = sum(
        bench.scorer.planner.length(bench.encode(t, p)) - len(items[p].prefix_ids) - 1 for t in texts for p in prompts
    )
    busy = bench.encode("occupied", "Something else")
    once = whole + own + bench.scorer.planner.length(busy) - 1
    head = min(len(item.prefix_ids) for item in items.values())  # what the prompts share is saved at most so often
    assert once - 4 * head < sum(seen) <= once
    assert all(tokens <= 400 for tokens in seen)


def test_passes_stay_within_the_budget_whatever_a_request_holds(bench: Bench) -> None:
    seen: list[int] = []
    bench.scorer.model.get_input_embeddings().register_forward_pre_hook(lambda m, args: seen.append(args[0].numel()))
    bench.run(lambda: bench.send([f"Answer number {n}" for n in range(150)]))
    assert len(seen) > 5
    assert max(seen) <= 400


def test_work_that_cannot_be_done_in_time_is_refused_before_it_is_begun(bench: Bench) -> None:
    async def work() -> tuple[Any, Any]:
        await bench.send(["alone"], caller="a", deadline_s=0.5)  # nothing in front: tried, whatever the estimate
        bench.batcher._throughput.observe(100, 1.0)
        first = await held(bench)
        backlog = asyncio.create_task(bench.send([f"text {n}" for n in range(50)], caller="a"))
        await asyncio.sleep(0.05)
        with pytest.raises(OverloadedError) as late:
            await bench.send([f"late {n}" for n in range(50)], caller="a", deadline_s=5.0)
        # a caller's fair share is not held up by another's backlog
        quick = asyncio.create_task(bench.send(["quick"], caller="b", deadline_s=5.0))
        await asyncio.sleep(0.05)
        bench.scorer.gate.set()
        await asyncio.gather(first, backlog)
        return late.value, await quick

    late, quick = bench.run(work)
    assert late.retry_after_s >= 1
    assert len(quick) == 1
    assert not any("late" in text for texts in bench.scorer.passes for text in texts)


def test_corrections_and_scores_take_turns_and_both_are_right(bench: Bench, causal_scorer: Scorer[Any]) -> None:
    texts = [f"Say number {n}, please" for n in range(12)]

    async def work() -> tuple[list[JobResult], list[float]]:
        writing = asyncio.create_task(bench.send(texts, wants_correction=True, caller="w"))
        waits = []
        while not writing.done() and len(waits) < 200:
            started = time.perf_counter()
            await bench.send([f"quick {len(waits)}"], caller="q")
            waits.append(time.perf_counter() - started)
        return await writing, waits

    results, waits = bench.run(work)
    expected = correct_all(causal_scorer, [bench.encode(text) for text in texts])
    assert [o.correction for o in results] == [correction for _, correction in expected]
    assert len(waits) >= 2  # scoring went on in between


def test_a_failing_step_costs_only_the_rewrites_at_fault(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = PackedRewriter.advance
    faults = iter([True])
    cursed: list[int] = []

    def advance(self: PackedRewriter, tickets: Sequence[int]) -> Any:
        cursed[:] = cursed or [tickets[1]]
        if next(faults, False) or cursed[0] in tickets:
            raise MemoryError
        return real(self, tickets)

    monkeypatch.setattr(PackedRewriter, "advance", advance)
    texts = [f"Say number {n}" for n in range(5)]

    results = bench.run(lambda: bench.send(texts, wants_correction=True))
    failed = [o for o in results if isinstance(o.correction, Exception)]
    assert len(failed) == 1
    assert type(failed[0].correction).__name__ == "OutOfMemoryError"
    monkeypatch.undo()
    expected = correct_all(bench.scorer._scorer, [bench.encode(text) for text in texts])
    for result, (_, correction) in zip(results, expected, strict=True):
        assert isinstance(result.correction, Exception) or result.correction == correction


def test_a_joined_item_comes_in_the_turn_of_whoever_is_first(bench: Bench) -> None:
    async def work() -> None:
        first = await held(bench)
        texts = [f"text number {n} of many" for n in range(60)]
        greedy = asyncio.create_task(bench.send(texts, caller="greedy"))
        await asyncio.sleep(0.05)
        modest = asyncio.create_task(bench.send(texts[-1:], caller="modest"))
        await asyncio.sleep(0.05)
        bench.scorer.gate.set()
        await asyncio.gather(first, greedy, modest)

    bench.run(work)
    at = next(i for i, texts in enumerate(bench.scorer.passes) if "text number 59 of many" in texts)
    assert at <= 3 < len(bench.scorer.passes) - 1


def test_responses_that_ride_along_are_charged_to_their_caller(bench: Bench) -> None:
    async def work() -> None:
        first = await held(bench)
        one_prompt = asyncio.create_task(bench.send([f"a{n}" for n in range(120)], prompt="One prompt", caller="a"))
        many = [asyncio.create_task(bench.send([f"b{n}"], prompt=f"Prompt {n}", caller="b")) for n in range(60)]
        await asyncio.sleep(0.1)
        bench.scorer.gate.set()
        await asyncio.gather(first, one_prompt, *many)

    bench.run(work)
    half = bench.scorer.passes[1 : len(bench.scorer.passes) // 2]
    tokens = {"a": 0, "b": 0}
    for text in (text for texts in half for text in texts):
        prompt = "One prompt" if text[0] == "a" else f"Prompt {text[1:]}"
        item = bench.encode(text, prompt)
        tokens[text[0]] += bench.scorer.planner.length(item) - (len(item.prefix_ids) if text[0] == "a" else 0)
    assert 1 / 3 < tokens["a"] / tokens["b"] < 3


def test_corrections_of_a_padded_model_keep_to_the_budget(encoder_decoder_scorer: Scorer[Any]) -> None:
    bench = Bench(encoder_decoder_scorer, max_batch_tokens=300)
    seen: list[int] = []
    model = encoder_decoder_scorer.model
    handle = model.get_encoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        texts = ["a " * n for n in (1, 2, 90, 3, 4, 5)]
        bench.run(lambda: bench.send(texts, wants_correction=True))
    finally:
        handle.remove()
    longest = max(encoder_decoder_scorer.planner.length(bench.encode(text)) for text in texts)
    assert max(seen) <= max(300, longest)


def test_a_rewrite_nobody_waits_for_is_dropped(bench: Bench) -> None:
    async def work() -> None:
        leaver = asyncio.create_task(bench.send([f"Leave {n}" for n in range(30)], wants_correction=True))
        await asyncio.sleep(0.1)
        leaver.cancel()
        await bench.send(["stay"], wants_correction=True)
        for _ in range(100):
            if not bench.batcher.queued_items:
                break
            await asyncio.sleep(0.05)

    bench.run(work)
    assert bench.batcher.queued_items == bench.batcher.queued_tokens == 0


def test_an_encoder_decoder_model_is_served_the_same(encoder_decoder_scorer: Scorer[Any]) -> None:
    bench = Bench(encoder_decoder_scorer)

    async def work() -> tuple[list[JobResult], list[JobResult]]:
        return await bench.send(["a", "bb", "ccc"]), await bench.send(["a", "bb"], wants_correction=True)

    scored, corrected = bench.run(work)
    assert len(scored) == 3
    assert [o.correction for o in corrected] == [
        correction for _, correction in correct_all(encoder_decoder_scorer, [bench.encode("a"), bench.encode("bb")])
    ]


def test_a_full_pass_is_formed_while_the_one_before_it_runs(bench: Bench) -> None:
    async def work() -> int:
        first = await held(bench)
        rest = asyncio.create_task(bench.send([f"text number {n}" for n in range(40)], prompt="p"))
        await asyncio.sleep(0.1)
        waiting = bench.batcher._waiting.items
        bench.scorer.gate.set()
        await asyncio.gather(first, rest)
        return waiting

    for passes, is_early in ((1, False), (2, True)):  # what suits a CPU, and a GPU
        early = Bench(bench.scorer._scorer, max_passes=passes)
        bench.batcher, bench.scorer = early.batcher, early.scorer
        assert (bench.run(work) < 40) == is_early


def test_twenty_thousand_callers_of_one_item_may_all_hang_up(bench: Bench) -> None:
    async def work() -> float:
        blocker = await held(bench)
        item = bench.encode("the same")
        with bench.batcher.queued([item] * 20_000, [10] * 20_000, wants_correction=False, caller="a"):
            started = time.perf_counter()
        took = time.perf_counter() - started
        bench.scorer.gate.set()
        await blocker
        return took

    assert bench.run(work) < 5.0  # quadratic in the number of callers it takes a minute


def test_impossible_deadlines_do_not_make_the_passes_small(bench: Bench) -> None:
    batcher: Batcher = bench.batcher

    async def work() -> int:
        batcher._throughput.observe(1000, 0.1)
        for _ in range(500):
            batcher.admit(1, "a", 1e-6)
        return batcher._pass_tokens()

    # 10,000 tokens a second, a quarter of half a second
    assert bench.run(work) == min(400, 1250)
    assert batcher._usual_deadline_s == pytest.approx(0.5, abs=0.01)
