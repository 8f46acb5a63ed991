"""Reads what the jobs of ``benchmarks.claims`` have stored, and computes figures from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.synthetic.budget import Budget
from benchmarks.synthetic.configurations import REWARD_MODELS, ablation_table_rows, main_table_rows
from benchmarks.synthetic.gold_scores import Answers
from benchmarks.synthetic.jobs import Job, dpo_of, runs_of
from benchmarks.synthetic.seed_run import SPLITS, SeedRun, ancestry
from benchmarks.synthetic.statistics import curve_figures, split_figures
from benchmarks.synthetic.tasks.suite import TASKS


class ResultsStore:
    """The stored results of one task and seed; those of another budget or of other sources do not count."""

    def __init__(self, out: Path, task: str, seed: int, budget: Budget, sources: Mapping[str, str]) -> None:
        self._folder = out / task / f"seed-{seed}"
        self._fingerprint = SeedRun.fingerprint(task, seed, budget, sources[task])

    def answers(self, name: str) -> Any:
        """A policy's answers by split; None if there are none."""
        stored = _read_json(self._folder / "answers" / f"{name}.json")
        return stored if stored is not None and stored["cell"] == self._fingerprint else None

    def curve(self, name: str) -> Any:
        """The rows of a policy's PPO steps; None if it was not trained with PPO."""
        return _read_json(self._folder / "curves" / f"{name}.json")

    def accuracy(self, name: str) -> float | None:
        """Share of held-out pairs that a reward model ranks right with its default mode; None if it is not stored."""
        folder = self._folder / "models"
        digest = folder / f"{name}.made"
        if not digest.exists() or digest.read_text(encoding="utf-8") != SeedRun.digest(
            self._fingerprint, ancestry(name)
        ):
            return None
        accuracy: dict[str, dict[str, float]] = _read_json(folder / name / "redline.json")["metrics"]["accuracy"]
        return next(iter(accuracy.values()))["mean"]


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def collected(
    out: Path, seeds: Sequence[int], jobs: Sequence[Job], budget: Budget, sources: Mapping[str, str]
) -> dict[str, Any]:
    """The figures of everything that the jobs have stored at ``out``."""
    groups: dict[str, dict[str, Any]] = {"tasks": {}, "controls": {}, "ablations": {}}
    curves: dict[str, dict[str, Any]] = {}
    accuracy: dict[str, dict[str, dict[str, float]]] = {}
    for task in dict.fromkeys(job.task for job in jobs):
        main_seeds = [j.seed for j in jobs if j.task == task and j.group != "ablation"]
        if main_seeds:
            stores = [ResultsStore(out, task, seed, budget, sources) for seed in main_seeds]
            group = "tasks" if task in TASKS else "controls"
            answers = _answers(stores, main_table_rows())
            groups[group][task] = {split: split_figures(answers[split], main_seeds) for split in SPLITS}
            accuracy[task] = _accuracies(stores)
            curves_by_policy = {name: [store.curve(name) for store in stores] for name in answers["id"]}
            curves[task] = {name: curve_figures(rows) for name, rows in curves_by_policy.items() if None not in rows}
        if Job(task, seeds[0], "ablation") in jobs:
            answers = _answers([ResultsStore(out, task, seeds[0], budget, sources)], ablation_table_rows())
            groups["ablations"][task] = {split: split_figures(answers[split], seeds[:1]) for split in SPLITS}
    return {**groups, "over_optimisation": curves, "pair_accuracy": accuracy}


def unfinished(out: Path, jobs: Sequence[Job], budget: Budget, sources: Mapping[str, str]) -> list[str]:
    """The jobs with policies that have no answers yet, as ``task seed: policies``."""
    lines = []
    for job in jobs:
        store = ResultsStore(out, job.task, job.seed, budget, sources)
        names = [name for name in (*runs_of(job.group), *dpo_of(job.group)) if store.answers(name) is None]
        if names:
            lines.append(f"{job.task} seed {job.seed}: {', '.join(names)}")
    return lines


def _answers(stores: Sequence[ResultsStore], names: Sequence[str]) -> dict[str, dict[str, list[Answers]]]:
    """``split -> policy -> one Answers per store``, of the named policies that every store has."""
    stored = {name: [store.answers(name) for store in stores] for name in names}
    complete = {name: by_store for name, by_store in stored.items() if None not in by_store}
    return {
        split: {
            name: [Answers.model_validate(answers[split]) for answers in by_store]
            for name, by_store in complete.items()
        }
        for split in SPLITS
    }


def _accuracies(stores: Sequence[ResultsStore]) -> dict[str, dict[str, float]]:
    """Held-out accuracy of each trained reward model that every store has: mean, smallest and largest.

    Derived models are not among them: a length-calibrated model is measured on the pairs that its curve was fitted on.
    """
    accuracies: dict[str, dict[str, float]] = {}
    for name in (name for name, config in REWARD_MODELS.items() if config.derivation is None):
        values = [value for store in stores if (value := store.accuracy(name)) is not None]
        if len(values) == len(stores):
            accuracies[name] = {"mean": sum(values) / len(values), "min": min(values), "max": max(values)}
    return accuracies
