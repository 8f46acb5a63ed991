"""Real text: pair accuracy, length, calibration, blame on the words that humans marked; then corrections and PPO.

    python -m benchmarks.real_text --data FOLDER            # one GPU, minutes; base models/smollm2
    python -m benchmarks.real_text --data FOLDER --reduced  # two CPU cores

FOLDER holds preference sets as NAME.train.jsonl.gz and NAME.test.jsonl.gz. Every stage is made once and then found
on disk, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.real_text_runs.run import FULL, KINDS, MAIN_KINDS, REDUCED, Run

if TYPE_CHECKING:
    from redline_trainer.evaluation.report import QualityReport

# what a rewriting model's blame is read by, fixed beforehand: -log pi(y_t), for its argmax copies what it is shown
_BLAME = "probability/sum"


def all_figures(run: Run, policy: bool) -> dict[str, Any]:
    """Every stage, in an order that leaves whole sections behind when it is stopped."""
    plan = run.plan
    ranking: dict[str, Any] = {}
    blame: dict[str, Any] = {test: {"base surprisal": run.surprisal(test)["spans"]} for test in plan.spans}
    for data in plan.training:
        for kind in KINDS if data in plan.relatives else MAIN_KINDS:
            folder = run.bundle(data, kind)
            for test in dict.fromkeys([data, *plan.preferences, *plan.spans]):
                report = run.quality(folder, test)
                ranking.setdefault(data, {}).setdefault(test, {})[kind] = report
                if report["spans"]:
                    blame[test][f"{data} {kind}"] = report["spans"]
        red = run.derived(data)
        for test in plan.spans:
            blame[test][f"{data} red"] = run.quality(red, test)["spans"]
    ahead = {test: _ahead(models) for test, models in blame.items()}
    for detections in [d for models in blame.values() for d in models.values()]:
        for detection in detections.values():
            detection.pop("auc_resamples", None)
    policies = judge = None
    if policy:
        from benchmarks.real_text_runs.policy import policy_figures

        policies = run.once("policies", lambda: policy_figures(run))
        scored = run.bundle(plan.judge, "scalar")
        judge = {test: run.quality(scored, test) for test in dict.fromkeys([plan.judge, *plan.preferences])}
    for data in plan.training:
        for test in plan.ranked:
            reports = {kind: run.quality(run.bundle(data, kind), test) for kind in MAIN_KINDS}
            ranking[data].setdefault(test, {}).update(reports)
    for report in [r for tests in ranking.values() for kinds in tests.values() for r in kinds.values()]:
        report["spans"] = {}  # told as blame
    return {"ranking": ranking, "blame": blame, "ahead": ahead, "policies": policies, "judge": judge}


def _ahead(models: dict[str, Any]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """By how much each seq2seq model's area is above every other model's, paired: difference, low, high."""
    from redline_trainer.evaluation.error_spans import SpanDetection, auc_difference

    told = {
        name: SpanDetection.model_validate(specs.get(_BLAME) or next(iter(specs.values())))
        for name, specs in models.items()
    }
    mine = [name for name in told if name.endswith((" seq2seq", " published"))]
    others = [name for name in told if name not in mine]
    return {name: {other: auc_difference(told[name], told[other]) for other in others} for name in mine}


def reliability_of(figures: Mapping[str, Any], data: str) -> dict[str, QualityReport]:
    """The reports of the models fitted on ``data``, on its own test pairs."""
    from redline_trainer.evaluation.report import QualityReport

    return {kind: QualityReport.model_validate(r) for kind, r in figures["ranking"][data][data].items()}


def rendered(figures: dict[str, Any]) -> str:
    """The figures as Markdown tables."""
    lines = [
        "| fitted on | tested on | model | pairs right | longer wins | corr. with length | after calibration | ECE |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for data, tests in figures["ranking"].items():
        for test, kinds in tests.items():
            for kind, r in kinds.items():
                a = r["accuracy"]
                lines.append(
                    f"| {data} | {test} | {kind} | {a['mean']:.1%} [{a['low']:.1%}, {a['high']:.1%}] of {a['pairs']} "
                    f"| {r['longer_wins']:.1%} | {r['length_correlation']:+.2f} "
                    f"| {r['length_correlation_calibrated']:+.2f} | {r['expected_calibration_error']:.3f} |"
                )
    lines += [
        "",
        "| errors marked in | error score from | mode/aggregate | AUC | average precision | marked share |",
        "|---|---|---|---|---|---|",
    ]
    for test, models in figures["blame"].items():
        for model, specs in models.items():
            for spec, d in specs.items():
                if model == "base surprisal" and not spec.startswith("probability"):
                    continue
                lines.append(
                    f"| {test} | {model} | {spec} | {d['auc']:.3f} [{d['auc_low']:.3f}, {d['auc_high']:.3f}] "
                    f"| {d['average_precision']:.3f} [{d['average_precision_low']:.3f}, "
                    f"{d['average_precision_high']:.3f}] | {d['marked_share']:.3f} |"
                )
    lines += ["", "| errors marked in | model | against | AUC difference |", "|---|---|---|---|"]
    for test, models in figures["ahead"].items():
        for model, others in models.items():
            for other, (ahead, low, high) in others.items():
                lines.append(f"| {test} | {model} | {other} | {ahead:+.3f} [{low:+.3f}, {high:+.3f}] |")
    if figures["judge"]:
        lines += ["", "| evaluation model tested on | pairs right | corr. with length |", "|---|---|---|"]
        for test, r in figures["judge"].items():
            a = r["accuracy"]
            lines.append(
                f"| {test} | {a['mean']:.1%} [{a['low']:.1%}, {a['high']:.1%}] | {r['length_correlation']:+.2f} |"
            )
    if figures["policies"]:
        lines += [
            "",
            "| policy | wins against the base | score by the evaluation model | tokens | KL |",
            "|---|---|---|---|---|",
        ]
        for name, f in figures["policies"]["answers"].items():
            wins = f["wins_against_base"]
            told = "-" if wins is None else f"{wins['mean']:.1%} [{wins['low']:.1%}, {wins['high']:.1%}]"
            kl = "-" if f["kl"] is None else f"{f['kl']:.2f}"
            lines.append(f"| {name} | {told} | {f['score']:+.3f} | {f['tokens']:.1f} | {kl} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("models/smollm2"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="default: runs/real_text, reduced: runs/real_text_reduced")
    parser.add_argument("--reduced", action="store_true", help="few pairs and few steps, for a CPU")
    parser.add_argument("--no-policy", action="store_true", help="leave corrections, best-of-n and PPO out")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import torch
    from transformers.utils import logging as transformers_logging

    from benchmarks.synthetic.training import write_json
    from redline_trainer.evaluation.report import plot_reliability

    transformers_logging.disable_progress_bar()
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    plan = REDUCED if args.reduced else FULL
    run = Run(
        args.out or Path(f"runs/real_text{'_reduced' if args.reduced else ''}"),
        args.base,
        args.data,
        plan,
        args.seed,
        device,
    )
    run.claim()
    figures = all_figures(run, not args.no_policy)
    figures["about"] = {
        "command": f"python -m benchmarks.real_text --data FOLDER{' --reduced' if args.reduced else ''}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {device}",
        "seed": args.seed,
        "plan": asdict(plan),
    }
    write_json(run.out / "real_text.json", figures)
    plot_reliability(reliability_of(figures, plan.training[1]), run.out / "reliability.png")
    text = rendered(figures)
    (run.out / "real_text.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"wrote {run.out / 'real_text.json'}, real_text.md and reliability.png")


if __name__ == "__main__":
    main()
