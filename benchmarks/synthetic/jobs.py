"""The jobs of ``benchmarks.claims``, and digests of the source files that decide their results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.synthetic.tasks.suite import CONTROLS, TASKS

if TYPE_CHECKING:
    from benchmarks.synthetic.configurations import PPORun

ROOT = Path(__file__).resolve().parents[2]
# The code that decides what models and policies learn, and what each task adds to it. A test checks that every pattern
# matches a file: a moved file would otherwise leave the digest without a notice.
_SHARED = (
    "benchmarks/synthetic/tasks/task.py",
    "benchmarks/synthetic/tasks/suite.py",
    "benchmarks/synthetic/training.py",
    "benchmarks/synthetic/local_rewards.py",
    "benchmarks/synthetic/seed_run.py",
    "benchmarks/synthetic/gold_scores.py",
    "examples/quickstart/supervised.py",
    "client/redline/ppo/*.py",
    "client/redline/token_advantages.py",
    "client/redline/causal_lm/*.py",
    "client/redline/chat_template/*.py",
    "trainer/redline_trainer/**/*.py",
    "service/redline_model/**/*.py",
)
_PER_TASK = {
    "safety": ("benchmarks/synthetic/tasks/safety.py", "examples/quickstart/task.py"),
    "unbiased": ("benchmarks/synthetic/tasks/safety.py", "examples/quickstart/task.py"),
    "help": ("benchmarks/synthetic/tasks/help_desk.py",),
    "many_answers": ("benchmarks/synthetic/tasks/help_desk.py",),
    "summary": ("benchmarks/synthetic/tasks/summary.py",),
}


class Job(NamedTuple):
    """One group of policies (main, control or ablation) of one synthetic task and seed."""

    task: str
    seed: int
    group: str


def planned(seeds: Sequence[int], groups: Sequence[str]) -> list[Job]:
    """Every job, seed by seed, so that a stopped run has complete seeds; ablations last, on the first seed only."""
    jobs: list[Job] = []
    if "main" in groups:
        jobs += [Job(task, seed, "main") for seed in seeds for task in TASKS]
    if "controls" in groups:
        jobs += [Job(task, seed, "control") for seed in seeds for task in CONTROLS]
    if "ablations" in groups:
        jobs += [Job(task, seeds[0], "ablation") for task in TASKS]
    return jobs


def sources_patterns(task: str) -> tuple[str, ...]:
    """The patterns, below the repository's root, of the files that decide what a policy of ``task`` learns."""
    return (*_SHARED, *_PER_TASK[task])


def sources_digest(task: str) -> str:
    """A digest of the code that decides what a policy of ``task`` learns."""
    files = [path for pattern in sources_patterns(task) for path in sorted(ROOT.glob(pattern))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def sources_of(out: Path, keep: bool) -> dict[str, str]:
    """The sources digest of each task under which results at ``out`` are stored and found.

    Args:
        keep: use the digests stored at ``out``, if there are any: for changes of the code that change no result. If
            False, the digests of today's code replace them, and results of other code are computed again.
    """
    path = out / "sources.json"
    current = {task: sources_digest(task) for task in (*TASKS, *CONTROLS)}
    stored: dict[str, str] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if keep and stored is not None:
        return stored
    if stored not in (None, current):
        print(f"The code has changed since the results in {out} were computed: computing them again.")
        print("Use --keep to continue with the stored results.")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(current) + "\n", encoding="utf-8")
    return current


def runs_of(group: str) -> Mapping[str, PPORun]:
    """The PPO runs of a group, by name."""
    from benchmarks.synthetic.configurations import ABLATIONS, CONTROL, MAIN

    return {"main": MAIN, "control": CONTROL, "ablation": ABLATIONS}[group]


def dpo_of(group: str) -> tuple[str, ...]:
    """The DPO models of a group, which are themselves policies."""
    from benchmarks.synthetic.configurations import DPO

    return DPO if group == "main" else ()
