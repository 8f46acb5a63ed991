"""The batcher: fairness, equal items computed once, shared prompts, rewriting and scoring in turns."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import pytest

from redline_model.correction.rewriter import PackedRewriter
from redline_model.encoding.items import EncodedItem, Item
from redline_model.scorer import Scorer, correct_all
from redline_service.scheduling.batcher import Batcher
from redline_service.scheduling.errors import OverloadedError
from redline_service.scheduling.jobs import JobResult
from tests.conftest import build_causal, build_scorer

T = TypeVar("T")


class RecordingScorer:
    """A scorer that records the texts of each pass and can be blocked with ``gate``."""

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
    """A batcher around a recording scorer, with a short way to send it texts."""

    def __init__(self, scorer: Scorer[Any], **options: Any) -> None:
        self.scorer = RecordingScorer(scorer)
        self.batcher = Batcher(self.scorer, **({"max_batch_tokens": 400, "max_queued_tokens": 1_000_000} | options))

    def encode(self, text: str, prompt: str = "How do I reset my router?") -> EncodedItem:
        return self.scorer._scorer.encoder.encode(Item(prompt, text))

    async def send(
        self, texts: Sequence[str], prompt: str = "How do I reset my router?", **options: Any
    ) -> list[JobResult]:
        items = [self.encode(text, prompt) for text in texts]
        return await self.batcher.run(items, [self.scorer.planner.length(item) for item in items], **options)

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        async def run_work() -> T:
            self.batcher.start()
            try:
                return await work()
            finally:
                self.scorer.gate.set()
                await self.batcher.stop()

        return asyncio.run(run_work())


@pytest.fixture
def bench(tokenizer: Any) -> Bench:
    model = build_causal(len(tokenizer))
    return Bench(build_scorer("seq2seq", model, tokenizer, prefix_cache_tokens=2048))


async def block_model(bench: Bench) -> asyncio.Task[Any]:
    """Start a pass that waits for the gate, so that later items are queued."""
    bench.scorer.gate.clear()
    task = asyncio.create_task(bench.send(["occupied"], prompt="Something else"))
    await asyncio.sleep(0.05)
    return task


def test_many_items_of_one_caller_do_not_delay_the_only_item_of_another(bench: Bench) -> None:
    async def work() -> None:
        first = await block_model(bench)
        greedy = [
            asyncio.create_task(bench.send([f"greedy {n}"], prompt=f"Prompt {n}", caller="greedy")) for n in range(60)
        ]
        await asyncio.sleep(0.05)
        modest = asyncio.create_task(bench.send(["modest"], prompt="A prompt", caller="modest"))
        await asyncio.sleep(0.05)
        bench.scorer.gate.set()
        await asyncio.gather(first, modest, *greedy)

    bench.run(work)
    pass_index = next(i for i, texts in enumerate(bench.scorer.passes) if "modest" in texts)
    assert len(bench.scorer.passes) >= 8
    assert pass_index <= 3  # after the pass that ran, one that was formed already, and one of the other caller


def test_equal_items_of_several_callers_are_computed_once(bench: Bench) -> None:
    async def work() -> list[list[JobResult]]:
        first = await block_model(bench)
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


def test_a_shared_item_is_still_computed_if_the_first_caller_disconnects(bench: Bench) -> None:
    async def work() -> list[JobResult]:
        first = await block_model(bench)
        cancelled = asyncio.create_task(bench.send(["same"], caller=1))
        await asyncio.sleep(0.02)
        kept = asyncio.create_task(bench.send(["same"], caller=2))
        await asyncio.sleep(0.02)
        cancelled.cancel()
        await asyncio.sleep(0.02)
        bench.scorer.gate.set()
        await first
        return await kept

    (result,) = bench.run(work)
    assert not isinstance(result.output, Exception)
    assert bench.batcher.queued_tokens == bench.batcher.queued_items == 0


def test_responses_to_one_prompt_share_a_pass_and_the_prompt_is_computed_once(bench: Bench) -> None:
    pass_tokens: list[int] = []
    bench.scorer.model.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: pass_tokens.append(args[0].numel())
    )
    prompts = [f"A longer prompt, number {n}, that several responses share." for n in range(4)]
    texts = [f"Answer {n}." for n in range(4)]

    async def work() -> None:
        first = await block_model(bench)
        pairs = [(text, prompt) for text in texts for prompt in prompts]  # in an order in which the prompts alternate
        tasks = [asyncio.create_task(bench.send([text], prompt=prompt, caller=0)) for text, prompt in pairs]
        await asyncio.sleep(0.05)
        bench.scorer.gate.set()
        await asyncio.gather(first, *tasks)

    bench.run(work)
    items = {prompt: bench.encode(texts[0], prompt) for prompt in prompts}
    prompt_tokens = sum(len(item.prefix_ids) for item in items.values())
    response_tokens = sum(
        bench.scorer.planner.length(bench.encode(text, prompt)) - len(items[prompt].prefix_ids) - 1
        for text in texts
        for prompt in prompts
    )
    first = bench.encode("occupied", "Something else")
    expected = prompt_tokens + response_tokens + bench.scorer.planner.length(first) - 1
    # the prompts have a common beginning, which is computed between one and four times
    shared_prefix = min(len(item.prefix_ids) for item in items.values())
    assert expected - 4 * shared_prefix < sum(pass_tokens) <= expected
    assert all(tokens <= 400 for tokens in pass_tokens)


def test_passes_stay_within_the_token_budget(bench: Bench) -> None:
    pass_tokens: list[int] = []
    bench.scorer.model.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: pass_tokens.append(args[0].numel())
    )
    bench.run(lambda: bench.send([f"Answer number {n}" for n in range(150)]))
    assert len(pass_tokens) > 5
    assert max(pass_tokens) <= 400


def test_a_request_that_cannot_meet_its_deadline_is_refused_before_it_is_queued(bench: Bench) -> None:
    async def work() -> tuple[Any, Any]:
        await bench.send(
            ["alone"], caller="a", deadline_s=0.5
        )  # accepted whatever the estimate says, because nothing is ahead
        bench.batcher._throughput.observe(100, 1.0)
        first = await block_model(bench)
        backlog = asyncio.create_task(bench.send([f"text {n}" for n in range(50)], caller="a"))
        await asyncio.sleep(0.05)
        with pytest.raises(OverloadedError) as late:
            await bench.send([f"late {n}" for n in range(50)], caller="a", deadline_s=5.0)
        # the queue of one caller does not delay the fair share of another
        quick = asyncio.create_task(bench.send(["quick"], caller="b", deadline_s=5.0))
        await asyncio.sleep(0.05)
        bench.scorer.gate.set()
        await asyncio.gather(first, backlog)
        return late.value, await quick

    late, quick = bench.run(work)
    assert late.retry_after_s >= 1
    assert len(quick) == 1
    assert not any("late" in text for texts in bench.scorer.passes for text in texts)


def test_corrections_and_scores_take_turns_with_unchanged_results(bench: Bench, causal_scorer: Scorer[Any]) -> None:
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
    assert [result.correction for result in results] == [correction for _, correction in expected]
    assert len(waits) >= 2  # scoring continued in between


def test_only_the_rewrite_at_fault_fails_in_a_failing_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real_advance = PackedRewriter.advance
    first_call = iter([True])
    failing_ids: list[int] = []

    def advance(self: PackedRewriter, rewrite_ids: Sequence[int]) -> Any:
        failing_ids[:] = failing_ids or [rewrite_ids[1]]
        if next(first_call, False) or failing_ids[0] in rewrite_ids:
            raise MemoryError
        return real_advance(self, rewrite_ids)

    monkeypatch.setattr(PackedRewriter, "advance", advance)
    texts = [f"Say number {n}" for n in range(5)]

    results = bench.run(lambda: bench.send(texts, wants_correction=True))
    failed = [result for result in results if isinstance(result.correction, Exception)]
    assert len(failed) == 1
    assert type(failed[0].correction).__name__ == "OutOfMemoryError"
    monkeypatch.undo()
    expected = correct_all(bench.scorer._scorer, [bench.encode(text) for text in texts])
    for result, (_, correction) in zip(results, expected, strict=True):
        assert isinstance(result.correction, Exception) or result.correction == correction


def test_a_shared_item_is_computed_at_the_turn_of_the_first_of_its_callers(bench: Bench) -> None:
    async def work() -> None:
        first = await block_model(bench)
        texts = [f"text number {n} of many" for n in range(60)]
        greedy = asyncio.create_task(bench.send(texts, caller="greedy"))
        await asyncio.sleep(0.05)
        modest = asyncio.create_task(bench.send(texts[-1:], caller="modest"))
        await asyncio.sleep(0.05)
        bench.scorer.gate.set()
        await asyncio.gather(first, greedy, modest)

    bench.run(work)
    pass_index = next(i for i, texts in enumerate(bench.scorer.passes) if "text number 59 of many" in texts)
    assert pass_index <= 3 < len(bench.scorer.passes) - 1


def test_responses_batched_out_of_turn_are_charged_to_their_caller(bench: Bench) -> None:
    async def work() -> None:
        first = await block_model(bench)
        same_prompt = asyncio.create_task(bench.send([f"a{n}" for n in range(120)], prompt="One prompt", caller="a"))
        own_prompts = [asyncio.create_task(bench.send([f"b{n}"], prompt=f"Prompt {n}", caller="b")) for n in range(60)]
        await asyncio.sleep(0.1)
        bench.scorer.gate.set()
        await asyncio.gather(first, same_prompt, *own_prompts)

    bench.run(work)
    first_half = bench.scorer.passes[1 : len(bench.scorer.passes) // 2]
    tokens = {"a": 0, "b": 0}
    for text in (text for texts in first_half for text in texts):
        prompt = "One prompt" if text[0] == "a" else f"Prompt {text[1:]}"
        item = bench.encode(text, prompt)
        tokens[text[0]] += bench.scorer.planner.length(item) - (len(item.prefix_ids) if text[0] == "a" else 0)
    assert 1 / 3 < tokens["a"] / tokens["b"] < 3


def test_corrections_of_a_padded_model_stay_within_the_token_budget(encoder_decoder_scorer: Scorer[Any]) -> None:
    bench = Bench(encoder_decoder_scorer, max_batch_tokens=300)
    pass_tokens: list[int] = []
    model = encoder_decoder_scorer.model
    handle = model.get_encoder().register_forward_pre_hook(
        lambda module, args, kwargs: pass_tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        texts = ["a " * n for n in (1, 2, 90, 3, 4, 5)]
        bench.run(lambda: bench.send(texts, wants_correction=True))
    finally:
        handle.remove()
    longest = max(encoder_decoder_scorer.planner.length(bench.encode(text)) for text in texts)
    assert max(pass_tokens) <= max(300, longest)


def test_a_rewrite_is_dropped_if_its_caller_disconnects(bench: Bench) -> None:
    async def work() -> None:
        cancelled = asyncio.create_task(bench.send([f"Cancelled {n}" for n in range(30)], wants_correction=True))
        await asyncio.sleep(0.1)
        cancelled.cancel()
        await bench.send(["kept"], wants_correction=True)
        for _ in range(100):
            if not bench.batcher.queued_items:
                break
            await asyncio.sleep(0.05)

    bench.run(work)
    assert bench.batcher.queued_items == bench.batcher.queued_tokens == 0


def test_an_encoder_decoder_model_scores_and_corrects(encoder_decoder_scorer: Scorer[Any]) -> None:
    bench = Bench(encoder_decoder_scorer)

    async def work() -> tuple[list[JobResult], list[JobResult]]:
        return await bench.send(["a", "bb", "ccc"]), await bench.send(["a", "bb"], wants_correction=True)

    scored, corrected = bench.run(work)
    assert len(scored) == 3
    assert [result.correction for result in corrected] == [
        correction for _, correction in correct_all(encoder_decoder_scorer, [bench.encode("a"), bench.encode("bb")])
    ]


def test_a_full_pass_is_formed_while_the_previous_one_runs(bench: Bench) -> None:
    async def work() -> int:
        first = await block_model(bench)
        rest = asyncio.create_task(bench.send([f"text number {n}" for n in range(40)], prompt="p"))
        await asyncio.sleep(0.1)
        queued = bench.batcher._queue.items
        bench.scorer.gate.set()
        await asyncio.gather(first, rest)
        return queued

    for passes, is_early in ((1, False), (2, True)):  # the defaults for a CPU and for a GPU
        other = Bench(bench.scorer._scorer, max_running_passes=passes)
        bench.batcher, bench.scorer = other.batcher, other.scorer
        assert (bench.run(work) < 40) == is_early


def test_twenty_thousand_callers_of_one_item_can_disconnect_in_linear_time(bench: Bench) -> None:
    async def work() -> float:
        blocker = await block_model(bench)
        item = bench.encode("the same")
        with bench.batcher.queued([item] * 20_000, [10] * 20_000, wants_correction=False, caller="a"):
            started = time.perf_counter()
        seconds = time.perf_counter() - started
        bench.scorer.gate.set()
        await blocker
        return seconds

    assert bench.run(work) < 5.0  # it would take a minute if the time were quadratic in the number of callers


def test_impossible_deadlines_do_not_make_passes_small(bench: Bench) -> None:
    batcher: Batcher = bench.batcher

    async def work() -> int:
        batcher._throughput.observe(1000, 0.1)
        for _ in range(500):
            batcher.admit(1, "a", 1e-6)
        return batcher._pass_tokens()

    # 10,000 tokens a second, a quarter of half a second
    assert bench.run(work) == min(400, 1250)
    assert batcher._mean_deadline_s == pytest.approx(0.5, abs=0.01)
