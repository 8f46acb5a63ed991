"""Trains policies on text that people wrote, by several methods, and measures them with independent evaluators.

    python -m benchmarks.real_policies --data FOLDER              # one GPU, five seeds
    python -m benchmarks.real_policies --data FOLDER --reduced    # two CPU cores, about an hour per task and seed
    python -m benchmarks.real_policies --data FOLDER --quick      # a tiny random model: shows that the command runs

FOLDER holds jfleg and paradetox as NAME.train.jsonl.gz and NAME.test.jsonl.gz; the base model is in models/smollm2.
Evaluators: pip install -c constraints.txt -e '.[judges]'. Results are stored as they are computed, and the tables are
written after every seed. Run the same command again to resume.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.real_policies.plan import FULL, METHODS, QUICK, REDUCED, Plan
from benchmarks.real_policies.tables import known_pairs_table, rendered
from benchmarks.real_policies.tasks import TASKS
from benchmarks.run_folder import made_with, write_json

if TYPE_CHECKING:
    from benchmarks.real_policies.run import TaskRun


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.real_policies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, default=Path("models/smollm2"), help="folder of the base model")
    parser.add_argument("--data", type=Path, required=True, help="folder of the preference sets")
    parser.add_argument("--out", type=Path, help="default: runs/real_policies, with _reduced or _quick")
    parser.add_argument("--task", action="append", choices=list(TASKS), help="default: all")
    parser.add_argument("--prompts", choices=["opening", "constant"], default="opening", help="form of the prompts")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--reduced", action="store_true", help="fewer pairs, steps and samples, one seed, for a CPU")
    size.add_argument("--quick", action="store_true", help="a tiny random model")
    parser.add_argument("--seeds", type=int, help="number of seeds; default: that of the plan")
    parser.add_argument(
        "--methods",
        nargs="*",
        metavar="METHOD",
        default=list(METHODS),
        help="default: all; none: only the evaluators on pairs whose order is known",
    )
    parser.add_argument("--http", action="store_true", help="PPO gets its rewards from redline serve")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(arguments)
    unknown = [name for name in args.methods if name not in METHODS]
    if unknown:
        parser.error(f"unknown methods: {', '.join(unknown)}; there are {', '.join(METHODS)}")
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import torch
    from transformers.utils import logging as transformers_logging

    from benchmarks.real_policies.base_models import short_base, tiny_base
    from benchmarks.real_policies.run import Place, SeedRun, TaskRun, claim

    transformers_logging.disable_progress_bar()
    plan = REDUCED if args.reduced else QUICK if args.quick else FULL
    plan = replace(plan, seeds=args.seeds or plan.seeds)
    suffix = "" if plan is FULL or plan.name == "full" else f"_{plan.name}"
    out = args.out or Path(f"runs/real_policies{suffix}")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    tasks = [TASKS[name] for name in args.task or TASKS]
    folder = out / "base"
    base = tiny_base(folder, args.data, tasks) if args.quick else short_base(folder, args.base)
    place = Place(out, base, args.data, device, args.http)
    claim(place, plan)
    results: dict[str, Any] = {"about": about(args, plan, device), "tasks": {}}
    for task in tasks:
        run = TaskRun(place, plan, task, args.prompts)
        for message in run.evaluators.missing:
            print(message)
        figures: dict[str, list[dict[str, Any]]] = {name: [] for name in args.methods}
        known_pairs = run.known_pairs()
        print(f"{task.name}:\n{known_pairs_table(known_pairs)}", flush=True)
        for seed in range(plan.seeds if args.methods else 0):
            for name in args.methods:
                figures[name].append(SeedRun(run, seed).figures(name))
            results["tasks"][f"{task.name}, {args.prompts}"] = task_results(run, figures, known_pairs, seed + 1)
            write(results, out)
    if not args.methods:
        return
    print(rendered(results))
    print(f"wrote real_policies.json and real_policies.md to {out}")


def task_results(
    run: TaskRun, figures: dict[str, list[dict[str, Any]]], known_pairs: dict[str, Any], seeds: int
) -> dict[str, Any]:
    """The section of one task in ``real_policies.json``, after ``seeds`` seeds."""
    from benchmarks.real_policies.curves import task_statistics

    kept = ("settings", "curve", "final", "seconds", "ppo")
    swept = {name for name in figures if name in run.plan.swept and run.plan.sweep}
    return {
        "metric": run.task.metric,
        "seeds": seeds,
        "known_pairs": known_pairs,
        "statistics": task_statistics(figures, run.task.metric, run.plan),
        "settings": {name: runs[0]["settings"] for name, runs in figures.items() if name in swept},
        "runs": {name: [{key: r[key] for key in kept} for r in runs] for name, runs in figures.items()},
    }


def about(args: argparse.Namespace, plan: Plan, device: str) -> dict[str, Any]:
    """What the results were computed with."""
    options = [f"--{plan.name}" if plan.name != "full" else "", "--http" if args.http else ""]
    options += [f"--task {name}" for name in args.task or ()]
    if args.methods != list(METHODS):
        options.append(f"--methods {' '.join(args.methods)}")
    options += [f"--prompts {args.prompts}" if args.prompts != "opening" else "", f"--seeds {plan.seeds}"]
    return {
        **made_with(" ".join(["python -m benchmarks.real_policies --data FOLDER", *filter(None, options)]), device),
        "plan": asdict(plan),
    }


def write(results: dict[str, Any], out: Path) -> None:
    """Write the results so far as JSON and as tables."""
    write_json(out / "real_policies.json", results)
    stored = json.loads((out / "real_policies.json").read_text(encoding="utf-8"))
    (out / "real_policies.md").write_text(rendered(stored), encoding="utf-8")


if __name__ == "__main__":
    main()
