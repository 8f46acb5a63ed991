"""One world and one seed: every model and policy that is asked for, each made once and then found on disk."""

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

from benchmarks.synthetic.budget import Budget
from benchmarks.synthetic.configurations import DEFAULT_MODE, REWARD_MODELS, PPORun, RewardModel
from benchmarks.synthetic.gold_scores import Answers, SampledAnswer, judge, policy_answers, sample_answers
from benchmarks.synthetic.local_rewards import LocalRewards
from benchmarks.synthetic.tasks.suite import demonstrations, draw_questions, pairs, world
from benchmarks.synthetic.tasks.task import Annotators, Question
from benchmarks.synthetic.training import ppo, reward_model, supervised_policy, write_json
from redline.ppo import CausalPolicy
from redline_model.bundle.bundle import Bundle
from redline_model.bundle.derive import derive_ensemble, derive_red
from redline_model.encoding.encoder import Item
from redline_model.reward_spec import reward_spec
from redline_model.scorer import Scorer, correct_all
from redline_trainer.evaluation.length_calibration import derive_length_calibrated

SPLITS = ("id", "ood")
_MAX_ROUNDS = 4


class SeedRun:
    """See the module. ``sources``: a digest of the code that results depend on; another one makes all anew."""

    @staticmethod
    def fingerprint(name: str, seed: int, budget: Budget, sources: str) -> str:
        """What every piece of the cell has in common."""
        return hashlib.sha256(f"{sources}/{name}/{seed}/{asdict(budget)}".encode()).hexdigest()

    def __init__(self, folder: Path, name: str, seed: int, budget: Budget, sources: str) -> None:
        self.folder = folder
        self.name = name
        self.seed = seed
        self.budget = budget
        self.task, self.annotators = world(name)
        self.questions = draw_questions(self.task, seed, budget.test_questions)
        self._fingerprint = self.fingerprint(name, seed, budget, sources)

    @cached_property
    def supervised(self) -> Path:
        """The policy that everything starts from."""
        words = [self.task.refusal, *self.task.padding]
        return self._made(
            "policies/supervised",
            "",
            lambda out: supervised_policy(
                out,
                demonstrations(self.task, self.questions, self.budget.demonstrations, self.seed),
                words,
                self.budget,
                self.seed,
            ),
        )

    def bundle(self, name: str) -> Path:
        """The reward model called ``name``."""
        recipe = REWARD_MODELS[name]
        return self._made(f"models/{name}", ancestry(name), lambda out: self._fit(recipe, out))

    def _fit(self, recipe: RewardModel, out: Path) -> None:
        count = round(self.budget.pairs * recipe.pairs)
        annotators = Annotators(self.annotators.bias, recipe.noise)
        drawn = pairs(self.task, annotators, self.questions, count, self.seed)
        of = [self.bundle(name) for name in recipe.of]
        if recipe.derivation == "red":
            derive_red(of[0], out)
        elif recipe.derivation == "ensemble":
            derive_ensemble(of, out, combine=recipe.options.get("combine", "mean_minus_variance"))
        elif recipe.derivation == "length_calibrated":
            derive_length_calibrated(of[0], out, drawn[:500])
        else:
            kind = recipe.options["kind"]
            steps = {"dpo": self.budget.dpo_steps, "scalar": self.budget.scalar_steps}.get(
                kind, self.budget.seq2seq_steps
            )
            reward_model(out, self.supervised, drawn, steps, self.seed + 1000 * recipe.seed, recipe.options)

    def run_ppo(self, name: str, run: PPORun) -> None:
        """The policy called ``name``, its curve and its answers."""

        def make(out: Path) -> None:
            scorer = Bundle.load(self.bundle(run.model)).scorer
            if run.extraction:
                scorer.extraction = scorer.extraction.model_copy(update=dict(run.extraction))
            rewards = LocalRewards(scorer, reward_spec(scorer, run.mode, "sum"), run.placing)
            curve = ppo(out, self.supervised, rewards, self.task, self.questions.preference, self.budget, self.seed)
            write_json(self.folder / "curves" / f"{name}.json", curve)

        settings = f"{run}{ancestry(run.model)}"
        self._judge_policy(name, self._made(f"policies/{name}", settings, make), settings)

    def judge_supervised(self) -> None:
        """The supervised policy's answers."""
        self._judge_policy("supervised", self.supervised, "")

    def judge_dpo(self, name: str) -> None:
        """The answers of the policy that DPO fits as the recipe ``name`` says; its bundle is that policy."""
        self._judge_policy(name, self.bundle(name), ancestry(name))

    def _judge_policy(self, name: str, policy: Path, settings: str) -> None:
        if self._is_answered(name, settings):
            return
        limit = self.budget.max_new_tokens
        answers = {s: policy_answers(policy, self.supervised, self._test(s), self.seed, limit) for s in SPLITS}
        self._write_answers(name, settings, answers)

    def best_of_n(self, names: Mapping[str, str | None]) -> None:
        """The best of 2 and of ``best_of`` samples of the supervised policy by each model, read by its mode."""
        n = self.budget.best_of
        wanted = {f"best_of_{k}_{name}": f"{ancestry(name)}{mode}" for name, mode in names.items() for k in (2, n)}
        if all(self._is_answered(name, settings) for name, settings in wanted.items()):
            return
        policy = CausalPolicy.load(self.supervised, device="cpu", max_new_tokens=self.budget.max_new_tokens)
        sources = {}
        for name, mode in names.items():
            scorer = Bundle.load(self.bundle(name)).scorer
            sources[name] = LocalRewards(scorer, reward_spec(scorer, mode, "sum"))
        chosen: dict[str, dict[str, list[SampledAnswer]]] = {name: {} for name in wanted}
        for split in SPLITS:
            questions = self._test(split)
            samples = [sample_answers(policy, questions, 1000 * (self.seed + 1) + k) for k in range(n)]
            for name, source in sources.items():
                scores = [[scored.score for scored in source.score(one).items] for one in samples]
                for k in (2, n):
                    best = [max(range(k), key=lambda c: scores[c][q]) for q in range(len(questions))]
                    rollouts = [samples[c][q] for q, c in enumerate(best)]
                    kl = math.log(k) - (k - 1) / k  # of best-of-n against its policy, an upper bound
                    chosen[f"best_of_{k}_{name}"][split] = [
                        SampledAnswer(r.text, len(r.response_ids), kl) for r in rollouts
                    ]
        for name, by_split in chosen.items():
            self._write_answers(name, wanted[name], by_split)

    def correct(self) -> None:
        """The supervised policy's answers, rewritten by the seq2seq model: once, and up to four times."""
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
                written = _rewritten(scorer, questions, texts)
                if round_number == 0:
                    once[split] = [SampledAnswer(t, self._count(t), None) for t in written]
                if written == texts:
                    break
                texts = written
            often[split] = [SampledAnswer(t, self._count(t), None) for t in texts]
        self._write_answers("corrected", settings, once)
        self._write_answers("corrected_often", settings, often)

    def answers(self, name: str) -> dict[str, Answers]:
        """What was written before, by split."""
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
        scored = {s: judge(self.task, self._test(s), by_split[s], self._count).model_dump() for s in SPLITS}
        marks = {"cell": self._fingerprint, "made_by": self._digest(settings)}
        write_json(self.folder / "answers" / f"{name}.json", {**marks, **scored})

    @staticmethod
    def digest(fingerprint: str, settings: str) -> str:
        """The mark of what was made by ``settings`` in the cell of ``fingerprint``."""
        return hashlib.sha256(f"{fingerprint}/{settings}".encode()).hexdigest()

    def _digest(self, settings: str) -> str:
        return self.digest(self._fingerprint, settings)

    def _made(self, name: str, settings: str, make: Callable[[Path], None]) -> Path:
        """The folder ``name``, made unless it was made before by the same settings."""
        out, mark = self.folder / name, self.folder / f"{name}.made"
        digest = self._digest(settings)
        if not mark.exists() or mark.read_text(encoding="utf-8") != digest:
            shutil.rmtree(out, ignore_errors=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            make(out)
            mark.write_text(digest, encoding="utf-8")
        return out


def ancestry(name: str) -> str:
    """Everything that decides the reward model ``name``: its recipe, and those that it is derived from."""
    recipe = REWARD_MODELS[name]
    return "/".join([f"{name}: {recipe}", *map(ancestry, recipe.of)])


def _rewritten(scorer: Scorer[Any], questions: Sequence[Question], texts: Sequence[str]) -> list[str]:
    """The model's own rewrite of every text; an empty text has none and stays."""
    places = [n for n, text in enumerate(texts) if text]
    encoded = [scorer.encoder.encode(Item(questions[n].prompt, texts[n])) for n in places]
    written = list(texts)
    for n, (_, correction) in zip(places, correct_all(scorer, encoded), strict=True):
        written[n] = correction.text
    return written


def default_modes(names: Sequence[str]) -> dict[str, str | None]:
    """Models by name, with the mode each is read by."""
    return {name: DEFAULT_MODE if REWARD_MODELS[name].options.get("kind") == "seq2seq" else None for name in names}
