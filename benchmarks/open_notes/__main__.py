"""Trains reward models and policies on the open task: where does reading the response help a policy?

    python -m benchmarks.open_notes            # hours on two cores
    python -m benchmarks.open_notes --quick    # a minute; shows only that it runs

Pairs are from one domain of content words, the policy writes about another. Each result is stored as soon as it is
computed; run the same command again to resume.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.open_notes.cells import make_base, run_cell
from benchmarks.open_notes.plan import FULL, QUICK
from benchmarks.open_notes.tables import collected, rendered
from benchmarks.run_folder import made_with, write_json


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.open_notes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="default: runs/open_notes, or runs/open_notes_quick with --quick")
    parser.add_argument("--quick", action="store_true", help="tiny models and few steps: shows only that it runs")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 1; seed 0 was used for development")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, with one thread each")
    parser.add_argument("--level", action="append", help="only these levels; default: all")
    parser.add_argument("--method", action="append", help="only these policies; default: all")
    parser.add_argument("--collect", action="store_true", help="compute nothing; write the tables of stored results")
    args = parser.parse_args(arguments)
    # set before a worker loads torch
    os.environ.update(
        OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false"
    )
    plan = QUICK if args.quick else FULL
    out: Path = args.out or Path("runs/open_notes_quick" if args.quick else "runs/open_notes")
    seeds = [0] if args.quick else list(range(args.first_seed, args.first_seed + args.seeds))
    levels = [level for level in plan.levels if not args.level or level in args.level]
    if not args.collect:
        with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            for future in as_completed([pool.submit(make_base, out, levels[0], seed, plan) for seed in seeds]):
                future.result()
            cells = [(seed, level) for seed in seeds for level in levels]
            futures = {pool.submit(run_cell, out, level, seed, plan, args.method): seed for seed, level in cells}
            for future in as_completed(futures):
                future.result()

    results: dict[str, Any] = collected(out, levels, seeds)
    results["about"] = {
        **made_with(
            "python -m benchmarks.open_notes"
            + (" --quick" if args.quick else f" --first-seed {args.first_seed} --seeds {args.seeds}")
            + "".join(f" --{name} {value}" for name in ("level", "method") for value in getattr(args, name) or ())
        ),
        "seeds": seeds,
        "plan": asdict(plan),
    }
    write_json(out / "open_notes.json", results)
    text = rendered(results)
    (out / "open_notes.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"wrote open_notes.json and open_notes.md to {out}")


if __name__ == "__main__":
    main()
