"""What is to be made of the claims, and by which code: jobs, and digests of the sources that decide their results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.synthetic.tasks.suite import CONTROLS, TASKS

ROOT = Path(__file__).resolve().parents[2]
# the code that decides what models and policies learn, and what each world adds to it
_SHARED = (
    "benchmarks/synthetic/tasks/task.py",
    "benchmarks/synthetic/tasks/suite.py",
    "benchmarks/synthetic/training.py",
    "benchmarks/synthetic/local_rewards.py",
    "benchmarks/synthetic/seed_run.py",
    "benchmarks/synthetic/gold_scores.py",
    "examples/quickstart/supervised.py",
    "client/redline/ppo/*.py",
    "client/redline/causal_lm/*.py",
    "client/redline/chat_template/*.py",
    "trainer/redline_trainer/**/*.py",
    "service/redline_model/**/*.py",
)
_OWN = {
    "safety": ("benchmarks/synthetic/tasks/safety.py", "examples/quickstart/world.py"),
    "unbiased": ("benchmarks/synthetic/tasks/safety.py", "examples/quickstart/world.py"),
    "help": ("benchmarks/synthetic/tasks/help_desk.py",),
    "many_answers": ("benchmarks/synthetic/tasks/help_desk.py",),
    "summary": ("benchmarks/synthetic/tasks/summary.py",),
}


class Job(NamedTuple):
    """One group of policies in one world with one seed."""

    world: str
    seed: int
    group: str


def planned(seeds: Sequence[int], groups: Sequence[str]) -> list[Job]:
    """Every job, seed by seed, so that a stopped run has whole seeds; ablations last, on the first seed alone."""
    jobs: list[Job] = []
    if "main" in groups:
        jobs += [Job(world, seed, "main") for seed in seeds for world in TASKS]
    if "controls" in groups:
        jobs += [Job(world, seed, "control") for seed in seeds for world in CONTROLS]
    if "ablations" in groups:
        jobs += [Job(world, seeds[0], "ablation") for world in TASKS]
    return jobs


def sources_patterns(world: str) -> tuple[str, ...]:
    """The patterns, below the repository's root, of the files that decide what a policy of ``world`` learns."""
    return (*_SHARED, *_OWN[world])


def sources_digest(world: str) -> str:
    """A digest of the code that decides what a policy of ``world`` learns."""
    files = [path for pattern in sources_patterns(world) for path in sorted(ROOT.glob(pattern))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def sources_of(out: Path, keep: bool) -> dict[str, str]:
    """The digest by world that results at ``out`` are made and found under.

    With ``keep`` that of the code they were begun with, for a change of the code that changes no result; else that
    of the code as it is, which makes all of another one anew.
    """
    mark = out / "sources.json"
    now = {world: sources_digest(world) for world in (*TASKS, *CONTROLS)}
    begun: dict[str, str] | None = json.loads(mark.read_text(encoding="utf-8")) if mark.exists() else None
    if keep and begun is not None:
        return begun
    if begun not in (None, now):
        print(f"The code has changed since {out} was begun; its results are made anew. --keep holds on to them.")
    out.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(now) + "\n", encoding="utf-8")
    return now


def runs_of(group: str) -> Mapping[str, Any]:
    """The PPO runs of a group, by name."""
    from benchmarks.synthetic.configurations import ABLATIONS, CONTROL, MAIN

    return {"main": MAIN, "control": CONTROL, "ablation": ABLATIONS}[group]


def dpo_of(group: str) -> tuple[str, ...]:
    """The models of a group that are themselves policies."""
    from benchmarks.synthetic.configurations import DPO

    return DPO if group == "main" else ()
