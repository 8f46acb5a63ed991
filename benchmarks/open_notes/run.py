"""One level and seed of the open task: every model and figure is computed once and then read from disk."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.open_notes.models import (
    test_pairs,
    test_prompts,
    train_base,
    train_model,
    train_start_policy,
    training_pairs,
)
from benchmarks.open_notes.plan import (
    DERIVED,
    FINE_TUNED,
    POLICY_DOMAIN,
    PPO_RUNS,
    PPO_SETTINGS,
    REWARD_MODELS,
    STEP_FACTORS,
    Plan,
)
from benchmarks.real_policies.metrics import distinct_share
from benchmarks.run_folder import once
from benchmarks.synthetic.gold_scores import summed_logprobs
from benchmarks.synthetic.local_rewards import LocalRewards
from benchmarks.synthetic.tasks.note_language import DOMAINS
from benchmarks.synthetic.tasks.notes import (
    Decides,
    content_distance,
    fault_count,
    gold,
    own_content_share,
)
from redline.ppo import CausalPolicy, PPOConfig, PPOLoop, Rollout, Scores
from redline_model.bundle.bundle import Bundle
from redline_model.bundle.derive import derive_red
from redline_model.reward_spec import reward_spec
from redline_trainer.evaluation.report import quality_report

_MAX_TOKENS = 64
_BATCH = 128


class LevelRun:
    """The models and figures of one level and seed in ``out``. The base model is shared by the levels of a seed."""

    def __init__(self, out: Path, level: Decides, seed: int, plan: Plan) -> None:
        self.level = level
        self.seed = seed
        self.plan = plan
        self.folder = out / level / f"seed-{seed}"
        self._base = out / "base" / f"seed-{seed}"
        self.prompts, self.ideal_words = test_prompts(level, plan.test_notes, seed)

    def _made(self, folder: Path, make: Callable[[Path], object]) -> Path:
        """``folder`` after ``make`` has written it; the mark is written last."""
        mark = folder.with_name(f"{folder.name}.done")
        if not mark.exists():
            make(folder)
            mark.write_text("", encoding="utf-8")
        return folder

    def base(self) -> Path:
        """The folder of the base model."""
        return self._made(self._base, lambda out: train_base(out, self.plan, self.seed))

    def start_policy(self) -> Path:
        """The folder of the start policy."""
        return self._made(
            self.folder / "policies" / "start",
            lambda out: train_start_policy(out, self.base(), self.level, self.plan, self.seed),
        )

    def _trained(self, folder: Path, base: Path, options: Any) -> Path:
        def make(out: Path) -> None:
            pairs = training_pairs(self.level, self.plan.pairs, self.seed)
            steps = self.plan.model_steps * STEP_FACTORS[options["kind"]]
            train_model(out, base, pairs, steps, self.seed, options)

        return self._made(folder, make)

    def reward_model(self, name: str) -> Path:
        """The bundle of a reward model, trained from the base model, or derived from another one."""
        folder = self.folder / "models" / name
        if name in DERIVED:
            return self._made(folder, lambda out: derive_red(self.reward_model(DERIVED[name]), out))
        return self._trained(folder, self.base(), REWARD_MODELS[name])

    def model_figures(self, name: str) -> dict[str, Any]:
        """Localisation, ranking, source dependence and truncation in the policy's domain."""

        def compute() -> dict[str, Any]:
            scorer = Bundle.load(self.reward_model(name)).scorer
            pairs = test_pairs(self.level, self.plan.test_notes, self.seed)
            report = quality_report(scorer, pairs, max_batch_tokens=4096)
            return report.model_dump(mode="json", include={"within", "accuracy", "source_dependence", "truncation"})

        figures: dict[str, Any] = once(self.folder / "figures" / "models" / f"{name}.json", compute)
        return figures

    def policy_figures(self, name: str) -> dict[str, Any]:
        """Figures of the policy ``name`` and, after PPO, the ``curve`` of its steps."""

        def compute() -> dict[str, Any]:
            if name == "start":
                return {"final": self._measured(self.start_policy())}
            if name in FINE_TUNED:
                folder = self.folder / "policies" / name
                return {"final": self._measured(self._trained(folder, self.start_policy(), FINE_TUNED[name]))}
            folder = self.folder / "policies" / name
            curve = self._ppo(name, folder)
            return {"final": self._measured(folder), "curve": curve}

        figures: dict[str, Any] = once(self.folder / "figures" / "policies" / f"{name}.json", compute)
        return figures

    def _ppo(self, name: str, out: Path) -> list[dict[str, float]]:
        run = PPO_RUNS[name]
        scorer = Bundle.load(self.reward_model(run.model)).scorer
        curve: list[dict[str, float]] = []

        def record(metrics: dict[str, float], rollouts: Sequence[Rollout], scores: Scores) -> None:
            figures = self._text_figures([rollout.text for rollout in rollouts])
            curve.append({"step": metrics["step"], "kl": metrics["kl"], **figures})

        settings = {**PPO_SETTINGS, **run.settings}
        config = PPOConfig.model_validate(
            {
                **settings,
                "steps": self.plan.ppo_steps,
                "rollouts": self.plan.rollouts,
                "sample_batch": self.plan.rollouts,
                "seed": self.seed,
            }
        )
        prompts = list(test_prompts(self.level, 2000, self.seed + 1000)[0])
        random.Random(self.seed).shuffle(prompts)
        policy = CausalPolicy.load(self.start_policy(), device="cpu", max_new_tokens=_MAX_TOKENS, critic="linear")
        rewards = LocalRewards(scorer, reward_spec(scorer, run.mode, "sum"))
        PPOLoop(policy, rewards, prompts, config, callbacks=[record]).train()
        policy.save(out)
        return curve

    def _samples(self, policy: CausalPolicy) -> list[Rollout]:
        torch.manual_seed(self.seed)
        rollouts: list[Rollout] = []
        for start in range(0, len(self.prompts), _BATCH):
            prompts = self.prompts[start : start + _BATCH]
            rollouts += policy.sample(prompts, range(len(prompts)))
        return rollouts

    @cached_property
    def _start(self) -> CausalPolicy:
        return CausalPolicy.load(self.start_policy(), device="cpu", max_new_tokens=_MAX_TOKENS)

    @cached_property
    def _start_texts(self) -> list[str]:
        return [rollout.text for rollout in self._samples(self._start)]

    def _measured(self, folder: Path) -> dict[str, float]:
        policy = CausalPolicy.load(folder, device="cpu", max_new_tokens=_MAX_TOKENS)
        rollouts = self._samples(policy)
        logprobs, start_logprobs = (summed_logprobs(p, rollouts) for p in (policy, self._start))
        kl = sum(a - b for a, b in zip(logprobs, start_logprobs, strict=True)) / len(rollouts)
        return {"kl": kl, **self._text_figures([rollout.text for rollout in rollouts])}

    def _text_figures(self, texts: Sequence[str]) -> dict[str, float]:
        """Per response: faults, gold score, words as a share of ideal. Over all: content and distinct 2-grams."""
        count = len(texts)
        return {
            "faults": sum(map(fault_count, texts)) / count,
            "gold": sum(map(gold, texts)) / count,
            "own_content": own_content_share(texts, DOMAINS[POLICY_DOMAIN]),
            "content_distance": content_distance(texts, self._start_texts),
            "length": sum(len(text.split()) for text in texts) / count / self.ideal_words,
            "distinct_2grams": distinct_share(texts, 2) or 0.0,
        }


def has_mismatches(name: str, level: Decides) -> bool:
    """Whether the run ``name`` can exist: with one constant prompt there is no response to another prompt."""
    run = PPO_RUNS.get(name)
    model = name if run is None else run.model
    return level != "nothing" or model != "seq2seq_mismatch"
