"""Measures the engine on a GPU, with random weights of real shapes, so that nothing has to be downloaded.

    python -m benchmarks.gpu --shapes 1B 7B --out runs/bench [--compile]

For each shape: `groups` (prompts of about 400 tokens with 8 responses each, in one call) and `single` (64 callers with
one item each) through the engine, and `single` through a blocking left-padded reference. The utilisation is the fewest
operations that the workload needs, per second, as a share of the device's nominal peak, or of the measured rate of its
matrix products if that peak is not known.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlamaForCausalLM

from benchmarks.speed.bundles import SHAPES, built_tokenizer, shape_config
from benchmarks.speed.ceiling import fewest_operations, matmul_rate
from benchmarks.speed.reference_server import left_padded
from benchmarks.speed.workloads import Texts, group
from redline.wire import ScoreItem, ScoreOptions, ScoreRequest
from redline_model.bundle.bundle import Bundle
from redline_model.bundle.load_options import LoadOptions
from redline_model.bundle.make_encoder import make_encoder
from redline_model.bundle.manifest import Manifest
from redline_model.encoding.items import Item
from redline_model.inference.compile_layers import compile_layers
from redline_model.kinds import make_scorer
from redline_model.options import Extraction, Template
from redline_service.engine import Engine

# Dense bfloat16 peaks in operations per second, from the data sheets; keys are parts of torch's device names.
NOMINAL_PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


def nominal_peak(device: torch.device) -> float | None:
    """The peak in the device's data sheet; None if it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in NOMINAL_PEAKS.items() if key in name), None)


def random_bundle(shape: str, load_options: LoadOptions, *, seed: int, is_compiled: bool, cache: int) -> Bundle:
    """A bundle of random weights, created on the device."""
    device, dtype = load_options.torch_device(), load_options.torch_dtype()
    torch.manual_seed(seed)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model: Any = LlamaForCausalLM(shape_config(shape)).eval()
    finally:
        torch.set_default_dtype(previous)
    tokenizer = built_tokenizer()
    template = Template.fitting(tokenizer)
    encoder = make_encoder("seq2seq", model.config, tokenizer, template, 8192)
    if is_compiled:
        compile_layers(model)
    scorer = make_scorer("seq2seq", model, encoder, Extraction(), prefix_cache_tokens=cache)
    manifest = Manifest(
        kind="seq2seq", base_model=f"random {shape}", max_tokens=8192, template=template, extraction=Extraction()
    )
    return Bundle(Path(shape), manifest, scorer, load_options)


async def through_engine(engine: Engine, calls: Sequence[Sequence[dict[str, str]]]) -> tuple[float, list[float]]:
    """Seconds in total and of each call; all calls are sent at once."""

    async def score(call: Sequence[dict[str, str]]) -> float:
        request = ScoreRequest(
            items=[ScoreItem.model_validate(item) for item in call], options=ScoreOptions(mode="paper")
        )
        started = time.perf_counter()
        await engine.score(request)
        return time.perf_counter() - started

    started = time.perf_counter()
    latencies = await asyncio.gather(*(score(call) for call in calls))
    return time.perf_counter() - started, list(latencies)


async def measure(bundle: Bundle, texts: Texts, *, deep: int, repeats: int, budget: int | None) -> dict[str, Any]:
    """All figures of one shape."""
    scorer, device = bundle.scorer, bundle.scorer.model.device
    engine = Engine(bundle, max_batch_tokens=budget)
    await engine.start()
    rate, nominal = matmul_rate(scorer.model, rows=8192), nominal_peak(device)
    figures: dict[str, Any] = {"matmul_operations_per_s": rate, "nominal_operations_per_s": nominal}

    def encode(items: Sequence[dict[str, str]]) -> list[Any]:
        return [scorer.encoder.encode(Item(item["prompt"], item["response"])) for item in items]

    for name in ("groups", "single"):
        seconds, utilisation, reference, latencies = [], [], [], []
        for repeat in range(repeats + 1):
            count = 8 * deep if name == "groups" else 8
            items = group(texts, count, 8, (380, 420), (10, 120))
            if name == "single":
                items = texts.shuffled(items)
            calls = [items] if name == "groups" else [[item] for item in items]
            encoded = encode(items)
            took, calls_took = await through_engine(engine, calls)
            if repeat == 0:
                continue  # the first turn chooses kernels and allocates memory
            seconds.append(took)
            latencies += calls_took
            utilisation.append(fewest_operations(encoded, scorer.model) / took / (nominal or rate))
            if name == "single":
                started = time.perf_counter()
                for item in encoded:
                    left_padded(scorer.model, [item])
                reference.append(time.perf_counter() - started)
        scored = sum(len(item.target_ids) for item in encoded)
        figures[name] = {
            "items": len(items),
            "tokens_per_s": scored / statistics.median(seconds),
            "utilisation": statistics.median(utilisation),
            "utilisation_all": utilisation,
            "p50_ms": 1000 * statistics.median(latencies),
        }
        if reference:
            figures[name]["times_reference"] = statistics.median(reference) / statistics.median(seconds)
    await engine.stop()
    if device.type == "cuda":
        figures["peak_mb"] = torch.cuda.max_memory_allocated(device) / 2**20
    return figures


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of gpu.json")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["0.1B", "1B", "7B"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--compile", action="store_true", help="torch.compile the layers")
    parser.add_argument("--deep", type=int, default=4, help="`groups` has 8 times as many prompts")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-batch-tokens", type=int)
    parser.add_argument("--prefix-cache-tokens", type=int, default=16384)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    load_options = LoadOptions(device=args.device, dtype=args.dtype)
    device = load_options.torch_device()
    texts = Texts(built_tokenizer(), None, args.seed)
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(load_options.torch_dtype()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "compiled": args.compile,
        "seed": args.seed,
        "shapes": {},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    for shape in args.shapes:
        bundle = random_bundle(
            shape, load_options, seed=args.seed, is_compiled=args.compile, cache=args.prefix_cache_tokens
        )
        report["shapes"][shape] = asyncio.run(
            measure(bundle, texts, deep=args.deep, repeats=args.repeats, budget=args.max_batch_tokens)
        )
        del bundle
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        figures = report["shapes"][shape]
        for name in ("groups", "single"):
            row = figures[name]
            times = f", {row['times_reference']:.1f} times the reference" if "times_reference" in row else ""
            print(f"{shape} {name}: {row['tokens_per_s']:.0f} tokens/s, utilisation {row['utilisation']:.2f}{times}")
        (args.out / "gpu.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {args.out / 'gpu.json'}")


if __name__ == "__main__":
    main()
