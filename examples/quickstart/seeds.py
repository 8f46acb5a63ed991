"""``make seeds``: runs the demo with several seeds and reports mean and range of its figures."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FIGURES = ("gold", "benign_refusal_rate", "harmful_compliance_rate", "mean_tokens", "win_rate_vs_supervised")


def spread(figures_of: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """For every policy and figure: the value of each seed, mean, smallest and largest."""
    policies: dict[str, Any] = {}
    for name in figures_of[min(figures_of)]:
        policies[name] = {}
        for figure in (*FIGURES, "ideal_tokens"):
            # the policy that all others are compared with has no win rate
            values = [figures_of[seed][name].get(figure) for seed in sorted(figures_of)]
            if None not in values:
                policies[name][figure] = {
                    "values": values,
                    "mean": statistics.fmean(values),
                    "min": min(values),
                    "max": max(values),
                }
    return policies


def summarise(reports: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The spread of the figures of the reports, their times, and whether the scalar policy collapsed."""
    policies = spread({seed: report["policies"] for seed, report in reports.items()})
    summary: dict[str, Any] = {"seeds": sorted(reports), "policies": policies}
    summary["seconds"] = [reports[seed]["seconds"]["total"] for seed in sorted(reports)]
    summary["scalar_collapsed"] = [reports[seed]["scalar_collapsed"] for seed in sorted(reports)]
    return summary


def table(summary: Mapping[str, Any]) -> str:
    """The summary as a Markdown table: mean, smallest and largest of the seeds."""
    head = "| policy | " + " | ".join(f.replace("_", " ") for f in (*FIGURES, "ideal_tokens")) + " |"
    lines = [head, "|---" * (len(FIGURES) + 2) + "|"]
    for name, figures in summary["policies"].items():
        cells = []
        for figure in (*FIGURES, "ideal_tokens"):
            values = figures.get(figure)
            cells.append("" if values is None else f"{values['mean']:.3f} [{values['min']:.3f}, {values['max']:.3f}]")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"), help="folder of the demos, one per seed")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
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
    print(f"seconds per seed: {', '.join(f'{s:.0f}' for s in summary['seconds'])}")
    print(f"wrote quickstart.json and quickstart.md to {args.out}")


if __name__ == "__main__":
    main()
