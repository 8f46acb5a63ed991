"""Collects the figures of a run and renders their tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.real_rewards.plan import ENTRIES, MAIN_ENTRY, Part
from redline.benchmark.results import difference

_MEASURES = {"localisation": "auc", "ranking": "accuracy", "ranking_by_mean": "accuracy"}
_COLUMNS = ("pooled_auc", "precision", "detection")


def collected(figures: Mapping[str, Mapping[str, Any]], probes: Mapping[str, Any] | None) -> dict[str, Any]:
    """The stored results of one part of one set: figures and, for each entry, the paired difference to the main entry.

    Args:
        figures: of each entry, with the values of single responses, which are left out here.
    """
    main = figures.get(MAIN_ENTRY, {})
    entries: dict[str, Any] = {}
    for name, tasks in figures.items():
        entries[name] = {}
        for task, stored in tasks.items():
            kept = {key: stored[key] for key in ("counts", "figures")}
            if name != MAIN_ENTRY and task in main:
                found = difference(main[task], stored, _MEASURES[task])
                kept["main_minus_this"] = None if found is None else found._asdict()
            entries[name][task] = kept
    first = next(iter(figures.values()), {})
    baselines = {task: stored["baselines"] for task, stored in first.items()}
    return {"entries": entries, "baselines": baselines, "probes": probes}


def rendered(results: Mapping[str, Any]) -> str:
    """All tables: for each set and part the entries, then the probes of the seq2seq model."""
    blocks = []
    for name, parts in results["sets"].items():
        for part, found in parts.items():
            blocks += [_set_table(name, part, found)]
            if found["probes"]:
                blocks += [_context_line(found["probes"]["context"]), _truncation_line(found["probes"]["truncation"])]
    names = list(results["sets"])
    for part in dict.fromkeys(part for parts in results["sets"].values() for part in parts):
        if len(names) > 1 and all(part in results["sets"][name] for name in names):
            blocks.append(f"Mean over {', '.join(names)}, {part} part:\n\n{_means_table(results, names, part)}")
    return "\n\n".join(blocks) + "\n"


def _set_table(name: str, part: Part, found: Mapping[str, Any]) -> str:
    counts: dict[str, Any] = {}
    for tasks in found["entries"].values():
        for task, stored in tasks.items():
            counts.setdefault(task, stored["counts"])
    lines = [
        f"**`{name}`, {part} part** ({_size(counts)})",
        "",
        "| scorer | AUC within responses | seq2seq minus this | pooled AUC | precision | detection "
        "| pairs ranked right | by the mean |",
        "|---" * 8 + "|",
    ]
    for entry, tasks in found["entries"].items():
        lines.append(f"| {ENTRIES[entry].label} | {_row(*(tasks.get(task) for task in _MEASURES))} |")
    baselines = found["baselines"]
    for task in baselines:
        for label, figures in baselines[task].items():
            if task != "ranking_by_mean":
                lines.append(f"| {label} | {_row(*({'figures': figures} if task == t else None for t in _MEASURES))} |")
    return "\n".join(lines)


def _size(counts: Mapping[str, Mapping[str, int]]) -> str:
    parts = []
    if "localisation" in counts:
        found = counts["localisation"]
        parts.append(f"{found['responses']:,} responses, {found['words']:,} words, {found['marked_words']:,} marked")
    if "ranking" in counts:
        parts.append(f"{counts['ranking']['comparisons']:,} pairs")
    return "; ".join(parts)


def _row(
    localisation: Mapping[str, Any] | None, ranking: Mapping[str, Any] | None, by_mean: Mapping[str, Any] | None
) -> str:
    figures = localisation["figures"] if localisation else {}
    minus = (localisation or {}).get("main_minus_this")
    cells = [_interval(figures.get("auc")), _interval(minus, "+.3f")]
    cells += [f"{figures[key]['mean']:.3f}" if key in figures else "-" for key in _COLUMNS]
    cells += [_interval(found["figures"].get("accuracy") if found else None) for found in (ranking, by_mean)]
    return " | ".join(cells)


def _interval(figure: Mapping[str, Any] | None, form: str = ".3f") -> str:
    if figure is None:
        return "-"
    return f"{figure['mean']:{form}} [{figure['low']:{form}}, {figure['high']:{form}}]"


def _context_line(context: Mapping[str, Any] | None) -> str:
    if context is None:
        return "No other response fits into the context."
    rows = ["| in the context | AUC within responses (tokens) | pairs ranked right |", "|---|---|---|"]
    for key, label in (("own", "the response"), ("mismatched", "another response"), ("none", "no response")):
        if context.get(key):
            rows.append(f"| {label} | {_interval(context[key]['auc'])} | {_interval(context[key]['accuracy'])} |")
    heading = (
        f"What the seq2seq model reads, by `logprob`; correlation of own and another {context['correlation']:.2f}:"
    )
    return "\n".join([heading, "", *rows])


def _truncation_line(truncation: Mapping[str, Any]) -> str:
    rows = ["| mode/aggregate | by the score |", "|---|---|"]
    rows += [f"| `{name}` | {_interval(probe['score'])} |" for name, probe in truncation.items() if probe]
    return "\n".join(["Whole responses that outscore their own beginnings:", "", *rows])


def _means_table(results: Mapping[str, Any], sets: Sequence[str], part: Part) -> str:
    """Localisation and ranking of each entry, averaged over ``sets``: what the rule of decision 0017 compares."""
    lines = ["| scorer | AUC within responses | pairs ranked right | by the mean |", "|---" * 4 + "|"]
    for name, entry in ENTRIES.items():
        found = [results["sets"].get(s, {}).get(part, {}).get("entries", {}).get(name) for s in sets]
        if all(found):
            cells = []
            for task, measure in _MEASURES.items():
                means = [f[task]["figures"][measure]["mean"] for f in found if f and task in f]
                cells.append(f"{sum(means) / len(means):.3f}" if len(means) == len(sets) else "-")
            lines.append(f"| {entry.label} | {' | '.join(cells)} |")
    return "\n".join(lines)
