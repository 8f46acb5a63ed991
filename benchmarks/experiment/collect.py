"""The figures of what the jobs of the claims have left on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.experiment.budget import Budget
from benchmarks.experiment.cell import Cell, lineage
from benchmarks.experiment.jobs import Job, dpo_of, runs_of
from benchmarks.experiment.judging import Answers
from benchmarks.experiment.recipes import REWARD_MODELS, shown_ablations, shown_main
from benchmarks.experiment.results import curve_figures, split_figures
from benchmarks.worlds.suite import TASKS


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
            group = "tasks" if world in TASKS else "controls"
            answers = _answers(out, world, main, shown_main(), budget, sources[world])
            groups[group][world] = {s: split_figures(answers[s], main) for s in ("id", "ood")}
            accuracy[world] = _accuracies(out, world, main, budget, sources[world])
            curves[world] = {
                name: curve_figures(rows)
                for name in answers["id"]
                if len(rows := _curves(out, world, main, name)) == len(main)
            }
        if Job(world, seeds[0], "ablation") in jobs:
            answers = _answers(out, world, seeds[:1], shown_ablations(), budget, sources[world])
            groups["ablations"][world] = {s: split_figures(answers[s], seeds[:1]) for s in ("id", "ood")}
    return {**groups, "over_optimisation": curves, "pair_accuracy": accuracy}


def _answers(
    out: Path, world: str, seeds: Sequence[int], wanted: Sequence[str], budget: Budget, sources: str
) -> dict[str, dict[str, list[Any]]]:
    """``split -> policy -> one Answers a seed``, of the ``wanted`` policies that every seed has, as now asked for."""
    found: dict[str, list[Any]] = {}
    for name in wanted:
        raw = [_stored(out, world, seed, name, budget, sources) for seed in seeds]
        if None not in raw:
            found[name] = raw
    return {s: {n: [Answers.model_validate(one[s]) for one in raw] for n, raw in found.items()} for s in ("id", "ood")}


def _stored(out: Path, world: str, seed: int, name: str, budget: Budget, sources: str) -> Any:
    """A policy's answers as now asked for; None where there are none."""
    path = out / world / f"seed-{seed}" / "answers" / f"{name}.json"
    one = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return one if one is not None and one["cell"] == Cell.fingerprint(world, seed, budget, sources) else None


def unfinished(out: Path, jobs: Sequence[Job], budget: Budget, sources: Mapping[str, str]) -> list[str]:
    """What of the plan has no answers yet: ``world seed: policies``."""
    left = []
    for job in jobs:
        wanted = (*runs_of(job.group), *dpo_of(job.group))
        names = [n for n in wanted if not _stored(out, job.world, job.seed, n, budget, sources[job.world])]
        if names:
            left.append(f"{job.world} seed {job.seed}: {', '.join(names)}")
    return left


def _curves(out: Path, world: str, seeds: Sequence[int], name: str) -> list[Any]:
    paths = [out / world / f"seed-{seed}" / "curves" / f"{name}.json" for seed in seeds]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def _accuracies(
    out: Path, world: str, seeds: Sequence[int], budget: Budget, sources: str
) -> dict[str, dict[str, float]]:
    """Share of held-out pairs that each fitted reward model ranks right by its default reading: mean, least and most.

    A length-calibrated model is not among them: it measures itself on the pairs that its curve was fitted on.
    """
    told: dict[str, list[float]] = {}
    for name in (n for n, recipe in REWARD_MODELS.items() if recipe.derivation is None):
        for seed in seeds:
            folder = out / world / f"seed-{seed}" / "models"
            mark = folder / f"{name}.made"
            made_by = Cell.digest(Cell.fingerprint(world, seed, budget, sources), lineage(name))
            if mark.exists() and mark.read_text(encoding="utf-8") == made_by:
                metrics = json.loads((folder / name / "redline.json").read_text(encoding="utf-8"))["metrics"]
                told.setdefault(name, []).append(next(iter(metrics["accuracy"].values()))["mean"])
    return {
        name: {"mean": sum(values) / len(values), "min": min(values), "max": max(values)}
        for name, values in told.items()
        if len(values) == len(seeds)
    }
