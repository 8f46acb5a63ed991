"""The results of ``benchmarks.serving`` as tables and as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

# the backends that others are compared with, as far as they run
_REFERENCES = ("reference_server", "transformers_padded")


def print_table(report: dict[str, Any]) -> None:
    """Print one table per workload; the last columns are ratios to the reference backends."""
    console = Console(width=132)
    for name, workload in report["workloads"].items():
        table = Table(
            title=f"{name}: {workload['about']} ({workload['scored_tokens']} tokens scored)", title_justify="left"
        )
        for column in ("backend", "tokens/s", "requests/s", "p50 ms", "p95 ms", "p99 ms", "peak MB", "of ceiling"):
            table.add_column(column, justify="left" if column == "backend" else "right")
        backends = workload["backends"]
        for other in _REFERENCES:
            if other in backends:
                table.add_column(f"x {other}", justify="right")
        for backend, row in backends.items():
            ratios = [
                f"{row['tokens_per_s'] / backends[other]['tokens_per_s']:.2f}"
                for other in _REFERENCES
                if other in backends
            ]
            table.add_row(
                backend,
                f"{row['tokens_per_s']:.1f}",
                f"{row['requests_per_s']:.2f}",
                *(f"{row[key]:.0f}" for key in ("p50_ms", "p95_ms", "p99_ms", "peak_mb")),
                f"{row['share_of_ceiling']:.2f}",
                *ratios,
            )
        table.add_row("ceiling", f"{workload['ceiling_tokens_per_s']:.1f}", "", "", "", "", "", "1.00")
        console.print(table)
        for backend, exact in workload["exactness"].items():
            if exact["different"]:
                print(
                    f"  {backend}: paper rewards of {exact['different']} of {exact['items']} items differ from "
                    f"those of plain transformers, {exact['unexplained_by_a_tie']} of them without a tie below 1e-4"
                )
    print(
        f"largest difference between a score alone and in a batch: {report['score_difference_alone_or_together']:.1e}"
    )
    for key, values in report["growth"].items():
        print(f"{key.replace('_', ' ')}: " + ", ".join(f"{n}: {v:.3g}" for n, v in values.items()))


def write_plot(report: dict[str, Any], path: Path) -> None:
    """Plot throughput by workload, and how seconds grow with lengths, group sizes and callers."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    growth = report["growth"]
    figure, axes = plt.subplots(1, 4, figsize=(19, 4.4), width_ratios=[2.6, 1, 1, 1], layout="constrained")
    names = list(report["workloads"])
    backends = list(report["workloads"][names[0]]["backends"])
    for n, backend in enumerate(backends):
        rates = [report["workloads"][w]["backends"][backend]["tokens_per_s"] for w in names]
        positions = [i + (n - (len(backends) - 1) / 2) * 0.8 / len(backends) for i in range(len(names))]
        axes[0].bar(positions, rates, 0.8 / len(backends), label=backend)
    for i, w in enumerate(names):
        ceiling = report["workloads"][w]["ceiling_tokens_per_s"]
        axes[0].hlines(ceiling, i - 0.42, i + 0.42, color="black", linestyle="--", label="ceiling" if i == 0 else None)
    axes[0].set_xticks(range(len(names)), names)
    axes[0].set_ylabel("scored tokens per second")
    axes[0].set_title(f"{report['weights']}, {report['machine']['cores']} cores")
    axes[0].legend(fontsize=8)
    for axis, key, label in zip(
        axes[1:],
        ("seconds_by_response_tokens", "seconds_by_group_size", "seconds_by_callers"),
        ("response tokens", "responses per prompt", "callers"),
        strict=True,
    ):
        axis.plot([int(n) for n in growth[key]], list(growth[key].values()), marker="o")
        axis.set_xlabel(label)
        axis.set_ylabel("seconds")
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def markdown(report: dict[str, Any]) -> str:
    """The results as the tables of docs/results/performance.md."""
    names = list(next(iter(report["workloads"].values()))["backends"])
    lines = ["| workload | " + " | ".join(names) + " | ceiling |", "|---" * (len(names) + 2) + "|"]
    for name, workload in report["workloads"].items():
        rows = workload["backends"]
        cells = [f"{rows[c]['tokens_per_s']:.0f}" for c in names]
        lines.append(f"| `{name}` | " + " | ".join(cells) + f" | {workload['ceiling_tokens_per_s']:.0f} |")
    lines += [
        "",
        "| workload | x reference | x padded | HTTP / engine | of ceiling | p95 ms | reference p50 ms |",
        "|---" * 7 + "|",
    ]
    for name, workload in report["workloads"].items():
        rows = workload["backends"]
        http, engine = rows["redline_http"], rows["redline_engine"]
        reference, padded = rows["reference_server"], rows["transformers_padded"]
        lines.append(
            f"| `{name}` | {http['tokens_per_s'] / reference['tokens_per_s']:.2f} "
            f"| {http['tokens_per_s'] / padded['tokens_per_s']:.2f} "
            f"| {http['tokens_per_s'] / engine['tokens_per_s']:.2f} | {engine['share_of_ceiling']:.2f} "
            f"| {http['p95_ms']:.0f} | {reference['p50_ms']:.0f} |"
        )
    peaks = {c: max(w["backends"][c]["peak_mb"] for w in report["workloads"].values()) for c in names}
    lines += ["", "Peak memory, MiB: " + ", ".join(f"{c} {peak:.0f}" for c, peak in peaks.items()) + "."]
    return "\n".join(lines)


if __name__ == "__main__":
    import json
    import sys

    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
