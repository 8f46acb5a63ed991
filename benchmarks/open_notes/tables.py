"""Collects the stored results of the open task and renders their tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.open_notes.plan import DERIVED, FINE_TUNED, MAIN_METHOD, PPO_RUNS, REWARD_MODELS
from benchmarks.real_policies.curves import answer, t_interval

METRICS = ("faults", "gold", "own_content", "content_distance", "length", "distinct_2grams", "kl")
_LEVELS = {
    "nothing": "nothing (one constant prompt)",
    "topic": "a person and a place",
    "most": "persons and things",
    "all": "every word that is free",
}


def collected(out: Path, levels: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """``levels[level]``: ``models`` and ``policies``, each a list of the stored figures of one name, by seed."""
    return {
        "levels": {
            level: {
                group: _by_name([(seed, out / level / f"seed-{seed}" / "figures" / group) for seed in seeds], names)
                for group, names in (
                    ("models", (*REWARD_MODELS, *DERIVED)),
                    ("policies", ("start", *FINE_TUNED, *PPO_RUNS)),
                )
            }
            for level in levels
        }
    }


def _by_name(folders: Sequence[tuple[int, Path]], names: Any) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        for seed, folder in folders:
            path = folder / f"{name}.json"
            if path.exists():
                found.setdefault(name, []).append({"seed": seed, **json.loads(path.read_text(encoding="utf-8"))})
    return found


def rendered(results: Mapping[str, Any]) -> str:
    """The tables in Markdown."""
    blocks = []
    for level, groups in results["levels"].items():
        if groups["policies"]:
            blocks.append(f"**policies; the prompt decides {_LEVELS[level]}**\n\n{_policy_table(groups['policies'])}")
        if groups["models"]:
            blocks.append(f"**reward models; the prompt decides {_LEVELS[level]}**\n\n{_model_table(groups['models'])}")
    return "\n\n".join(blocks) + "\n"


def _number(values: Sequence[float]) -> str:
    interval = t_interval(values)
    if interval.low is None or interval.high is None:
        return f"{interval.mean:.2f}"
    return f"{interval.mean:.2f} ± {interval.high - interval.mean:.2f}"


def _policy_table(policies: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    header = "| policy | faults | gold | own content | content distance | length | distinct 2-grams | KL | seeds |"
    lines = [f"{header} fewer faults with {MAIN_METHOD} |", "|---" * 10 + "|"]
    for name, runs in policies.items():
        cells = [_number([run["final"][metric] for run in runs]) for metric in METRICS]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {len(runs)} | {_has_fewer_faults(policies, name)} |")
    return "\n".join(lines)


def _has_fewer_faults(policies: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> str:
    """Whether the main method has fewer faults than ``name``, by the t-interval of the differences of equal seeds."""
    main = {run["seed"]: run["final"]["faults"] for run in policies.get(MAIN_METHOD, ())}
    differences = [
        main[run["seed"]] - run["final"]["faults"]
        for run in policies[name]
        if name != MAIN_METHOD and run["seed"] in main
    ]
    return answer(t_interval(differences)) if differences else ""


def _model_table(models: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    modes = list(dict.fromkeys(mode for runs in models.values() for run in runs for mode in run["within"]))
    lines = [
        "Mean within-response area under the ROC curve by mode, and what seq2seq models read in the context:",
        "",
        "| reward model | "
        + " | ".join(f"`{mode.split('/')[0]}`" for mode in modes)
        + " | own | another | none | seeds |",
        "|---" * (len(modes) + 5) + "|",
    ]
    for name, runs in models.items():
        cells = [
            _number([run["within"][mode]["mean"] for run in runs]) if mode in runs[0]["within"] else "-"
            for mode in modes
        ]
        for context in ("own", "mismatched", "none"):
            found = [(run.get("source_dependence") or {}).get(context) for run in runs]
            cells.append(_number([f["auc"]["mean"] for f in found if f]) if all(found) else "-")
        lines.append(f"| `{name}` | {' | '.join(cells)} | {len(runs)} |")
    return "\n".join(lines)
