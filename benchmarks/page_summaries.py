"""The short tables at the top of the results pages, and the overload table, in Markdown.

Each function reads the JSON of one benchmark and nothing else, so a page opens with figures that a command rebuilds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ERROR_SCORE = "probability/sum"


def claims_summary(claims: Mapping[str, Any]) -> str:
    """One row per task: win rates, gold scores and refusals; then how many criteria are met and which are not."""
    lines = [
        "| task | wins against Bradley-Terry | ... with mismatched responses | gold score | harmless prompts refused |",
        "|---|---|---|---|---|",
    ]
    for task, splits in claims["tasks"].items():
        wins = [
            " / ".join(
                f"{splits[split]['win_rates'][f'ppo_seq2seq_vs_{other}']['mean']:.1%}" for split in ("id", "ood")
            )
            for other in ("ppo_scalar", "ppo_scalar_mismatch")
        ]
        policies = splits["id"]["policies"]
        start, scalar, seq2seq = (policies[name] for name in ("supervised", "ppo_scalar", "ppo_seq2seq"))
        lines.append(
            f"| `{task}` | {wins[0]} | {wins[1]} "
            f"| {start['gold']:.2f}, {scalar['gold']:.2f}, {seq2seq['gold']:.2f} "
            f"| {start['benign_refusal_rate']:.0%}, {scalar['benign_refusal_rate']:.0%}, "
            f"{seq2seq['benign_refusal_rate']:.0%} |"
        )
    criteria = claims["verdict"]
    missed = [
        f"{name} ({criterion['value']:.3f}, required {'>=' if criterion['at_least'] else '<='} {criterion['bar']:.3f})"
        for name, criterion in criteria.items()
        if not criterion["is_met"]
    ]
    met = f"Criteria met: {len(criteria) - len(missed)} of {len(criteria)}."
    return "\n".join([*lines, "", f"{met} Not met: {'; '.join(missed)}." if missed else met])


def real_text_summary(figures: Mapping[str, Any]) -> str:
    """One row per data set with marked errors: area under the ROC curve of each way to find them."""
    data = figures["about"]["plan"]["training"][0]
    columns = {"base surprisal": "surprisal of the base model"}
    columns |= {f"{data} {kind}": f"`{kind}`" for kind in ("seq2seq", "published", "dpo", "red")}
    lines = [f"| errors marked in | {' | '.join(columns.values())} |", "|---" * (1 + len(columns)) + "|"]
    for test, models in figures["blame"].items():
        cells = []
        for name in columns:
            by_mode = models[name]
            best = by_mode.get(_ERROR_SCORE) or next(iter(by_mode.values()))
            cells.append(f"{best['auc']:.2f}")
        lines.append(f"| `{test}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def overload_table(report: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """Goodput and time to refusal by load, with the goodput of the earlier code; then capacity and latency."""
    lines = ["| items per request | load | goodput | refused within (p95) | goodput before |", "|---|---|---|---|---|"]
    variants = report["overload"]["variants"]
    for name, variant in variants.items():
        for load, figures in variant["loads"].items():
            earlier = before["overload"]["variants"][name]["loads"][load]
            lines.append(
                f"| {variant['items_a_request']} | {load}x | {figures['goodput']:.2f} "
                f"| {figures['refused']['p95_ms']:.0f} ms | {earlier['goodput']:.2f} |"
            )
    late = max(f["shares"]["late"] for variant in variants.values() for f in variant["loads"].values())
    capacity, capacity_before = (_capacity(r["overload"]["variants"]["single"]["loads"]) for r in (report, before))
    latency, latency_before = (r["sequential"]["beyond_the_model"]["p50_ms"] for r in (report, before))
    beside = report["short_beside_long"]
    return "\n".join(
        [
            *lines,
            "",
            f"- Items scored after their deadline: at most {late:.0%} in any row.",
            f"- Capacity for single items: {capacity:.0f} items/s (before: {capacity_before:.0f}).",
            "- Time of a small request beyond the model's own, one request after the other on one connection: "
            f"{latency:.1f} ms (before: {latency_before:.0f} ms).",
            "- One caller's short items beside another caller's requests of eight long items: p95 "
            f"{beside['p95_beside_ms']:.0f} ms;",
            f"  three times the p95 without the other caller, plus one batch, is {beside['bound_ms']:.0f} ms.",
        ]
    )


def _capacity(loads: Mapping[str, Any]) -> float:
    means: list[float] = [figures["capacity_items_per_s"]["mean"] for figures in loads.values()]
    return sum(means) / len(means)
