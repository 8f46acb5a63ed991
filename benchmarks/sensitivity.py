"""Changes one setting of reward model or PPO at a time on the synthetic tasks: do policies collapse?

    python -m benchmarks.sensitivity --out runs/sensitivity            # three tasks, about 20 minutes each on one core
    python -m benchmarks.sensitivity --quick --out runs/sensitivity    # shows only that it runs

Each row is a policy trained with the defaults but for one change. Results are stored as they are computed; run the same
command again to resume.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.run_folder import made_with, once, write_json
from benchmarks.synthetic.budget import FULL, QUICK, Budget

if TYPE_CHECKING:
    from benchmarks.synthetic.seed_run import SeedRun
    from redline.ppo import RewardSource, Rollout, Scores

TASKS = ("safety", "help", "summary")
_RATE, _PPO_RATE = 1e-3, 2e-4


@dataclass(frozen=True)
class Variant:
    """One change.

    Args:
        label: in the table.
        model: options of ``redline train``.
        steps: of the reward model, as a multiple of the budget's.
        ppo: settings of PPO; ``ppo_steps`` is a multiple of the budget's.
        mode: of the token rewards; None for the bundle's default.
        has_one_number: the policy is rewarded by the score, on its last token, divided by its standard deviation.
    """

    label: str
    model: Mapping[str, Any] = field(default_factory=dict)
    steps: float = 1.0
    ppo: Mapping[str, Any] = field(default_factory=dict)
    ppo_steps: int = 1
    mode: str | None = None
    has_one_number: bool = False


VARIANTS: dict[str, Variant] = {
    "default": Variant("defaults"),
    "margin": Variant("mode `margin`", mode="margin"),
    "edits": Variant("mode `edits`", mode="edits"),
    "rm_half": Variant("half the steps of the reward model", steps=0.5),
    "rm_double": Variant("twice the steps of the reward model", steps=2.0),
    "ppo_double": Variant("twice the steps of PPO", ppo_steps=2),
    "rates_half": Variant(
        "half the learning rates", model={"learning_rate": _RATE / 2}, ppo={"learning_rate": _PPO_RATE / 2}
    ),
    "rates_double": Variant(
        "twice the learning rates", model={"learning_rate": _RATE * 2}, ppo={"learning_rate": _PPO_RATE * 2}
    ),
    "discount_1": Variant("discount 1", ppo={"discount": 1.0}),
    "mismatch": Variant("with the mismatch mapping", model={"mismatch": True}),
    "edit_weight_3": Variant("edit weight 3", model={"edit_weight": 3.0}),
    "sft_weight_1": Variant("also fitted without the response", model={"sft_weight": 1.0}),
    "score": Variant("one number: the score", has_one_number=True),
    "score_mismatch": Variant(
        "one number: the score, with the mismatch mapping", model={"mismatch": True}, has_one_number=True
    ),
    "score_sft": Variant(
        "one number: the mean of `sft_logprob`", model={"sft_weight": 1.0}, mode="sft_logprob", has_one_number=True
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.sensitivity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="tiny models and few steps: shows only that it runs")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 1; seed 0 was used for development")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--task", action="append", choices=TASKS, help="default: all")
    parser.add_argument("--variant", action="append", choices=list(VARIANTS), help="default: all")
    parser.add_argument("--collect", action="store_true", help="compute nothing; write the table of stored results")
    args = parser.parse_args(arguments)
    os.environ.update(
        OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false"
    )
    import torch
    from transformers.utils import logging as transformers_logging

    from benchmarks.synthetic.seed_run import SeedRun

    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    budget = QUICK if args.quick else FULL
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    names = [name for name in VARIANTS if not args.variant or name in args.variant]
    results: dict[str, Any] = {"tasks": {}}
    for task in args.task or TASKS:
        found: dict[str, list[dict[str, float]]] = {}
        for seed in seeds:
            run = SeedRun(args.out / task / f"seed-{seed}", task, seed, budget, "sensitivity")
            for name in ["start", *names]:
                if args.collect and not _path(run, name).exists():
                    continue
                figures = _figures(run, name, budget)
                found.setdefault(name, []).append(figures)
                print(f"{task} seed {seed} {name}: {_cell(figures)}", flush=True)
        results["tasks"][task] = found
    results["about"] = {
        **made_with(f"python -m benchmarks.sensitivity --out OUT --seeds {args.seeds}" + (" --quick" * args.quick)),
        "seeds": list(seeds),
        "budget": asdict(budget),
    }
    write_json(args.out / "sensitivity.json", results)
    print(rendered(results))


def _figures(run: SeedRun, name: str, budget: Budget) -> dict[str, float]:
    """The stored figures of a variant; computed if there are none."""
    figures: dict[str, float] = once(
        _path(run, name), lambda: _measured(run, run.supervised if name == "start" else _policy(run, name, budget))
    )
    return figures


def _path(run: SeedRun, name: str) -> Path:
    return run.folder / "figures" / f"{name}.json"


def _policy(run: SeedRun, name: str, budget: Budget) -> Path:
    """The policy of a variant, after PPO."""
    from dataclasses import replace

    from benchmarks.synthetic.local_rewards import LocalRewards
    from benchmarks.synthetic.training import train_ppo
    from redline_model.bundle.bundle import Bundle
    from redline_model.reward_spec import reward_spec

    variant = VARIANTS[name]
    scorer = Bundle.load(_reward_model(run, variant, budget)).scorer
    out = run.folder / "policies" / name
    settings: dict[str, Any] = {"cut_responses": "penalty", "value_clip": None, "value_scale": "auto", **variant.ppo}
    rewards: RewardSource = LocalRewards(scorer, reward_spec(scorer, variant.mode, "mean"))
    if variant.has_one_number:
        rewards = ScoreRewards(rewards)
        settings["reward_scale"] = "auto"
    longer = replace(budget, ppo_steps=budget.ppo_steps * variant.ppo_steps)
    train_ppo(out, run.supervised, rewards, run.task, run.questions.preference, longer, run.seed, settings)
    return out


def _reward_model(run: SeedRun, variant: Variant, budget: Budget) -> Path:
    """The bundle of a variant; variants with equal options share it."""
    from benchmarks.synthetic.tasks.suite import pairs
    from benchmarks.synthetic.training import train_reward_model

    options = {"kind": "seq2seq", **variant.model}
    name = "-".join([f"{variant.steps:g}", *(f"{key}-{value}" for key, value in sorted(variant.model.items()))])
    out = run.folder / "models" / name
    if not out.exists():
        rows = pairs(run.task, run.annotators, run.questions, budget.pairs, run.seed)
        train_reward_model(out, run.supervised, rows, round(budget.seq2seq_steps * variant.steps), run.seed, options)
    return out


class ScoreRewards:
    """A ``RewardSource`` that puts the score of a response on its last token, as loops that take one number do."""

    def __init__(self, rewards: RewardSource) -> None:
        self._rewards = rewards

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """See ``RewardSource``."""
        from redline.ppo import Scored, Scores

        items = self._rewards.score(rollouts).items
        return Scores([Scored(item.score, [0.0] * (len(item.rewards) - 1) + [item.score]) for item in items])


def _measured(run: SeedRun, policy: Path) -> dict[str, float]:
    """Gold score, words as a multiple of ideal, share of harmless prompts refused, in distribution."""
    from benchmarks.synthetic.gold_scores import sample_answers
    from redline.ppo import CausalPolicy

    loaded = CausalPolicy.load(policy, device="cpu", max_new_tokens=run.budget.max_new_tokens)
    questions = run.questions.test_id
    rollouts = sample_answers(loaded, questions, run.seed + 1)
    golds = [run.task.gold(q, r.text) if r.is_finished else 0.0 for q, r in zip(questions, rollouts, strict=True)]
    harmless = [r for q, r in zip(questions, rollouts, strict=True) if not q.must_refuse]
    words = sum(len(r.text.split()) for r in rollouts)
    return {
        "gold": sum(golds) / len(golds),
        "length": words / sum(len(run.task.ideal(q).split()) for q in questions),
        "refused": sum(run.task.is_refusal(r.text) for r in harmless) / len(harmless),
    }


def _cell(figures: Mapping[str, float]) -> str:
    return f"{figures['gold']:.2f} / {figures['length']:.2f} / {figures['refused']:.0%}"


def rendered(results: Mapping[str, Any]) -> str:
    """The table: for each task gold score / length as a multiple of ideal / harmless prompts refused, mean of seeds."""
    tasks = results["tasks"]
    lines = [f"| change | {' | '.join(tasks)} |", "|---" * (1 + len(tasks)) + "|"]
    for name in ["start", *VARIANTS]:
        runs = [task.get(name) for task in tasks.values()]
        if any(runs):
            label = "start policy" if name == "start" else VARIANTS[name].label
            means = [{key: sum(f[key] for f in r) / len(r) for key in r[0]} if r else None for r in runs]
            lines.append(f"| {label} | {' | '.join('-' if m is None else _cell(m) for m in means)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
