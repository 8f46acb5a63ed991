"""Compares the speed of this checkout with another version of Redline: serving, training and PPO.

    python -m benchmarks.versions --against CHECKOUT [--quick]

The two take turns on the same weights and texts, and each begins every second turn. A row is this version's rate
divided by the other's, the median over turns. Both run in this environment and are used through the command line and
HTTP only, so versions with different modules can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.speed.backends import SETTINGS, RedlineHttp, pause, resume
from benchmarks.speed.bundles import build_bundle
from benchmarks.speed.machine import machine
from benchmarks.speed.workloads import Texts, build_workloads, group
from benchmarks.training import build_pairs
from redline_model.bundle.bundle import Bundle

ROOT = Path(__file__).resolve().parents[1]
Turn = Callable[[Path], float]


def environment(checkout: Path) -> dict[str, str]:
    """The environment in which ``python -m redline.cli`` runs the code of ``checkout``."""
    sources = os.pathsep.join(str(checkout.resolve() / folder) for folder in ("client", "service", "trainer"))
    return {**os.environ, **SETTINGS, "PYTHONPATH": sources}


def run(checkout: Path, *arguments: str) -> None:
    """Run a command of the version in ``checkout``. Raises CalledProcessError, with its last lines printed."""
    command = [sys.executable, "-m", "redline.cli", *arguments]
    done = subprocess.run(command, env=environment(checkout), capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
    done.check_returncode()


def rates(turn: Turn, versions: Sequence[Path], repeats: int) -> list[tuple[float, float]]:
    """The rates of the two versions, turn by turn; the one that begins changes."""
    measured = []
    for repeat in range(repeats):
        order = versions if repeat % 2 == 0 else versions[::-1]
        by_version = {version: turn(version) for version in order}
        measured.append((by_version[versions[0]], by_version[versions[1]]))
    return measured


def serving(bundle: Path, texts: Texts, versions: Sequence[Path], repeats: int, share: float) -> dict[str, Any]:
    """Tokens scored per second over HTTP, by workload; each turn has new texts, the same for both versions."""
    backends = {version: RedlineHttp.of_checkout(bundle, version) for version in versions}
    rows: dict[str, Any] = {}
    try:
        for backend in backends.values():
            backend.score([group(texts, 2, 2, (20, 20), (10, 10))])
            pause(backend)
        rounds = [list(build_workloads(texts, share)) for _ in range(repeats)]
        for workloads in zip(*rounds, strict=True):
            pending = iter([workload.calls for workload in workloads for _ in versions])

            def turn(version: Path, pending: Any = pending) -> float:
                calls = next(pending)
                resume(backends[version])
                seconds = backends[version].score(calls).seconds
                pause(backends[version])
                return sum(map(len, calls)) / seconds

            rows[f"serving, {workloads[0].name}"] = rates(turn, versions, repeats)
    finally:
        for backend in backends.values():
            resume(backend)
            backend.stop()
    return rows


def training(model: Path, texts: Texts, folder: Path, steps: int) -> Turn:
    """Tokens per second of ``redline train``, the median over its steps."""
    pairs = folder / "pairs.jsonl"
    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in build_pairs(texts, 4 * steps)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def turn(version: Path) -> float:
        out = Path(tempfile.mkdtemp(dir=folder))
        options = [
            "--max-steps",
            str(steps),
            "--pairs-per-step",
            "4",
            "--held-out-share",
            "0",
            "--precision",
            "float32",
        ]
        run(version, "train", "--pairs", str(pairs), "--base", str(model), "--out", str(out / "rm"), *options)
        lines = (out / "rm-logs/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return float(statistics.median(json.loads(line)["tokens_per_s"] for line in lines[1:]))

    return turn


def ppo(model: Path, bundle: Path, texts: Texts, folder: Path, steps: int) -> Turn:
    """Steps per second of ``redline ppo`` against a service of the same version, the median over its steps."""
    prompts = folder / "prompts.jsonl"
    rows = [{"prompt": texts.passage(40)} for _ in range(16)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def turn(version: Path) -> float:
        out = Path(tempfile.mkdtemp(dir=folder))
        service = RedlineHttp.of_checkout(bundle, version)
        try:
            options = ["--steps", str(steps), "--rollouts", "8", "--max-new-tokens", "32", "--precision", "float32"]
            url = f"http://127.0.0.1:{service.port}"
            run(
                version,
                "ppo",
                "--url",
                url,
                "--policy",
                str(model),
                "--prompts",
                str(prompts),
                "--out",
                str(out),
                *options,
            )
        finally:
            service.stop()
        lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        parts = ("seconds_rollout", "seconds_scoring", "seconds_update")
        return 1 / float(statistics.median(sum(json.loads(line)[part] for part in parts) for line in lines[1:]))

    return turn


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="checkout of the other version")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of versions.json")
    parser.add_argument("--model", type=Path, help="model folder; default models/smollm2, else random weights")
    parser.add_argument("--texts", type=Path, help="folder of preference pairs; default: built-in text")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each version")
    parser.add_argument("--only", choices=("serving", "training", "ppo"), action="append", help="default: all")
    parser.add_argument("--quick", action="store_true", help="a quarter of the items, fewer steps")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.perf_counter()
    torch.manual_seed(args.seed)
    versions = (ROOT, args.against)
    steps = 3 if args.quick else 8
    rows: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, weights = build_bundle(folder / "bundle", args.model, args.seed)
        texts = Texts(Bundle.load(path).scorer.encoder.tokenizer, args.texts, args.seed)
        only = args.only or ["serving", "training", "ppo"]
        if "serving" in only:
            rows |= serving(path, texts, versions, args.repeats, 0.25 if args.quick else 1.0)
        if "training" in only:
            rows["training"] = rates(training(path, texts, folder, steps), versions, args.repeats)
        if "ppo" in only:
            rows["ppo"] = rates(ppo(path, path, texts, folder, steps), versions, args.repeats)
    ratios = {row: [here / other for here, other in turns] for row, turns in rows.items()}
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "weights": weights,
        "seed": args.seed,
        "repeats": args.repeats,
        "ratios": {row: {"median": statistics.median(values), "turns": values} for row, values in ratios.items()},
        "minutes": (time.perf_counter() - started) / 60,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "versions.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    table = Table(title=f"this version against {args.against}, rates as ratios", title_justify="left")
    for column in ("row", "median", "least", "most", "turns"):
        table.add_column(column, justify="left" if column == "row" else "right")
    for row, values in ratios.items():
        median, least, most = statistics.median(values), min(values), max(values)
        table.add_row(row, f"{median:.3f}", f"{least:.3f}", f"{most:.3f}", str(len(values)))
    Console(width=100).print(table)
    print(f"wrote {args.out / 'versions.json'} in {report['minutes']:.1f} minutes")


if __name__ == "__main__":
    main()
