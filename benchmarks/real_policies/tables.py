"""The results of ``benchmarks.real_policies`` as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.real_policies.curves import Interval
from benchmarks.real_policies.metrics import METRICS
from benchmarks.real_policies.plan import METHODS

_FINAL = (
    "findings_per_100_words",
    "findings",
    "clean_share",
    "toxicity",
    "toxic_share",
    "kl",
    "words",
    "distinct_2",
    "diversity",
    "topic",
    "topic_shift",
    "fluency",
    "chrf",
)
_EQUAL_KL = ("words", "distinct_2", "topic", "topic_shift", "fluency")


def rendered(results: Mapping[str, Any]) -> str:
    """All tables of ``real_policies.json``, task by task."""
    parts = []
    for name, task in results["tasks"].items():
        seeds = f"{task['seeds']} seed{'s' if task['seeds'] > 1 else ''}"
        parts += [
            f"### {name} ({seeds}; ± is the half width of the 95 % t-interval over seeds)",
            answer_table(task),
            "After the last step:",
            final_table(task["statistics"]["final"]),
            "At equal KL to the start policy, interpolated on the curve of each run; - where a run did not get so far:",
            equal_kl_table(task["statistics"]["equal_kl"], task["metric"]),
            "The evaluators on people's rewrites (chosen) and what they rewrote (rejected):",
            known_pairs_table(task["known_pairs"]),
        ]
        if task["settings"]:
            parts.append(settings_table(task["settings"]))
    return "\n\n".join(parts) + "\n"


def summary(results: Mapping[str, Any]) -> str:
    """A row per other method: whether PPO on the seq2seq reward beats it, in each task, at equal KL / at the end."""
    tasks = results["tasks"]
    lines = [
        f"| PPO on the seq2seq reward beats (equal KL / last step) | {' | '.join(tasks)} |",
        "|---" * (1 + len(tasks)) + "|",
    ]
    others = dict.fromkeys(name for task in tasks.values() for name in task["statistics"]["against"])
    for name in others:
        found = [task["statistics"]["against"].get(name) for task in tasks.values()]
        cells = ["-" if c is None else f"{c['beats_at_equal_kl']} / {c['beats_at_end']}" for c in found]
        lines.append(f"| {METHODS[name].label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def answer_table(task: Mapping[str, Any]) -> str:
    """A row per other method: whether PPO on the seq2seq reward beats it, and the differences (seq2seq less other)."""
    metric = task["metric"]
    kept = [name for name in _EQUAL_KL if name != metric]
    heading = METRICS[metric].heading
    lines = [
        f"| PPO on the seq2seq reward beats | at equal KL | of, nats | {heading} | "
        f"{' | '.join(METRICS[name].heading for name in kept)} | after the last step | {heading} |",
        "|---" * (6 + len(kept)) + "|",
    ]
    for name, comparison in task["statistics"]["against"].items():
        equal, end = comparison["equal_kl"], comparison["at_end"]
        cells = [
            METHODS[name].label,
            comparison["beats_at_equal_kl"],
            _cell(comparison["kl"], METRICS["kl"].digits),
            *(_cell(equal.get(key), METRICS[key].digits, signed=True) for key in (metric, *kept)),
            comparison["beats_at_end"],
            _cell(end.get(metric), METRICS[metric].digits, signed=True),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def final_table(final: Mapping[str, Any]) -> str:
    """A row per method: its figures after the last step."""
    names = [name for name in _FINAL if any(name in figures for figures in final.values())]
    lines = [f"| policy | {' | '.join(METRICS[name].heading for name in names)} |", "|---" * (1 + len(names)) + "|"]
    for method, figures in final.items():
        cells = [_cell(figures.get(name), METRICS[name].digits) for name in names]
        lines.append(f"| {METHODS[method].label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def equal_kl_table(equal: Mapping[str, Any], metric: str) -> str:
    """A row per KL and method: the deciding figure and what must be kept."""
    names = [metric, *_EQUAL_KL]
    headings = " | ".join(METRICS[name].heading for name in names)
    lines = [f"| KL, nats | policy | {headings} |", "|---" * (2 + len(names)) + "|"]
    for nats, methods in equal.items():
        for method, figures in methods.items():
            cells = [_cell(figures.get(name), METRICS[name].digits) for name in names]
            lines.append(f"| {nats} | {METHODS[method].label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def known_pairs_table(figures: Mapping[str, Any]) -> str:
    """A row per evaluator: both sides of pairs whose order is known."""
    lines = [
        f"| evaluator ({figures['pairs']} pairs) | chosen | rejected | chosen better | equal | chosen worse |",
        "|---|---|---|---|---|---|",
    ]
    for name, sides in figures.items():
        if isinstance(sides, Mapping) and "chosen" in sides:
            shares = " | ".join(f"{sides[key]:.1%}" for key in ("chosen_better", "equal", "chosen_worse"))
            lines.append(f"| {name} | {sides['chosen']:.3f} | {sides['rejected']:.3f} | {shares} |")
    similar = [
        f"{heading} of a rejected text with {what} {figures[name]['own']:.2f}, with another text's "
        f"{figures[name]['other']:.2f}"
        for name, heading, what in (
            ("chrf", "chrF", "its rewrites"),
            ("topic", "cosine of the embeddings", "its rewrite"),
        )
        if name in figures
    ]
    return "\n".join([*lines, "", f"{'; '.join(similar)}."] if similar else lines)


def settings_table(settings: Mapping[str, Any]) -> str:
    """The settings of PPO that the sweep chose."""
    lines = ["| method | learning rate | KL coefficient |", "|---|---|---|"]
    lines += [
        f"| {METHODS[name].label} | {s['learning_rate']:g} | {s['kl_coefficient']:g} |" for name, s in settings.items()
    ]
    return "\n".join(lines)


def _cell(value: Sequence[float] | None, digits: int, *, signed: bool = False) -> str:
    if value is None:
        return "-"
    interval = Interval(*value)  # type: ignore[arg-type]
    mean = f"{interval.mean:{'+' if signed else ''}.{digits}f}"
    return mean if interval.high is None else f"{mean} ± {interval.high - interval.mean:.{digits}f}"
