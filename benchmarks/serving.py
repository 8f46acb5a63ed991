"""Compares the speed of scoring: the backends take turns with the same weights and items on the same machine.

    python -m benchmarks.serving --out runs/bench [--quick] [--model FOLDER] [--vllm-python PYTHON]

Compare ratios between backends of one run: absolute times depend on the machine and its other load.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.overload import FULL, QUICK, measure_overload
from benchmarks.speed.backends import (
    Backend,
    Call,
    OfflineBackend,
    RedlineHttp,
    ReferenceServer,
    Vllm,
    WorkloadRun,
    pause,
    peak_mb,
    reset_peak,
    resume,
)
from benchmarks.speed.bundles import build_bundle
from benchmarks.speed.ceiling import fewest_operations, matmul_rate
from benchmarks.speed.load_results import percentile
from benchmarks.speed.machine import machine
from benchmarks.speed.overload_report import print_overload
from benchmarks.speed.report import print_table, write_plot
from benchmarks.speed.workloads import Texts, Workload, build_workloads, group
from redline.version import installed_version
from redline_model.bundle.bundle import Bundle
from redline_model.encoding.items import EncodedItem, Item

# two correct computations may rank two logits differently if they are closer than this
_TIE = 1e-4


def figures(runs: Sequence[WorkloadRun], scored: Sequence[int], peak: float, shares: Sequence[float]) -> dict[str, Any]:
    """The figures of one backend on one workload; medians over the repeats."""
    rates = [tokens / run.seconds for tokens, run in zip(scored, runs, strict=True)]
    latencies = [1000 * s for run in runs for s in run.latencies]
    return {
        "tokens_per_s": statistics.median(rates),
        "tokens_per_s_all": rates,
        "requests_per_s": statistics.median(len(run.latencies) / run.seconds for run in runs),
        "p50_ms": percentile(latencies, 0.50),
        "p95_ms": percentile(latencies, 0.95),
        "p99_ms": percentile(latencies, 0.99),
        "peak_mb": peak,
        "share_of_ceiling": statistics.median(shares),
    }


def exactness(rewards: Sequence[list[float]], plain: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many items have other ``paper`` rewards than with plain transformers, and how many of them without a tie."""
    different = [i for i, (a, b) in enumerate(zip(rewards, plain, strict=True)) if a != b["rewards"]]
    unexplained = [i for i in different if plain[i]["gap"] >= _TIE]
    return {"items": len(rewards), "different": len(different), "unexplained_by_a_tie": len(unexplained)}


def encode(bundle: Bundle, items: Sequence[dict[str, str]]) -> list[EncodedItem]:
    """The items as token ids of the model."""
    return [bundle.scorer.encoder.encode(Item(item["prompt"], item["response"])) for item in items]


def compare(workloads: Sequence[Workload], backends: Sequence[Backend], bundle: Bundle) -> dict[str, Any]:
    """Every backend on each of ``workloads``, in turns that start with another backend each time.

    The workloads are of one kind, each with new texts: no prefix is cached from an earlier turn.
    """
    name, about = workloads[0].name, workloads[0].about
    runs: dict[str, list[WorkloadRun]] = {backend.name: [] for backend in backends}
    shares: dict[str, list[float]] = {backend.name: [] for backend in backends}
    tokens: list[int] = []
    ceilings: list[float] = []
    peaks: dict[str, float] = {}
    for repeat, workload in enumerate(workloads):
        encoded = encode(bundle, workload.items)
        scored = sum(len(item.target_ids) for item in encoded)
        operations = fewest_operations(encoded, bundle.scorer.model)
        rates = []
        turns = [*backends[repeat % len(backends) :], *backends[: repeat % len(backends)]]
        for backend in turns:
            rates.append(matmul_rate(bundle.scorer.model, repeats=5))
            resume(backend)
            reset_peak(backend)
            run = backend.score(workload.calls)
            peaks[backend.name] = max(peaks.get(backend.name, 0.0), peak_mb(backend))
            runs[backend.name].append(run)
            shares[backend.name].append(operations / run.seconds)
            pause(backend)
            print(f"  {name:8} {backend.name:20} {scored / run.seconds:9.1f} tokens/s", file=sys.stderr)
        tokens.append(scored)
        rate = statistics.median(rates)
        ceilings.append(scored * rate / operations)
        for values in shares.values():
            values[-1] /= rate
    plain = [answer for run in runs["transformers_padded"] for answer in run.answers]
    return {
        "about": about,
        "calls": len(workloads[0].calls),
        "items": len(workloads[0].items),
        "scored_tokens": statistics.median(tokens),
        "ceiling_tokens_per_s": statistics.median(ceilings),
        "backends": {name: figures(runs[name], tokens, peaks[name], shares[name]) for name in runs},
        "exactness": {
            name: exactness([answer for run in runs[name] for answer in run.answers], plain)
            for name in runs
            if name != "transformers_padded"
        },
    }


def score_difference(backend: Backend, workload: Workload, items: int) -> float:
    """Largest difference between the ``margin`` score of an item in a batch and alone, over the first items."""
    together = backend.score([workload.items], mode="margin").answers[:items]
    alone = [backend.score([[item]], mode="margin").answers[0] for item in workload.items[:items]]
    return max(float(abs(sum(a) - sum(b))) for a, b in zip(together, alone, strict=True))


def growth(texts: Texts, engine: Backend, http: Backend, is_quick: bool) -> dict[str, Any]:
    """How seconds grow with response length, group size and callers, and memory with the items of a request."""

    def seconds(backend: Backend, make_calls: Callable[[int], list[Call]], size: int) -> float:
        return min(backend.score(make_calls(size)).seconds for _ in range(1 if is_quick else 2))

    def of_length(tokens: int) -> list[Call]:
        return [group(texts, 4, 1, (100, 100), (tokens, tokens))]

    def of_group_size(responses: int) -> list[Call]:
        return [group(texts, 2, responses, (400, 400), (64, 64))]

    def of_callers(callers: int) -> list[Call]:
        return [[item] for item in group(texts, callers, 1, (100, 100), (64, 64))]

    lengths = [16, 64, 256] if is_quick else [16, 64, 128, 256, 512]
    sizes = [1, 4, 16] if is_quick else [1, 4, 8, 16, 32]
    callers = [1, 4, 16] if is_quick else [1, 4, 16, 32]
    counts = [64, 256] if is_quick else [64, 1000]
    memory = {}
    # fill the prefix cache first, so that the measured difference is that of the request's size
    engine.score([group(texts, 40, 1, (400, 400), (8, 8))])
    for count in counts:
        reset_peak(engine)
        engine.score([group(texts, 4, count // 4, (400, 400), (8, 8))])
        memory[count] = peak_mb(engine)
    return {
        "seconds_by_response_tokens": {n: seconds(engine, of_length, n) for n in lengths},
        "seconds_by_group_size": {n: seconds(engine, of_group_size, n) for n in sizes},
        "seconds_by_callers": {n: seconds(http, of_callers, n) for n in callers},
        "peak_mb_by_items": memory,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of serving.json and serving.png")
    parser.add_argument("--model", type=Path, help="model folder; default models/smollm2, else random weights")
    parser.add_argument("--texts", type=Path, default=Path("../shared/data"), help="folder of preference pairs")
    parser.add_argument("--vllm-python", help="a Python with vLLM installed, to compare with it, too")
    parser.add_argument("--workloads", nargs="*", help="names of workloads; default: all")
    parser.add_argument("--repeats", type=int, help="turns of each backend")
    parser.add_argument("--quick", action="store_true", help="a quarter of the items, one turn")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.perf_counter()
    torch.manual_seed(args.seed)
    repeats = args.repeats or (1 if args.quick else 3)
    with tempfile.TemporaryDirectory() as folder:
        path, weights = build_bundle(Path(folder) / "bundle", args.model, args.seed)
        bundle = Bundle.load(path)
        texts = Texts(bundle.scorer.encoder.tokenizer, args.texts, args.seed)
        share = 0.25 if args.quick else 1.0
        rounds = [list(build_workloads(texts, share)) for _ in range(repeats)]
        workloads = [
            list(turns) for turns in zip(*rounds, strict=True) if not args.workloads or turns[0].name in args.workloads
        ]
        backends: list[Backend] = []
        try:
            engine = OfflineBackend("redline_engine", path, prefix_cache_tokens=16384)
            http = RedlineHttp(path)
            backends += [http, engine, ReferenceServer(path), OfflineBackend("transformers_padded", path)]
            if args.vllm_python:
                backends.append(Vllm(path, args.vllm_python))
            warmup = [group(texts, 2, 2, (20, 20), (10, 10))]
            for backend in backends:
                backend.score(warmup)
                pause(backend)
            results = {turns[0].name: compare(turns, backends, bundle) for turns in workloads}
            for backend in (engine, http):
                resume(backend)
            difference = max(score_difference(engine, w, 8 if args.quick else 32) for w, *_ in workloads[:3])
            growth_figures = growth(texts, engine, http, args.quick)
        finally:
            for backend in backends:
                resume(backend)
                backend.stop()
        overload = measure_overload(path, bundle, texts, QUICK if args.quick else FULL, args.seed)
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "redline": installed_version(),
        "machine": machine(),
        "weights": weights,
        "texts": texts.source,
        "seed": args.seed,
        "quick": args.quick,
        "repeats": repeats,
        "workloads": results,
        "score_difference_alone_or_together": difference,
        "growth": growth_figures,
        **overload,
        "minutes": (time.perf_counter() - started) / 60,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "serving.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    write_plot(report, args.out / "serving.png")
    print_table(report)
    print_overload(report)
    print(f"wrote {args.out / 'serving.json'} and {args.out / 'serving.png'} in {report['minutes']:.1f} minutes")


if __name__ == "__main__":
    main()
