"""``make loops``: three RL loops train the same policy against the same reward service; the gold scores are compared.

The loops are Redline's PPO, TRL's GRPO with one score per response, and TRL's GRPO with token rewards: 40 steps of 64
responses each. Data, supervised policy and reward model are those of the demo, which runs first if they are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from demo import HERE, PPO_OPTIONS, Run
from score_policies import load_questions, score_policies
from seeds import spread, table

STEPS = 40


def run_seed(demo: Path, out: Path, trl_python: Path, seed: int) -> dict[str, Any]:
    """Train the policy of every loop, unless it is stored; returns the figures of all policies."""
    folder = demo.resolve()
    command = [sys.executable, str(HERE / "demo.py"), "--out", str(folder), "--seed", str(seed)]
    subprocess.run([*command, "--until", "rm_seq2seq"], check=True)
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    policies = {
        "supervised": folder / "supervised" / "policy",
        "redline_ppo": out / "ppo" / "policy",
        "trl_grpo_scalar": out / "grpo_scalar",
        "trl_grpo_tokens": out / "grpo_tokens",
    }
    missing = [name for name, policy in policies.items() if not (policy / "config.json").exists()]
    if missing:
        train(missing, folder, out, trl_python.absolute(), seed)
    questions = load_questions(folder / "world" / "test_prompts.jsonl")
    figures: dict[str, Any]
    figures, _ = score_policies(policies, questions, "supervised", seed)
    return figures


def train(names: Sequence[str], folder: Path, out: Path, trl_python: Path, seed: int) -> None:
    """Run the loops called ``names``, one after the other, against one service of the demo's seq2seq model."""
    options = f"--policy {folder}/supervised/policy --prompts {folder}/world/prompts.jsonl --seed {seed}"
    run = Run(folder)
    try:
        with run.service("rm_seq2seq/bundle", out / "service.log") as url:
            grpo = f"{trl_python} {HERE}/grpo.py --url {url} {options} --steps {STEPS}"
            commands = {
                "redline_ppo": f"redline ppo --url {url} {options} --out {out}/ppo {PPO_OPTIONS.format(steps=STEPS)}",
                "trl_grpo_scalar": f"{grpo} --scalar --out {out}/grpo_scalar",
                "trl_grpo_tokens": f"{grpo} --out {out}/grpo_tokens",
            }
            for name in names:
                started = time.perf_counter()
                status = run.start(commands[name], out / f"{name}.log").wait()
                if status != 0:
                    sys.exit(f"{name} failed with status {status}; see {out / f'{name}.log'}")
                print(f"  seed {seed}: {name}, {time.perf_counter() - started:.0f} s", flush=True)
    finally:
        run.stop()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demos", type=Path, default=Path("runs/seeds"), help="folder of the demos, one per seed")
    parser.add_argument("--out", type=Path, default=Path("runs/loops"), help="folder of policies and results")
    parser.add_argument("--trl-python", type=Path, required=True, help="a Python with trl and redline installed")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds, from 1; seed 0 was used for tuning")
    args = parser.parse_args()
    seeds = {
        seed: run_seed(args.demos / f"seed-{seed}", args.out / f"seed-{seed}", args.trl_python, seed)
        for seed in range(1, 1 + args.seeds)
    }
    results = {
        "policies": spread(seeds),
        "about": {
            "command": "make loops",
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "seeds": sorted(seeds),
            "steps": STEPS,
        },
    }
    (args.out / "loops.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(table(results))
    print(f"wrote {args.out / 'loops.json'}")


if __name__ == "__main__":
    main()
