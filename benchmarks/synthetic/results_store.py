"""The figures of what the jobs of the claims have left on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.synthetic.budget import Budget
from benchmarks.synthetic.configurations import REWARD_MODELS, shown_ablations, shown_main
from benchmarks.synthetic.gold_scores import Answers
from benchmarks.synthetic.jobs import Job, dpo_of, runs_of
from benchmarks.synthetic.seed_run import SeedRun, ancestry
from benchmarks.synthetic.statistics import curve_figures, split_figures
from benchmarks.synthetic.tasks.suite import TASKS


class StoredResults:
    """What one world and seed have left at ``out``, as ``budget`` and ``sources`` now ask for it."""

    def __init__(self, out: Path, world: str, seed: int, budget: Budget, sources: Mapping[str, str]) -> None:
        self._folder = out / world / f"seed-{seed}"
        self._fingerprint = SeedRun.fingerprint(world, seed, budget, sources[world])

    def answers(self, name: str) -> Any:
        """A policy's answers by split; None where there are none."""
        one = _read(self._folder / "answers" / f"{name}.json")
        return one if one is not None and one["cell"] == self._fingerprint else None

    def curve(self, name: str) -> Any:
        """The rows of a policy's PPO; None where it had none."""
        return _read(self._folder / "curves" / f"{name}.json")

    def accuracy(self, name: str) -> float | None:
        """Share of held-out pairs that a reward model ranks right by its default reading; None where there is none."""
        folder = self._folder / "models"
        mark = folder / f"{name}.made"
        if not mark.exists() or mark.read_text(encoding="utf-8") != SeedRun.digest(self._fingerprint, ancestry(name)):
            return None
        accuracy: dict[str, dict[str, float]] = _read(folder / name / "redline.json")["metrics"]["accuracy"]
        return next(iter(accuracy.values()))["mean"]


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def collected(
    out: Path, seeds: Sequence[int], jobs: Sequence[Job], budget: Budget, sources: Mapping[str, str]
) -> dict[str, Any]:
    """The figures of what the jobs have left on disk."""
    groups: dict[str, dict[str, Any]] = {"tasks": {}, "controls": {}, "ablations": {}}
    curves: dict[str, dict[str, Any]] = {}
    accuracy: dict[str, dict[str, dict[str, float]]] = {}
    for world in dict.fromkeys(job.world for job in jobs):
        main = [j.seed for j in jobs if j.world == world and j.group != "ablation"]
        if main:
            shelves = [StoredResults(out, world, seed, budget, sources) for seed in main]
            group = "tasks" if world in TASKS else "controls"
            answers = _answers(shelves, shown_main())
            groups[group][world] = {s: split_figures(answers[s], main) for s in ("id", "ood")}
            accuracy[world] = _accuracies(shelves)
            found = {name: [shelf.curve(name) for shelf in shelves] for name in answers["id"]}
            curves[world] = {name: curve_figures(rows) for name, rows in found.items() if None not in rows}
        if Job(world, seeds[0], "ablation") in jobs:
            answers = _answers([StoredResults(out, world, seeds[0], budget, sources)], shown_ablations())
            groups["ablations"][world] = {s: split_figures(answers[s], seeds[:1]) for s in ("id", "ood")}
    return {**groups, "over_optimisation": curves, "pair_accuracy": accuracy}


def unfinished(out: Path, jobs: Sequence[Job], budget: Budget, sources: Mapping[str, str]) -> list[str]:
    """What of the plan has no answers yet: ``world seed: policies``."""
    left = []
    for job in jobs:
        shelf = StoredResults(out, job.world, job.seed, budget, sources)
        names = [name for name in (*runs_of(job.group), *dpo_of(job.group)) if shelf.answers(name) is None]
        if names:
            left.append(f"{job.world} seed {job.seed}: {', '.join(names)}")
    return left


def _answers(shelves: Sequence[StoredResults], wanted: Sequence[str]) -> dict[str, dict[str, list[Answers]]]:
    """``split -> policy -> one Answers a shelf``, of the ``wanted`` policies that every shelf has."""
    found = {name: [shelf.answers(name) for shelf in shelves] for name in wanted}
    whole = {name: raw for name, raw in found.items() if None not in raw}
    return {s: {n: [Answers.model_validate(one[s]) for one in raw] for n, raw in whole.items()} for s in ("id", "ood")}


def _accuracies(shelves: Sequence[StoredResults]) -> dict[str, dict[str, float]]:
    """Held-out accuracy of each fitted reward model that every shelf has: mean, least and most.

    A length-calibrated model is not among them: it measures itself on the pairs that its curve was fitted on.
    """
    told: dict[str, dict[str, float]] = {}
    for name in (n for n, recipe in REWARD_MODELS.items() if recipe.derivation is None):
        values = [value for shelf in shelves if (value := shelf.accuracy(name)) is not None]
        if len(values) == len(shelves):
            told[name] = {"mean": sum(values) / len(values), "min": min(values), "max": max(values)}
    return told
