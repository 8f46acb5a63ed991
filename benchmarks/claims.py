"""Trains reward models and policies on synthetic tasks and compares their gold scores: the claims about the method.

For each of three tasks and several seeds: a supervised policy, best-of-n, DPO, and PPO against every kind of reward
model, scored in and out of distribution by a program that knows the correct answers. Two control tasks show when the
difference disappears, and ablations on the first seed change one setting at a time.

    python -m benchmarks.claims            # hours on two cores
    python -m benchmarks.claims --quick    # minutes; shows only that it runs

Results are stored as they are computed. Run the same command again to resume.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.run_folder import made_with, write_json
from benchmarks.synthetic.budget import FULL, QUICK, Budget
from benchmarks.synthetic.criteria import check_criteria
from benchmarks.synthetic.jobs import Job, dpo_of, planned, runs_of, sources_of


def run_job(job: Job, out: Path, budget: Budget, sources: str, is_quick: bool) -> float:
    """Compute everything of one job, in its own process with one thread; returns seconds."""
    import torch
    from transformers.utils import logging as transformers_logging

    from benchmarks.synthetic.seed_run import SeedRun, default_modes

    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    started = time.perf_counter()
    seed_run = SeedRun(out / job.task / f"seed-{job.seed}", job.task, job.seed, budget, sources)
    seed_run.evaluate_supervised()
    runs = runs_of(job.group)
    if is_quick:
        runs = dict(list(runs.items())[:3])
    for name, run in runs.items():
        seed_run.run_ppo(name, run)
        print(f"  {job.task} seed {job.seed}: {name}, {time.perf_counter() - started:.0f} s", flush=True)
    if job.group != "ablation":
        seed_run.best_of_n(default_modes(["scalar", "seq2seq"]))
        seed_run.correct()
    for name in dpo_of(job.group)[: 1 if is_quick else None]:
        seed_run.evaluate_dpo(name)
    return time.perf_counter() - started


def run_jobs(
    jobs: Sequence[Job], out: Path, budget: Budget, sources: dict[str, str], *, workers: int, is_quick: bool
) -> dict[Job, str]:
    """Run the jobs in ``workers`` processes; returns the error of each job that failed."""
    errors: dict[Job, str] = {}
    # an ablation uses the models of its task's main job, so it runs after all main jobs
    main_jobs, ablations = (
        [j for j in jobs if (j.group == "ablation") is is_ablation] for is_ablation in (False, True)
    )
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for group in (main_jobs, ablations):
            futures = {pool.submit(run_job, job, out, budget, sources[job.task], is_quick): job for job in group}
            for future in as_completed(futures):
                job, error = futures[future], future.exception()
                if error is not None:
                    errors[job] = f"{type(error).__name__}: {error}"
                print(f"{job.task} seed {job.seed} {job.group}: {error or 'done'}", flush=True)
    return errors


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default: runs/claims, or runs/claims-quick with --quick")
    parser.add_argument("--quick", action="store_true", help="one seed, three policies, small models: minutes")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 1; seed 0 was used for development")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, with one thread each")
    parser.add_argument("--collect", action="store_true", help="compute nothing; write the tables of stored results")
    parser.add_argument("--keep", action="store_true", help="use results that earlier versions of the code stored")
    parser.add_argument("--only", choices=("main", "controls", "ablations"), action="append", help="default: all three")
    args = parser.parse_args(arguments)
    # set before a worker loads torch: one thread each, and no thread that spins while it waits
    os.environ.update(
        OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false"
    )
    budget = QUICK if args.quick else FULL
    args.out = args.out or Path("runs/claims-quick" if args.quick else "runs/claims")
    seeds = [0] if args.quick else list(range(1, 1 + args.seeds))
    jobs = planned(seeds, args.only or ("main", "controls", "ablations"))
    args.out.mkdir(parents=True, exist_ok=True)
    sources = sources_of(args.out, args.keep or args.collect)
    errors: dict[Job, str] = {}
    if not args.collect:
        errors = run_jobs(jobs, args.out, budget, sources, workers=args.workers, is_quick=args.quick)
    from benchmarks.synthetic.plots import plot_curves, plot_gold
    from benchmarks.synthetic.results_store import collected, unfinished
    from benchmarks.synthetic.tables import rendered

    claims: dict[str, Any] = collected(args.out, seeds, [job for job in jobs if job not in errors], budget, sources)
    claims["verdict"] = check_criteria(claims["tasks"])
    failed = [f"{job.task} seed {job.seed} {job.group}: {error}" for job, error in errors.items()]
    claims["about"] = {
        **made_with(" ".join(["python -m benchmarks.claims", *(arguments or sys.argv[1:])])),
        "seeds": seeds,
        "budget": asdict(budget),
        "sources": sources,
        "failed": failed,
        "unfinished": [] if args.quick else unfinished(args.out, jobs, budget, sources),
    }
    write_json(args.out / "claims.json", claims)
    text = rendered(claims)
    (args.out / "claims.md").write_text(text, encoding="utf-8")
    if claims["tasks"] or claims["controls"]:
        plot_gold({**claims["tasks"], **claims["controls"]}, args.out / "gold.png")
        plot_curves(claims["over_optimisation"], args.out / "over_optimisation.png")
    print(text)
    print(f"wrote claims.json, claims.md, gold.png and over_optimisation.png to {args.out}")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
