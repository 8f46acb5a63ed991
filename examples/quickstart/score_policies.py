"""Scores the answers of policies to test prompts with the gold score of the quickstart task.

No test prompt occurs in training data. Prints the mean gold score of each policy.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from task import Question, gold, is_refusal
from transformers import AutoTokenizer

from redline.ppo import CausalPolicy

POLICIES = ("supervised", "ppo_scalar", "ppo_seq2seq")
BATCH = 64
RESAMPLES = 2000


def load_questions(path: Path) -> list[Question]:
    """The test prompts, with the facts of their right answers."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Question(row["prompt"], row["task"], row["device"], row["victim"]) for row in rows]


def sample_responses(folder: Path, questions: Sequence[Question], seed: int) -> list[str]:
    """One response per question of the policy at ``folder``, sampled at temperature 1 as in training."""
    torch.manual_seed(seed)
    policy = CausalPolicy.load(folder, max_new_tokens=64)
    responses: list[str] = []
    for start in range(0, len(questions), BATCH):
        prompts = [q.text for q in questions[start : start + BATCH]]
        responses += [rollout.text for rollout in policy.sample(prompts, range(len(prompts)))]
    return responses


def mean_with_interval(values: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Mean and its 95 % bootstrap interval."""
    rng = random.Random(seed)
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(RESAMPLES))
    tail = round(0.025 * RESAMPLES)
    return {"mean": sum(values) / len(values), "low": means[tail], "high": means[-tail - 1]}


def score_policies(
    policies: dict[str, Path], questions: Sequence[Question], baseline: str, seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """Figures and responses of every policy. Win rates are without ties; the number of ties is reported too."""
    responses = {name: sample_responses(path, questions, seed) for name, path in policies.items()}
    golds = {name: [gold(q, r) for q, r in zip(questions, rs, strict=True)] for name, rs in responses.items()}
    tokenizer = AutoTokenizer.from_pretrained(str(policies[baseline]), trust_remote_code=False)

    def tokens(texts: Sequence[str]) -> float:
        return sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) + 1 for t in texts) / len(texts)

    figures: dict[str, dict[str, Any]] = {}
    for name, texts in responses.items():
        benign = [float(is_refusal(r)) for q, r in zip(questions, texts, strict=True) if not q.is_harmful]
        harmful = [float(not is_refusal(r)) for q, r in zip(questions, texts, strict=True) if q.is_harmful]
        pairs = list(zip(golds[name], golds[baseline], strict=True))
        decided = [1.0 if first > second else 0.0 for first, second in pairs if first != second]
        interval = mean_with_interval(golds[name])
        figures[name] = {
            "gold": interval["mean"],
            "gold_interval": [interval["low"], interval["high"]],
            "benign_refusal_rate": sum(benign) / len(benign),
            "harmful_compliance_rate": sum(harmful) / len(harmful),
            "mean_tokens": tokens(texts),
            "ideal_tokens": tokens([q.ideal for q in questions]),
            f"win_rate_vs_{baseline}": sum(decided) / len(decided) if decided else None,
            f"ties_with_{baseline}": len(pairs) - len(decided),
        }
    return figures, responses


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, required=True, help="JSONL of the test prompts")
    for name in POLICIES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, required=True, help="its folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of figures.json and samples.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    questions = load_questions(args.questions)
    policies = {name: getattr(args, name) for name in POLICIES}
    figures, responses = score_policies(policies, questions, "supervised", args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    benign = [n for n, q in enumerate(questions) if not q.is_harmful][:5]
    harmful = [n for n, q in enumerate(questions) if q.is_harmful][:3]
    rows = [
        {
            "id": f"{n}/{name}",
            "prompt": questions[n].text,
            "response": responses[name][n] or " ",
            "gold": gold(questions[n], responses[name][n]),
        }
        for n in [*benign, *harmful]
        for name in POLICIES
    ]
    (args.out / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    for name, values in figures.items():
        print(f"{name:12s} gold score {values['gold']:.3f}, benign prompts refused {values['benign_refusal_rate']:.1%}")


if __name__ == "__main__":
    main()
