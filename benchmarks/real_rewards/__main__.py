"""Trains reward models on real preference sets and measures whether their token rewards find what people changed.

    python -m benchmarks.real_rewards --data FOLDER              # one GPU
    python -m benchmarks.real_rewards --data FOLDER --reduced    # two CPU cores: about two hours per set
    python -m benchmarks.real_rewards --data FOLDER --quick      # a tiny random model: shows that the command runs

FOLDER holds the sets as NAME.train.jsonl.gz and NAME.test.jsonl.gz; the base model is in models/smollm2. By default the
figures are of the development part, a tenth of the training sentences that no model is fitted on; --part test is for
the confirmation of choices that were made. Results are stored as they are computed; run the same command to resume.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.real_rewards.plan import ENTRIES, FULL, QUICK, REDUCED
from benchmarks.real_rewards.tables import collected, rendered
from benchmarks.run_folder import made_with, write_json


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.real_rewards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, default=Path("models/smollm2"), help="folder of the base model")
    parser.add_argument("--data", type=Path, required=True, help="folder of the preference sets")
    parser.add_argument("--out", type=Path, help="default: runs/real_rewards, with _reduced or _quick")
    parser.add_argument("--set", action="append", help="only these sets; default: those of the plan")
    parser.add_argument("--part", action="append", choices=["development", "test"], help="default: development")
    parser.add_argument("--entry", action="append", choices=list(ENTRIES), help="only these scorers; default: all")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--reduced", action="store_true", help="for a CPU: two sets, each pair once for every model")
    size.add_argument("--quick", action="store_true", help="a tiny random model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--collect", action="store_true", help="compute nothing; write the tables of stored results")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(arguments)
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import torch
    from transformers.utils import logging as transformers_logging

    from benchmarks.real_policies.base_models import tiny_base
    from benchmarks.real_policies.tasks import TASKS
    from benchmarks.real_rewards.run import SetRun, claim

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    plan = REDUCED if args.reduced else QUICK if args.quick else FULL
    out: Path = args.out or Path("runs/real_rewards" + ("" if plan is FULL else f"_{plan.name}"))
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    base = tiny_base(out / "base", args.data, list(TASKS.values())) if args.quick else args.base
    claim(out, plan, base, args.seed)
    parts = args.part or ["development"]
    entries = args.entry or list(ENTRIES)
    results: dict[str, Any] = {"sets": {}}
    for name in args.set or plan.sets:
        run = SetRun(out, args.data, base, plan, name, args.seed, device)
        for part in parts:
            kept = [entry for entry in entries if not args.collect or run.has(f"{part}/{entry}")]
            figures = {entry: run.figures(entry, part) for entry in kept}
            has_seq2seq = any(ENTRIES[entry].model == "seq2seq" for entry in kept)
            has_probes = has_seq2seq and (not args.collect or run.has(f"{part}/probes"))
            if figures:
                probes = run.probes(part) if has_probes else None
                results["sets"].setdefault(name, {})[part] = collected(figures, probes)
    results["about"] = {
        **made_with(
            "python -m benchmarks.real_rewards --data FOLDER"
            + ("" if plan is FULL else f" --{plan.name}")
            + "".join(f" --{name} {value}" for name in ("set", "part") for value in getattr(args, name) or ()),
            device,
        ),
        "plan": asdict(plan),
        "seed": args.seed,
    }
    write_json(out / "real_rewards.json", results)
    text = rendered(results)
    (out / "real_rewards.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"wrote real_rewards.json and real_rewards.md to {out}")


if __name__ == "__main__":
    main()
