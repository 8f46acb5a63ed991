"""Backends without HTTP, each in its own process so that its memory can be measured separately."""

from __future__ import annotations

import asyncio
import time
from multiprocessing.connection import Connection
from typing import Any

Call = list[dict[str, str]]


def run_engine(pipe: Connection, bundle: str, settings: dict[str, Any]) -> None:
    """Redline's engine: all calls are passed to it as requests at once."""
    from redline.wire import ScoreItem, ScoreOptions, ScoreRequest
    from redline_model.bundle.bundle import Bundle
    from redline_service.engine import Engine

    async def serve() -> None:
        engine = Engine(Bundle.load(bundle, prefix_cache_tokens=settings["prefix_cache_tokens"]))
        await engine.start()
        pipe.send("ready")
        while (work := await asyncio.to_thread(pipe.recv)) is not None:
            calls, mode = work
            requests = [
                ScoreRequest(items=[ScoreItem(**item) for item in call], options=ScoreOptions(mode=mode))
                for call in calls
            ]

            async def timed(request: ScoreRequest) -> tuple[float, list[list[float]]]:
                started = time.perf_counter()
                response, _ = await engine.score(request)
                rewards = [item.rewards for item in response.items]  # type: ignore[union-attr]
                return time.perf_counter() - started, rewards

            started = time.perf_counter()
            answers = await asyncio.gather(*(timed(request) for request in requests))
            took = time.perf_counter() - started
            pipe.send((took, [s for s, _ in answers], [r for _, rewards in answers for r in rewards]))
        await engine.stop()

    asyncio.run(serve())


def run_padded(pipe: Connection, bundle: str, settings: dict[str, Any]) -> None:
    """Plain transformers: right-padded batches of eight in the order of arrival, with all logits."""
    import torch

    from benchmarks.speed.reference_server import paper_rewards, sequence_of
    from redline_model.bundle.bundle import Bundle
    from redline_model.encoding.items import Item
    from redline_model.inference.padding import pad

    loaded = Bundle.load(bundle)
    model, encoder = loaded.scorer.model, loaded.scorer.encoder
    model.set_attn_implementation("sdpa")
    pipe.send("ready")
    while (work := pipe.recv()) is not None:
        calls, _ = work
        items = [item for call in calls for item in call]
        started = time.perf_counter()
        answers: list[dict[str, Any]] = []
        done: list[float] = []
        for start in range(0, len(items), 8):
            encoded = [encoder.encode(Item(i["prompt"], i["response"])) for i in items[start : start + 8]]
            batch = pad([sequence_of(item) for item in encoded], model.device)
            with torch.no_grad():
                logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
            for row, item in enumerate(encoded):
                end = len(sequence_of(item)) - 1
                answers.append(paper_rewards(logits[row, end - len(item.target_ids) : end], item.target_ids))
            del logits
            done += [time.perf_counter() - started] * len(encoded)
        took = time.perf_counter() - started
        latencies, at = [], 0
        for call in calls:
            at += len(call)
            latencies.append(done[at - 1])
        pipe.send((took, latencies, answers))


TARGETS = {"redline_engine": run_engine, "transformers_padded": run_padded}
