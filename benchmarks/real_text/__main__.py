"""Trains reward models on real preference sets and tests them: pair accuracy, length bias, calibration, marked errors;
then the policies of corrections, best-of-n and PPO.

    python -m benchmarks.real_text --data FOLDER            # one GPU, minutes; base model in models/smollm2
    python -m benchmarks.real_text --data FOLDER --reduced  # two CPU cores

FOLDER holds preference sets as NAME.train.jsonl.gz and NAME.test.jsonl.gz. Results are stored as they are computed. Run
the same command again to resume.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.real_text.plan import FULL, REDUCED
from benchmarks.real_text.run import Run
from benchmarks.real_text.stages import all_figures, quality_reports
from benchmarks.real_text.tables import rendered
from benchmarks.run_folder import made_with, write_json


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.real_text", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, default=Path("models/smollm2"), help="folder of the base model")
    parser.add_argument("--data", type=Path, required=True, help="folder of the preference sets")
    parser.add_argument("--out", type=Path, help="default: runs/real_text, or runs/real_text_reduced with --reduced")
    parser.add_argument("--reduced", action="store_true", help="fewer pairs and steps, for a CPU")
    parser.add_argument("--no-policy", action="store_true", help="without corrections, best-of-n and PPO")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import torch
    from transformers.utils import logging as transformers_logging

    from redline_trainer.evaluation.report import plot_reliability

    transformers_logging.disable_progress_bar()
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    plan = REDUCED if args.reduced else FULL
    out = args.out or Path(f"runs/real_text{'_reduced' if args.reduced else ''}")
    run = Run(out, args.base, args.data, plan, args.seed, device)
    run.claim()
    figures = all_figures(run, not args.no_policy)
    figures["about"] = {
        **made_with(f"python -m benchmarks.real_text --data FOLDER{' --reduced' if args.reduced else ''}", device),
        "seed": args.seed,
        "plan": asdict(plan),
    }
    write_json(run.out / "real_text.json", figures)
    plot_reliability(quality_reports(figures, plan.training[1]), run.out / "reliability.png")
    text = rendered(figures)
    (run.out / "real_text.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"wrote real_text.json, real_text.md and reliability.png to {run.out}")


if __name__ == "__main__":
    main()
