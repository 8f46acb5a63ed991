"""Compares the speed of training: Redline's optimiser steps and a plain transformers ``Trainer`` on the same pairs.

    python -m benchmarks.training --out runs/bench [--quick] [--model FOLDER]

Both get the same sequences in the same order, the same loss (token mean over both mappings) and the same AdamW.
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
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.speed.bundles import build_bundle
from benchmarks.speed.machine import machine
from benchmarks.speed.workloads import Texts
from redline.preference_data.rows import Pair
from redline_model.bundle.bundle import Bundle
from redline_model.bundle.load_options import LoadOptions
from redline_model.encoding.items import EncodedItem
from redline_trainer.config import TrainConfig
from redline_trainer.encode_pairs import EncodedPair, encode_pairs
from redline_trainer.objectives.seq2seq import Seq2SeqObjective
from redline_trainer.optimizer_step import run_optimizer_step

_RATE = 1e-5


def redline_steps(
    model: Any, steps: Sequence[Sequence[EncodedPair]], config: TrainConfig
) -> tuple[list[float], list[float]]:
    """Loss and seconds of each optimiser step of Redline."""
    model.train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    objective = Seq2SeqObjective(model)
    reports = [
        run_optimizer_step(n, _RATE, config, objective, pairs, optimizer, parameters) for n, pairs in enumerate(steps)
    ]
    return [report.loss for report in reports], [report.seconds for report in reports]


class _OrderedTrainer(Trainer):  # type: ignore[misc]
    """The Trainer without shuffling, so that the data has the same order in both."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Measures the seconds of each optimiser step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._started)


def example(item: EncodedItem) -> dict[str, list[int]]:
    """One training sequence; the loss does not include its source."""
    source = [*item.prefix_ids, *item.response_ids, *item.instruction_ids]
    return {"input_ids": [*source, *item.target_ids], "labels": [-100] * len(source) + item.target_ids}


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A right-padded batch."""
    longest = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "labels": -100}
    batch = {
        key: torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])
        for key, value in fill.items()
    }
    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    return {**batch, "attention_mask": torch.tensor(mask)}


def trainer_steps(model: Any, steps: Sequence[Sequence[EncodedPair]], batch: int) -> tuple[list[float], list[float]]:
    """Loss and seconds of each optimiser step of the transformers ``Trainer``."""
    objective = Seq2SeqObjective(copy.deepcopy(model))
    rows = [example(e.item) for pairs in steps for pair in pairs for e in objective.examples(pair)]
    per_step = len(rows) // len(steps)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = _OrderedTrainer(
            model=model.train(),
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=min(batch, per_step),
                gradient_accumulation_steps=max(1, per_step // batch),
                max_steps=len(steps),
                learning_rate=_RATE,
                lr_scheduler_type="constant",
                adam_beta2=0.95,
                weight_decay=0.0,
                max_grad_norm=1.0,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                use_cpu=not torch.cuda.is_available(),
                dataloader_pin_memory=False,
                disable_tqdm=True,
            ),
            train_dataset=rows,
            data_collator=collate,
            callbacks=[clock],
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, clock.seconds


def build_pairs(texts: Texts, count: int) -> list[Pair]:
    """Pairs of a prompt of 60 to 300 tokens and two responses of 10 to 120."""
    return [
        Pair(
            texts.passage(texts.length(60, 300)),
            texts.passage(texts.length(10, 120)),
            texts.passage(texts.length(10, 120)),
            f"pair {n}",
        )
        for n in range(count)
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of training.json")
    parser.add_argument("--model", type=Path, help="model folder; default models/smollm2, else random weights")
    parser.add_argument("--texts", type=Path, default=Path("../shared/data"), help="folder of preference pairs")
    parser.add_argument("--pairs-per-step", type=int, default=8)
    parser.add_argument("--steps", type=int, help="optimiser steps per turn")
    parser.add_argument("--repeats", type=int, help="turns of each of the two")
    parser.add_argument("--quick", action="store_true", help="two steps of four pairs, one turn")
    parser.add_argument("--seed", type=int, default=0)
    args, _ = parser.parse_known_args()  # `make bench` passes the same options to all its commands
    steps, repeats = args.steps or (2 if args.quick else 4), args.repeats or (1 if args.quick else 2)
    per_step = 4 if args.quick else args.pairs_per_step
    with tempfile.TemporaryDirectory() as folder:
        path, weights = build_bundle(Path(folder) / "bundle", args.model, args.seed)
        scorer = Bundle.load(path, LoadOptions(dtype="float32")).scorer
    texts = Texts(scorer.encoder.tokenizer, args.texts, args.seed)
    encoded, _ = encode_pairs(scorer.encoder, build_pairs(texts, steps * per_step), "error")
    batches = [encoded[n * per_step : (n + 1) * per_step] for n in range(steps)]
    config = TrainConfig(base="benchmark", out=Path("unused"), pairs_per_step=per_step, max_batch_tokens=4096)
    objective = Seq2SeqObjective(copy.deepcopy(scorer.model))
    tokens = [sum(objective.tokens(e) for pair in batch for e in objective.examples(pair)) for batch in batches]
    rates: dict[str, list[float]] = {"redline": [], "transformers_trainer": []}
    losses: dict[str, list[float]] = {}
    for repeat in range(repeats):
        for name in (*rates,) if repeat % 2 == 0 else (*reversed(rates),):
            model = copy.deepcopy(scorer.model)
            torch.manual_seed(args.seed)
            if name == "redline":
                losses[name], seconds = redline_steps(model, batches, config)
            else:
                losses[name], seconds = trainer_steps(model, batches, batch=8)
            rates[name] += [t / s for t, s in zip(tokens, seconds, strict=True)]
            print(f"  {name:22} {rates[name][-1]:8.1f} tokens/s, losses {losses[name]}", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    report = {
        "machine": machine(),
        "weights": weights,
        "texts": texts.source,
        "seed": args.seed,
        "pairs_per_step": per_step,
        "steps": steps,
        "tokens_per_step": tokens,
        "tokens_per_s": medians,
        "tokens_per_s_all": rates,
        "ratio": medians["redline"] / medians["transformers_trainer"],
        "losses": losses,
        "largest_loss_difference": max(
            abs(a - b) for a, b in zip(losses["redline"], losses["transformers_trainer"], strict=True)
        ),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"redline {medians['redline']:.1f} tokens/s, transformers Trainer {medians['transformers_trainer']:.1f}")
    print(f"ratio {report['ratio']:.2f}, largest difference between two losses {report['largest_loss_difference']:.1e}")
    print(f"wrote {args.out / 'training.json'}")


if __name__ == "__main__":
    main()
