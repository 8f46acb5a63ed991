"""The figures of ``benchmarks.overload`` as tables of at most 80 columns."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.speed.load_results import KINDS

# Above these a result is marked as unreliable: p95 of the generator's lateness as a share of the deadline, change of
# the capacity as a share of its mean, cores used by other processes.
_LATE, _DRIFT, _OTHERS = 0.1, 0.25, 0.5


def _ms(found: dict[str, float] | None) -> str:
    return "-" if found is None else f"{found['p95_ms']:.0f}"


def load_table(variants: dict[str, Any]) -> Table:
    """One row per load; shares are of the items that were due, goodput is a share of the capacity."""
    table = Table(
        title="Overload: goodput is items scored in time, as a share of the capacity", title_justify="left", box=None
    )
    table.add_column("requests")
    for column in ("load", "goodput", "in time", "late", "refused", "other", "p95 ms", "refused p95"):
        table.add_column(column, justify="right")
    for name, variant in variants.items():
        for times, run in variant["loads"].items():
            shares = run["shares"]
            cells = [shares[kind] for kind in KINDS[:3]]
            percents = [f"{100 * share:.0f} %" for share in (*cells, sum(shares.values()) - sum(cells))]
            table.add_row(
                name, f"{times}x", f"{run['goodput']:.2f}", *percents, _ms(run["scored"]), _ms(run["refused"])
            )
    return table


def notes(variants: dict[str, Any]) -> list[str]:
    """Lines on each variant and each of its loads: capacity, answers, and why a result is unreliable."""
    lines = []
    for name, variant in variants.items():
        count = variant["items_a_request"]
        items = ("1 item" if count == 1 else f"{count} items") + " of one prompt" * variant["has_one_prompt"]
        tokens, deadline = variant["tokens_an_item"], variant["deadline_s"]
        lines.append(f"{name}: {items} per request, {tokens:.0f} tokens per item, in time within {deadline:g} s")
        for times, run in variant["loads"].items():
            capacity, cores, late = run["capacity_items_per_s"], run["cores"], run["sent_late"]
            before, after = capacity["before"], capacity["after"]
            lines.append(
                f"  {times}x: {before:.0f} items/s before, {after:.0f} after, {run['connections']} connections"
            )
            lines += [f"      {number} x {answer}" for answer, number in run["answers"].items()]
            if abs(before - after) > _DRIFT * capacity["mean"] or cores["others"] > _OTHERS:
                lines.append(
                    f"      UNRELIABLE: the capacity changed during the run, or other processes took "
                    f"{cores['others']:.1f} cores"
                )
            if late is not None and late["p95_ms"] > 1000 * _LATE * deadline:
                lines.append(f"      UNRELIABLE: requests were sent late, p95 {late['p95_ms']:.0f} ms")
    return lines


def print_overload(report: dict[str, Any]) -> None:
    """Print the three parts of ``measure_overload``."""
    console = Console(width=80, highlight=False)
    variants = report["overload"]["variants"]
    console.print(load_table(variants))
    for line in notes(variants):
        console.print(line)
    cores = [run["cores"] for variant in variants.values() for run in variant["loads"].values()]
    most = {name: max(use[name] for use in cores) for name in ("service", "generator", "others")}
    console.print("cores at most: " + ", ".join(f"{name} {used:.2f}" for name, used in most.items()) + "\n")
    small = report["sequential"]
    took, model, beyond = small["latency"], small["model"], small["beyond_the_model"]
    console.print(f"Small requests one after the other on one connection ({small['requests']}):")
    console.print(
        f"  p50 {took['p50_ms']:.1f} ms, of which the model {model['p50_ms']:.1f} ms; p95 {took['p95_ms']:.1f} ms"
    )
    console.print(f"  beyond the model's time: p50 {beyond['p50_ms']:.1f} ms, p95 {beyond['p95_ms']:.1f} ms\n")
    two = report["short_beside_long"]
    alone, beside, batch = two["p95_alone_ms"], two["p95_beside_ms"], two["batch_ms"]
    tokens = two["tokens_a_long_item"]
    console.print(f"Short items beside another caller's long ones ({tokens:.0f} tokens, 8 in flight):")
    console.print(
        f"  p95 {beside:.1f} ms, alone {alone:.1f} ms; batch p50 {batch['p50']:.1f}, p95 {batch['p95']:.1f} ms"
    )
    verdict = "within" if two["is_within_bound"] else "NOT within"
    console.print(f"  {verdict} three times the p95 alone plus one batch: {two['bound_ms']:.1f} ms")
