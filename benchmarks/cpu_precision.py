"""Compares float32 and bfloat16 on this CPU: matrix products, scoring, a training step and a PPO step, in turns.

    python -m benchmarks.cpu_precision --out runs/bench [--quick] [--model FOLDER]

``redline.causal_lm.cpu_precision`` chooses by the first row; the others show whether that is right for this model.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.speed.bundles import build_bundle
from benchmarks.speed.machine import machine
from benchmarks.speed.workloads import Texts
from benchmarks.training import build_pairs, redline_steps
from redline.causal_lm.cpu_precision import NEEDED_RATIO, choose, measure
from redline.ppo import CausalPolicy, FunctionRewards, PPOConfig, PPOLoop
from redline_model.bundle.bundle import Bundle
from redline_model.bundle.load_options import LoadOptions
from redline_model.encoding.items import EncodedItem
from redline_model.reward_spec import reward_spec
from redline_model.scorer import Scorer, outputs_and_corrections
from redline_trainer.config import TrainConfig
from redline_trainer.correlation import pearson
from redline_trainer.encode_pairs import encode_pairs

PRECISIONS: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
_NEW_TOKENS = 32
_PROMPT_CHARACTERS = 200


def scored(scorer: Scorer[Any], items: Sequence[EncodedItem]) -> tuple[torch.Tensor, float]:
    """Scores ``(N,)`` and scored tokens per second."""
    started = time.perf_counter()
    spec = reward_spec(scorer)
    outputs = outputs_and_corrections(scorer, items, 2048, with_corrections=spec.needs_correction)
    seconds = time.perf_counter() - started
    scored = [scorer.to_rewards(output, spec, correction).score for output, correction in outputs]
    scores = torch.tensor(scored, dtype=torch.float64)
    return scores, sum(len(item.target_ids) for item in items) / seconds


def ppo_step(model: Any, tokenizer: Any, prompts: Sequence[str], precision: Literal["float32", "bfloat16"]) -> float:
    """Response tokens per second of one PPO step: sampling, reference and updates; the rewards take no time."""
    policy = CausalPolicy(copy.deepcopy(model), tokenizer, max_new_tokens=_NEW_TOKENS, precision=precision)
    config = PPOConfig(steps=1, rollouts=len(prompts), sample_batch=len(prompts), minibatch=len(prompts))
    loop = PPOLoop(policy, FunctionRewards(lambda rollout: float(len(rollout.response_ids))), prompts, config)
    started = time.perf_counter()
    metrics = loop.step()
    return metrics["response_tokens"] * len(prompts) / (time.perf_counter() - started)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of cpu_precision.json")
    parser.add_argument("--model", type=Path, help="model folder; default models/smollm2, else random weights")
    parser.add_argument("--texts", type=Path, default=Path("../shared/data"), help="folder of preference pairs")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two pairs, one turn")
    parser.add_argument("--seed", type=int, default=0)
    args, _ = parser.parse_known_args()
    count, repeats = (2, 1) if args.quick else (args.pairs, args.repeats)
    product = choose(*measure())
    with tempfile.TemporaryDirectory() as folder:
        path, weights = build_bundle(Path(folder) / "bundle", args.model, args.seed)
        scorers = {
            precision: Bundle.load(path, LoadOptions.model_validate({"device": "cpu", "dtype": precision})).scorer
            for precision in PRECISIONS
        }
    texts = Texts(scorers["float32"].encoder.tokenizer, args.texts, args.seed)
    pairs, _ = encode_pairs(scorers["float32"].encoder, build_pairs(texts, count), "error")
    items = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    prompts = [question.text[:_PROMPT_CHARACTERS] for question in items]
    rates: dict[str, dict[str, list[float]]] = {
        name: {p: [] for p in PRECISIONS} for name in ("scoring", "training", "ppo")
    }
    scores: dict[str, torch.Tensor] = {}
    losses: dict[str, float] = {}
    for repeat in range(repeats):
        for precision in PRECISIONS if repeat % 2 == 0 else PRECISIONS[::-1]:
            scores[precision], rate = scored(scorers[precision], items)
            rates["scoring"][precision].append(rate)
            settings = {"base": "b", "out": "o", "max_batch_tokens": 2048, "precision": precision}
            model = copy.deepcopy(scorers["float32"].model)
            (losses[precision],), (seconds,) = redline_steps(model, [pairs], TrainConfig.model_validate(settings))
            rates["training"][precision].append(len(pairs) / seconds)
            ppo_rate = ppo_step(scorers["float32"].model, scorers["float32"].encoder.tokenizer, prompts, precision)
            rates["ppo"][precision].append(ppo_rate)
            line = f"scoring {rate:8.1f} tokens/s, training step {seconds:6.2f} s, PPO {ppo_rate:7.1f} tokens/s"
            print(f"  {precision:9} {line}", file=sys.stderr)
    medians = {name: {p: statistics.median(values[p]) for p in PRECISIONS} for name, values in rates.items()}
    report: dict[str, Any] = {
        "machine": machine(),
        "weights": weights,
        "chosen": product.chosen,
        "needed_ratio": NEEDED_RATIO,
        "product_gflops": {"float32": product.float32_gflops, "bfloat16": product.bfloat16_gflops},
        "scoring_tokens_per_s": medians["scoring"],
        "training_pairs_per_s": medians["training"],
        "ppo_response_tokens_per_s": medians["ppo"],
        "score_correlation": float(pearson(scores["bfloat16"], scores["float32"], if_constant=1.0)),
        "largest_score_difference": float((scores["bfloat16"] - scores["float32"]).abs().max()),
        "losses": losses,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "cpu_precision.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print("| | float32 | bfloat16 | ratio |\n|---|---|---|---|")
    for name, row in (("matrix product, GFLOP/s", report["product_gflops"]), *medians.items()):
        print(f"| {name} | {row['float32']:.1f} | {row['bfloat16']:.1f} | {row['bfloat16'] / row['float32']:.2f} |")
    print(f"chosen: {product.chosen}; wrote {args.out / 'cpu_precision.json'}")


if __name__ == "__main__":
    main()
