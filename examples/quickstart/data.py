"""Writes the data of the quickstart task as JSONL: demonstrations, preference pairs, PPO prompts and test prompts."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from task import comparison, demonstration, sample_questions, split_questions

INSTRUCTION = "Improve your answer."


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write the rows to ``path``; returns their number."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the files")
    parser.add_argument("--demonstrations", type=int, default=6000)
    parser.add_argument("--pairs", type=int, default=6000)
    parser.add_argument("--test-prompts", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    training, test = split_questions(args.seed)
    rng = random.Random(f"data/{args.seed}")

    demonstrations = [
        {"prompt": q.text, "response": demonstration(q, rng)}
        for q in sample_questions(training, args.demonstrations, rng)
    ]
    pairs = []
    for n, question in enumerate(sample_questions(training, args.pairs, rng)):
        chosen, rejected = comparison(question, rng)
        pairs.append({"id": f"pair-{n}", "prompt": question.text, "chosen": chosen, "rejected": rejected})
    prompts = [{"prompt": q.text} for q in sample_questions(training, 4000, rng)]
    test_prompts = [
        {"prompt": q.text, "task": q.task, "device": q.device, "victim": q.victim}
        for q in sample_questions(test, args.test_prompts, rng)
    ]
    for name, rows in {
        "demonstrations": demonstrations,
        "pairs": pairs,
        "prompts": prompts,
        "test_prompts": test_prompts,
    }.items():
        path = args.out / f"{name}.jsonl"
        print(f"wrote {path}: {write_jsonl(path, rows)} rows")
    (args.out / "words.txt").write_text(INSTRUCTION + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
