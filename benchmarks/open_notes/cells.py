"""What a worker process computes: a base model, or everything of one level and seed. Imports torch late."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.open_notes.plan import DERIVED, FINE_TUNED, PPO_RUNS, REWARD_MODELS, Plan


def run_cell(out: Path, level: Any, seed: int, plan: Plan, methods: Sequence[str] | None) -> None:
    """Everything of one level and seed, in its own process with one thread. ``methods``: only these policies."""
    import torch
    from transformers.utils import logging as transformers_logging

    from benchmarks.open_notes.run import LevelRun, has_mismatches

    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    run = LevelRun(out, level, seed, plan)
    names = methods or ["start", *FINE_TUNED, *PPO_RUNS]
    used = {PPO_RUNS[name].model for name in names if name in PPO_RUNS}
    for name in (name for name in (*REWARD_MODELS, *DERIVED) if name in used and has_mismatches(name, level)):
        run.model_figures(name)
        print(f"  {level} seed {seed}: reward model {name}", flush=True)
    for name in (name for name in names if has_mismatches(name, level)):
        final = run.policy_figures(name)["final"]
        print(f"  {level} seed {seed}: {name}, {final['faults']:.2f} faults, KL {final['kl']:.1f}", flush=True)


def make_base(out: Path, level: Any, seed: int, plan: Plan) -> None:
    """The base model of one seed, before the levels use it."""
    import torch

    from benchmarks.open_notes.run import LevelRun

    torch.set_num_threads(1)
    LevelRun(out, level, seed, plan).base()
