"""Measures memory and speed of optimiser steps with different settings, each in its own process, in turns.

    python -m benchmarks.training_memory --out runs/bench [--quick] [--model FOLDER]

All take the same steps: the same weights, pairs and AdamW, passes of at most ``--max-batch-tokens``. ``kept_logits`` is
plain autograd after the same forward pass: it keeps the logits of every target until the backward pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.bundles import build_bundle
from benchmarks.speed.machine import machine
from benchmarks.speed.workloads import Texts
from benchmarks.training import build_pairs
from redline_model.bundle.bundle import Bundle
from redline_model.bundle.load_options import LoadOptions
from redline_trainer.config import TrainConfig
from redline_trainer.dropout import set_training_dropout
from redline_trainer.encode_pairs import encode_pairs
from redline_trainer.objectives.seq2seq import MappingExample, Seq2SeqObjective
from redline_trainer.optimizer_step import run_optimizer_step

_RATE = 1e-5


class Variant(NamedTuple):
    """Settings of the optimiser steps."""

    keeps_logits: bool = False
    is_checkpointed: bool = False
    precision: str = "float32"


VARIANTS = {
    "kept_logits": Variant(keeps_logits=True),
    "chunked": Variant(),
    "chunked_checkpointed": Variant(is_checkpointed=True),
    "chunked_bfloat16": Variant(precision="bfloat16"),
    "chunked_checkpointed_bfloat16": Variant(is_checkpointed=True, precision="bfloat16"),
}


class KeptLogits(Seq2SeqObjective):
    """The loss of ``Seq2SeqObjective`` with plain autograd."""

    def loss(self, examples: Sequence[MappingExample]) -> Tensor:
        """See ``Seq2SeqObjective``."""
        parts = [
            F.cross_entropy(logits.float(), ids, reduction="none")
            for logits, ids in self._forward.logits([example.item for example in examples])
        ]
        weights = [weight for example in examples for weight in example.weights]
        return (torch.cat(parts) * torch.tensor(weights, device=parts[0].device)).sum()


def peak_mb() -> float:
    """Peak resident memory of this process, MiB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def work(args: argparse.Namespace) -> None:
    """Take one step per line of standard input, and print its figures as a line of JSON."""
    variant = VARIANTS[args.way]
    scorer = Bundle.load(args.bundle, LoadOptions(device="cpu", dtype="float32")).scorer
    texts = Texts(scorer.encoder.tokenizer, args.texts, args.seed)
    pairs = build_pairs(texts, args.steps * args.pairs_per_step)
    encoded, _ = encode_pairs(scorer.encoder, pairs, "error")
    model = scorer.model
    if variant.is_checkpointed:
        model.gradient_checkpointing_enable()
    set_training_dropout(model, "off")
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    objective = (KeptLogits if variant.keeps_logits else Seq2SeqObjective)(model)
    config = TrainConfig.model_validate(
        {"base": "b", "out": "o", "max_batch_tokens": args.max_batch_tokens, "precision": variant.precision}
    )
    for step, _ in enumerate(sys.stdin):
        batch = encoded[step * args.pairs_per_step : (step + 1) * args.pairs_per_step]
        started = time.process_time()
        report = run_optimizer_step(step, _RATE, config, objective, batch, optimizer, parameters)
        seconds = time.process_time() - started
        figures = {
            "loss": report.loss,
            "grad_norm": report.grad_norm,
            "tokens": report.tokens,
            "tokens_per_s": report.tokens / report.seconds,
            "tokens_per_cpu_s": report.tokens / seconds,
            "peak_mb": peak_mb(),
        }
        print(json.dumps(figures), flush=True)


def in_turns(names: Sequence[str], options: Sequence[str], steps: int) -> dict[str, list[dict[str, Any]]]:
    """The figures of each step of each variant; the variants take turns."""
    workers = {
        name: subprocess.Popen(
            [sys.executable, "-m", "benchmarks.training_memory", "--way", name, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    }
    figures: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    try:
        for step in range(steps):
            for name, worker in [*workers.items()][:: 1 if step % 2 == 0 else -1]:
                assert worker.stdin is not None and worker.stdout is not None
                worker.stdin.write("step\n")
                worker.stdin.flush()
                line = worker.stdout.readline()
                if not line:
                    raise SystemExit(f"{name} ended in step {step + 1}")
                figures[name].append(json.loads(line))
                print(f"  {name:30} {figures[name][-1]}", file=sys.stderr, flush=True)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    return figures


def measure(options: Sequence[str], names: Sequence[str], steps: int) -> dict[str, dict[str, Any]]:
    """One row per variant; two processes at a time, as each holds a model and its optimiser's state."""
    rows: dict[str, dict[str, Any]] = {}
    for start in range(0, len(names), 2):
        for name, steps_of in in_turns(names[start : start + 2], options, steps).items():
            rows[name] = {
                "peak_mb": steps_of[-1]["peak_mb"],
                "tokens_per_s": statistics.median(step["tokens_per_s"] for step in steps_of),
                "tokens_per_cpu_s": statistics.median(step["tokens_per_cpu_s"] for step in steps_of),
                "losses": [step["loss"] for step in steps_of],
                "grad_norms": [step["grad_norm"] for step in steps_of],
            }
    return rows


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| variant | peak, MiB | tokens/s | tokens per second of processor time | loss of the last step |",
        "|---" * 5 + "|",
    ]
    for name, row in rows.items():
        speeds = f"{row['tokens_per_s']:.1f} | {row['tokens_per_cpu_s']:.1f}"
        lines.append(f"| {name} | {row['peak_mb']:.0f} | {speeds} | {row['losses'][-1]:.6f} |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of training_memory.json")
    parser.add_argument("--model", type=Path, help="model folder; default models/smollm2, else random weights")
    parser.add_argument("--texts", type=Path, default=Path("../shared/data"), help="folder of preference pairs")
    parser.add_argument("--ways", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), help="variants")
    parser.add_argument("--pairs-per-step", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--max-batch-tokens", type=int, default=8192)
    parser.add_argument("--quick", action="store_true", help="two steps of two pairs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--way", choices=list(VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--bundle", help=argparse.SUPPRESS)
    args, _ = parser.parse_known_args()
    if args.way:
        work(args)
        return
    steps, per_step = (2, 2) if args.quick else (args.steps, args.pairs_per_step)
    with tempfile.TemporaryDirectory() as folder:
        path, weights = build_bundle(Path(folder) / "bundle", args.model, args.seed)
        options = {
            "bundle": path,
            "texts": args.texts,
            "pairs-per-step": per_step,
            "steps": steps,
            "max-batch-tokens": args.max_batch_tokens,
            "seed": args.seed,
        }
        rows = measure([word for key, value in options.items() for word in (f"--{key}", str(value))], args.ways, steps)
    report = {
        "machine": machine(),
        "weights": weights,
        "seed": args.seed,
        "pairs_per_step": per_step,
        "max_batch_tokens": args.max_batch_tokens,
        "rows": rows,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "training_memory.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(table(rows))
    print(f"wrote {args.out / 'training_memory.json'}")


if __name__ == "__main__":
    main()
