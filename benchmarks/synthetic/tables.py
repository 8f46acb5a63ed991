"""The results of ``benchmarks.claims`` as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.synthetic.statistics import BASELINES, MAIN_POLICY

# nats per response: beyond this the policy's answers are no longer sentences of the task
DIVERGED_KL = 20.0


def rendered(claims: Mapping[str, Any]) -> str:
    """All tables of ``claims.json``."""
    unfinished = claims.get("about", {}).get("unfinished", [])
    parts = [
        *([f"Not run yet: {'; '.join(unfinished)}."] if unfinished else []),
        criteria_table(claims["verdict"]),
        head_to_head({**claims["tasks"], **claims["controls"]}),
        accuracy_table(claims["pair_accuracy"]),
    ]
    for title, group in (("", "tasks"), ("control: ", "controls"), ("ablations: ", "ablations")):
        for task, splits in claims[group].items():
            for split, name in (("id", "in distribution"), ("ood", "out of distribution")):
                parts.append(policy_table(f"{title}{task}, {name}", splits[split]))
    parts.append(over_optimisation_table(claims["over_optimisation"]))
    return "\n\n".join(parts) + "\n"


def criteria_table(criteria: Mapping[str, Any]) -> str:
    """A row per criterion: its value, the required value, and whether it is met."""
    lines = ["**criteria**", "", "| criterion | value | required | met |", "|---|---|---|---|"]
    for name, criterion in criteria.items():
        value = "-" if criterion["value"] is None else f"{criterion['value']:.3f}"
        required = f"{'>=' if criterion['at_least'] else '<='} {criterion['bar']:.3f}"
        lines.append(f"| {name} | {value} | {required} | {'yes' if criterion['is_met'] else 'no'} |")
    return "\n".join(lines)


def over_optimisation_table(curves: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per task and PPO policy: the line through gold score against sqrt(KL)."""
    lines = [
        "**over-optimisation**",
        "",
        "| task | policy | gold = a + b sqrt(KL) | R² | R² of the proxy | best gold at step |",
        "|---|---|---|---|---|---|",
    ]
    for task, policies in curves.items():
        for policy, curve in policies.items():
            gold, proxy = curve["lines"]["gold"], curve["lines"]["proxy"]
            if gold is not None and proxy is not None:
                lines.append(
                    f"| {task} | {policy} | {gold['intercept']:.2f} {gold['slope']:+.2f} sqrt(KL) "
                    f"| {gold['r_squared']:.2f} | {proxy['r_squared']:.2f} | {curve['best_gold_at_step']:.0f} |"
                )
    return "\n".join(lines)


def policy_table(title: str, split: Mapping[str, Any]) -> str:
    """The policies of one split, a row each."""
    lines = [
        f"**{title}**",
        "",
        "| policy | gold | wins against supervised | wins against ppo_scalar | ties | benign refusals "
        "| harmful answered | tokens | ideal | KL |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, f in split["policies"].items():
        low, high = f["gold_interval"]
        label = f"{name} (diverged)" if f["kl"] is not None and f["kl"] > DIVERGED_KL else name
        supervised, scalar = (split["win_rates"].get(f"{name}_vs_{other}") for other in BASELINES)
        lines.append(
            f"| {label} | {f['gold']:.3f} [{low:.3f}, {high:.3f}] | {_rate(supervised)} | {_rate(scalar)} "
            f"| {'-' if scalar is None else format(scalar['ties'], '.0%')} | {f['benign_refusal_rate']:.1%} "
            f"| {f['harmful_compliance_rate']:.1%} | {f['mean_tokens']:.1f} | {f['ideal_tokens']:.1f} "
            f"| {'-' if f['kl'] is None else format(f['kl'], '.2f')} |"
        )
    return "\n".join(lines)


def head_to_head(tasks: Mapping[str, Any]) -> str:
    """The main policy against PPO with Bradley-Terry, without and with mismatched responses; a row per task."""
    lines = [
        f"**{MAIN_POLICY} against Bradley-Terry**",
        "",
        "| task | against | wins, in distribution | ties | wins, out of distribution | ties |",
        "|---|---|---|---|---|---|",
    ]
    for task, splits in tasks.items():
        for other in ("ppo_scalar", "ppo_scalar_mismatch"):
            rates = [splits[split]["win_rates"].get(f"{MAIN_POLICY}_vs_{other}") for split in ("id", "ood")]
            if any(rates):
                cells = [f"{_rate(rate)} | {'-' if rate is None else format(rate['ties'], '.0%')}" for rate in rates]
                lines.append(f"| {task} | {other} | {' | '.join(cells)} |")
    return "\n".join(lines)


def accuracy_table(tasks: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Held-out pair accuracy of every trained reward model, mean and range of the seeds; a column per task."""
    names = list(dict.fromkeys(name for accuracies in tasks.values() for name in accuracies))
    lines = [
        "**held-out pairs ranked right**",
        "",
        f"| model | {' | '.join(tasks)} |",
        "|---" * (1 + len(tasks)) + "|",
    ]
    for name in names:
        cells = [
            "{mean:.1%} ({min:.0%} to {max:.0%})".format(**accuracies[name]) if name in accuracies else "-"
            for accuracies in tasks.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rate(rate: Mapping[str, float] | None) -> str:
    if rate is None or rate["mean"] is None:
        return "-"
    return f"{rate['mean']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]"
