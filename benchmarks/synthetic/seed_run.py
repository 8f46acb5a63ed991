"""Reward models, policies and answers of one synthetic task and seed, each computed once and then read from disk."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.run_folder import write_json
from benchmarks.synthetic.budget import Budget
from benchmarks.synthetic.configurations import DEFAULT_MODE, REWARD_MODELS, PPORun, RewardModelConfig
from benchmarks.synthetic.gold_scores import Answers, SampledAnswer, policy_answers, sample_answers, score_with_gold
from benchmarks.synthetic.local_rewards import LocalRewards
from benchmarks.synthetic.tasks.suite import demonstrations, draw_questions, pairs, synthetic_task
from benchmarks.synthetic.tasks.task import Annotators, Question
from benchmarks.synthetic.training import train_ppo, train_reward_model, train_supervised
from redline.ppo import CausalPolicy
from redline_model.bundle.bundle import Bundle
from redline_model.bundle.derive import derive_ensemble, derive_red
from redline_model.encoding.items import Item
from redline_model.reward_spec import reward_spec
from redline_model.scorer import Scorer, correct_all
from redline_trainer.evaluation.length_calibration import derive_length_calibrated

SPLITS = ("id", "ood")
_MAX_ROUNDS = 4


class SeedRun:
    """The results of one task and seed in ``folder``.

    Args:
        name: of the synthetic task.
        sources: digest of the code that results depend on. Results of another digest are computed again.
    """

    @staticmethod
    def fingerprint(name: str, seed: int, budget: Budget, sources: str) -> str:
        """A digest of what all results of this task and seed depend on."""
        return hashlib.sha256(f"{sources}/{name}/{seed}/{asdict(budget)}".encode()).hexdigest()

    def __init__(self, folder: Path, name: str, seed: int, budget: Budget, sources: str) -> None:
        self.folder = folder
        self.name = name
        self.seed = seed
        self.budget = budget
        self.task, self.annotators = synthetic_task(name)
        self.questions = draw_questions(self.task, seed, budget.test_questions)
        self._fingerprint = self.fingerprint(name, seed, budget, sources)

    @cached_property
    def supervised(self) -> Path:
        """The folder of the supervised policy, from which reward models and policies start."""
        words = [self.task.refusal, *self.task.padding]
        return self._made(
            "policies/supervised",
            "",
            lambda out: train_supervised(
                out,
                demonstrations(self.task, self.questions, self.budget.demonstrations, self.seed),
                words,
                self.budget,
                self.seed,
            ),
        )

    def bundle(self, name: str) -> Path:
        """The bundle of the reward model called ``name``."""
        config = REWARD_MODELS[name]
        return self._made(f"models/{name}", ancestry(name), lambda out: self._make_reward_model(config, out))

    def _make_reward_model(self, config: RewardModelConfig, out: Path) -> None:
        count = round(self.budget.pairs * config.pair_share)
        annotators = Annotators(self.annotators.bias, config.label_noise)
        preference_pairs = pairs(self.task, annotators, self.questions, count, self.seed)
        bundles = [self.bundle(name) for name in config.derived_from]
        if config.derivation == "red":
            derive_red(bundles[0], out)
        elif config.derivation == "ensemble":
            derive_ensemble(bundles, out, combine=config.options.get("combine", "mean_minus_variance"))
        elif config.derivation == "length_calibrated":
            derive_length_calibrated(bundles[0], out, preference_pairs[:500])
        else:
            kind = config.options["kind"]
            steps = {"dpo": self.budget.dpo_steps, "scalar": self.budget.scalar_steps}.get(
                kind, self.budget.seq2seq_steps
            )
            seed = self.seed + 1000 * config.seed
            train_reward_model(out, self.supervised, preference_pairs, steps, seed, config.options)

    def run_ppo(self, name: str, run: PPORun) -> None:
        """Make the policy called ``name``, its training curve and its answers."""

        def make(out: Path) -> None:
            scorer = Bundle.load(self.bundle(run.model)).scorer
            if run.extraction:
                scorer.extraction = scorer.extraction.model_copy(update=dict(run.extraction))
            rewards = LocalRewards(scorer, reward_spec(scorer, run.mode, "sum"), run.placement)
            questions = self.questions.preference
            curve = train_ppo(out, self.supervised, rewards, self.task, questions, self.budget, self.seed)
            write_json(self.folder / "curves" / f"{name}.json", curve)

        settings = run_ancestry(run)
        self._evaluate_policy(name, self._made(f"policies/{name}", settings, make), settings)

    def evaluate_supervised(self) -> None:
        """Store the supervised policy's answers and their gold scores."""
        self._evaluate_policy("supervised", self.supervised, "")

    def evaluate_dpo(self, name: str) -> None:
        """Store the answers of the DPO policy ``name`` and their gold scores; its bundle is the policy."""
        self._evaluate_policy(name, self.bundle(name), ancestry(name))

    def _evaluate_policy(self, name: str, policy: Path, settings: str) -> None:
        if self._is_answered(name, settings):
            return
        limit = self.budget.max_new_tokens
        answers = {s: policy_answers(policy, self.supervised, self._test(s), self.seed, limit) for s in SPLITS}
        self._write_answers(name, settings, answers)

    def best_of_n(self, names: Mapping[str, str | None]) -> None:
        """Store the best of 2 and of ``Budget.best_of`` supervised samples, by each model used in its mode."""
        n = self.budget.best_of
        settings_of = {f"best_of_{k}_{name}": f"{ancestry(name)}{mode}" for name, mode in names.items() for k in (2, n)}
        if all(self._is_answered(name, settings) for name, settings in settings_of.items()):
            return
        policy = CausalPolicy.load(self.supervised, device="cpu", max_new_tokens=self.budget.max_new_tokens)
        reward_sources = {}
        for name, mode in names.items():
            scorer = Bundle.load(self.bundle(name)).scorer
            reward_sources[name] = LocalRewards(scorer, reward_spec(scorer, mode, "sum"))
        chosen: dict[str, dict[str, list[SampledAnswer]]] = {name: {} for name in settings_of}
        for split in SPLITS:
            questions = self._test(split)
            samples = [sample_answers(policy, questions, 1000 * (self.seed + 1) + k) for k in range(n)]
            for name, source in reward_sources.items():
                scores = [[scored.score for scored in source.score(rollouts).items] for rollouts in samples]
                for k in (2, n):
                    best = [max(range(k), key=lambda c: scores[c][q]) for q in range(len(questions))]
                    rollouts = [samples[c][q] for q, c in enumerate(best)]
                    kl = math.log(k) - (k - 1) / k  # an upper bound of the KL of best-of-k from its policy
                    chosen[f"best_of_{k}_{name}"][split] = [
                        SampledAnswer(r.text, len(r.response_ids), kl) for r in rollouts
                    ]
        for name, by_split in chosen.items():
            self._write_answers(name, settings_of[name], by_split)

    def correct(self) -> None:
        """Store the supervised policy's answers as corrected by the seq2seq model: once, and up to four times."""
        settings = ancestry("seq2seq")
        if all(self._is_answered(name, settings) for name in ("corrected", "corrected_often")):
            return
        scorer = Bundle.load(self.bundle("seq2seq")).scorer
        once: dict[str, list[SampledAnswer]] = {}
        often: dict[str, list[SampledAnswer]] = {}
        for split in SPLITS:
            questions = self._test(split)
            texts = self.answers("supervised")[split].responses
            for round_number in range(_MAX_ROUNDS):
                corrected = _corrected(scorer, questions, texts)
                if round_number == 0:
                    once[split] = [SampledAnswer(t, self._count(t), None) for t in corrected]
                if corrected == texts:
                    break
                texts = corrected
            often[split] = [SampledAnswer(t, self._count(t), None) for t in texts]
        self._write_answers("corrected", settings, once)
        self._write_answers("corrected_often", settings, often)

    def answers(self, name: str) -> dict[str, Answers]:
        """The stored answers of the policy ``name``, by split."""
        raw = json.loads((self.folder / "answers" / f"{name}.json").read_text(encoding="utf-8"))
        return {split: Answers.model_validate(raw[split]) for split in SPLITS}

    def _test(self, split: str) -> Sequence[Question]:
        return self.questions.test_id if split == "id" else self.questions.test_ood

    @cached_property
    def _tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(str(self.supervised), trust_remote_code=False)

    def _count(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"]) + 1

    def _is_answered(self, name: str, settings: str) -> bool:
        path = self.folder / "answers" / f"{name}.json"
        return path.exists() and json.loads(path.read_text(encoding="utf-8"))["made_by"] == self._digest(settings)

    def _write_answers(self, name: str, settings: str, by_split: Mapping[str, Sequence[SampledAnswer]]) -> None:
        scored = {s: score_with_gold(self.task, self._test(s), by_split[s], self._count).model_dump() for s in SPLITS}
        # "cell" is an earlier name of this class; stored results are found by this key
        digests = {"cell": self._fingerprint, "made_by": self._digest(settings)}
        write_json(self.folder / "answers" / f"{name}.json", {**digests, **scored})

    @staticmethod
    def digest(fingerprint: str, settings: str) -> str:
        """The digest of a result with these ``settings`` in the run of ``fingerprint``."""
        return hashlib.sha256(f"{fingerprint}/{settings}".encode()).hexdigest()

    def _digest(self, settings: str) -> str:
        return self.digest(self._fingerprint, settings)

    def _made(self, name: str, settings: str, make: Callable[[Path], None]) -> Path:
        """The folder ``name``; ``make`` fills it unless it was made before with the same settings."""
        out, marker = self.folder / name, self.folder / f"{name}.made"
        digest = self._digest(settings)
        if not marker.exists() or marker.read_text(encoding="utf-8") != digest:
            shutil.rmtree(out, ignore_errors=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            make(out)
            marker.write_text(digest, encoding="utf-8")
        return out


def ancestry(name: str) -> str:
    """What decides the reward model ``name``: its configuration and those of the models it is derived from."""
    config = REWARD_MODELS[name]
    return "/".join([f"{name}: {config.digest_text()}", *map(ancestry, config.derived_from)])


def run_ancestry(run: PPORun) -> str:
    """What decides the policy of ``run``: its settings and the ancestry of its reward model."""
    return f"{run.digest_text()}{ancestry(run.model)}"


def _corrected(scorer: Scorer[Any], questions: Sequence[Question], texts: Sequence[str]) -> list[str]:
    """The correction of every text by the model; an empty text stays as it is."""
    indices = [n for n, text in enumerate(texts) if text]
    encoded = [scorer.encoder.encode(Item(questions[n].prompt, texts[n])) for n in indices]
    corrected = list(texts)
    for n, (_, correction) in zip(indices, correct_all(scorer, encoded), strict=True):
        corrected[n] = correction.text
    return corrected


def default_modes(names: Sequence[str]) -> dict[str, str | None]:
    """The named models with the mode in which each is used."""
    return {name: DEFAULT_MODE if REWARD_MODELS[name].options.get("kind") == "seq2seq" else None for name in names}
