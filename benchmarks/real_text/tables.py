"""The results of ``benchmarks.real_text`` as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def rendered(figures: Mapping[str, Any]) -> str:
    """All tables of ``real_text.json``."""
    tables = [ranking_table(figures["ranking"]), error_table(figures["blame"]), auc_difference_table(figures["ahead"])]
    if figures["judge"]:
        tables.append(evaluation_model_table(figures["judge"]))
    if figures["policies"]:
        tables.append(policy_table(figures["policies"]["answers"]))
    return "\n\n".join(tables) + "\n"


def ranking_table(ranking: Mapping[str, Any]) -> str:
    """A row per training set, test set and kind of reward model: how it ranks pairs."""
    lines = [
        "| fitted on | tested on | model | pairs right | longer wins | corr. with length | after calibration | ECE |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for data, tests in ranking.items():
        for test, kinds in tests.items():
            for kind, report in kinds.items():
                lines.append(
                    f"| {data} | {test} | {kind} | {_interval(report['accuracy'])} of {report['accuracy']['pairs']} "
                    f"| {report['longer_wins']:.1%} | {report['length_correlation']:+.2f} "
                    f"| {report['length_correlation_calibrated']:+.2f} | {report['expected_calibration_error']:.3f} |"
                )
    return "\n".join(lines)


def error_table(error_scores: Mapping[str, Any]) -> str:
    """A row per test set, model and mode: how well its token rewards find the marked errors."""
    lines = [
        "| errors marked in | error score from | mode/aggregate | AUC | average precision | marked share |",
        "|---|---|---|---|---|---|",
    ]
    for test, models in error_scores.items():
        for model, by_mode in models.items():
            for mode, d in by_mode.items():
                if model == "base surprisal" and not mode.startswith("probability"):
                    continue
                lines.append(
                    f"| {test} | {model} | {mode} | {d['auc']:.3f} [{d['auc_low']:.3f}, {d['auc_high']:.3f}] "
                    f"| {d['average_precision']:.3f} [{d['average_precision_low']:.3f}, "
                    f"{d['average_precision_high']:.3f}] | {d['marked_share']:.3f} |"
                )
    return "\n".join(lines)


def auc_difference_table(differences: Mapping[str, Any]) -> str:
    """A row per test set, seq2seq model and other model: the difference of their AUCs, with its interval."""
    lines = ["| errors marked in | model | against | AUC difference |", "|---|---|---|---|"]
    for test, models in differences.items():
        for model, others in models.items():
            for other, (difference, low, high) in others.items():
                lines.append(f"| {test} | {model} | {other} | {difference:+.3f} [{low:+.3f}, {high:+.3f}] |")
    return "\n".join(lines)


def evaluation_model_table(reports: Mapping[str, Any]) -> str:
    """A row per test set: how the model that scores the policies' answers ranks its pairs."""
    lines = ["| evaluation model tested on | pairs right | corr. with length |", "|---|---|---|"]
    for test, report in reports.items():
        lines.append(f"| {test} | {_interval(report['accuracy'])} | {report['length_correlation']:+.2f} |")
    return "\n".join(lines)


def policy_table(policies: Mapping[str, Any]) -> str:
    """A row per policy: wins against the base model's answers, score, length and KL."""
    lines = [
        "| policy | wins against the base | score by the evaluation model | tokens | KL |",
        "|---|---|---|---|---|",
    ]
    for name, f in policies.items():
        wins = "-" if f["wins_against_base"] is None else _interval(f["wins_against_base"])
        kl = "-" if f["kl"] is None else f"{f['kl']:.2f}"
        lines.append(f"| {name} | {wins} | {f['score']:+.3f} | {f['tokens']:.1f} | {kl} |")
    return "\n".join(lines)


def _interval(rate: Mapping[str, float]) -> str:
    return f"{rate['mean']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]"
