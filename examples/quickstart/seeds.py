"""``make seeds``: the demo over several seeds, and the spread of what its reports say."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FIGURES = ("gold", "benign_refusal_rate", "harmful_compliance_rate", "mean_tokens", "win_rate_vs_supervised")


def spread(judged: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Of every policy and figure: the value of each seed, mean, least and largest."""
    policies: dict[str, Any] = {}
    for name in judged[min(judged)]:
        policies[name] = {}
        for figure in (*FIGURES, "ideal_tokens"):
            # the policy that others are compared with has no win rate
            values = [judged[seed][name].get(figure) for seed in sorted(judged)]
            if None not in values:
                policies[name][figure] = {
                    "values": values,
                    "mean": statistics.fmean(values),
                    "min": min(values),
                    "max": max(values),
                }
    return policies


def summarise(reports: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The spread of what the reports say, and what else they tell."""
    policies = spread({seed: report["policies"] for seed, report in reports.items()})
    summary: dict[str, Any] = {"seeds": sorted(reports), "policies": policies}
    summary["seconds"] = [reports[seed]["seconds"]["total"] for seed in sorted(reports)]
    summary["scalar_collapsed"] = [reports[seed]["scalar_collapsed"] for seed in sorted(reports)]
    return summary


def table(summary: dict[str, Any]) -> str:
    """The summary as Markdown: mean, and the least and largest of the seeds."""
    head = "| policy | " + " | ".join(f.replace("_", " ") for f in (*FIGURES, "ideal_tokens")) + " |"
    lines = [head, "|---" * (len(FIGURES) + 2) + "|"]
    for name, figures in summary["policies"].items():
        cells = []
        for figure in (*FIGURES, "ideal_tokens"):
            told = figures.get(figure)
            cells.append("" if told is None else f"{told['mean']:.3f} [{told['min']:.3f}, {told['max']:.3f}]")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    reports: dict[int, dict[str, Any]] = {}
    for seed in range(args.seeds):
        folder = args.out / f"seed-{seed}"
        demo = [sys.executable, str(Path(__file__).with_name("demo.py")), "--out", str(folder), "--seed", str(seed)]
        subprocess.run(demo, check=True)
        reports[seed] = json.loads((folder / "report.json").read_text())
    summary = summarise(reports)
    summary["about"] = {
        "command": "make seeds",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }
    (args.out / "quickstart.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    text = table(summary)
    (args.out / "quickstart.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    print(f"seconds: {', '.join(f'{s:.0f}' for s in summary['seconds'])}; wrote {args.out / 'quickstart.json'}")


if __name__ == "__main__":
    main()
