"""One run on real text: what is fitted on what, each model and figure made once and then found on disk."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Plan:
    """What is fitted on what, and measured where. The first training set is of marked errors, the second of chat."""

    training: tuple[str, ...]
    # on which the relatives are fitted too, not the default and Bradley-Terry alone
    relatives: tuple[str, ...]
    spans: tuple[str, ...]
    preferences: tuple[str, ...]
    # further sets on which the default and Bradley-Terry alone are asked which side is better
    ranked: tuple[str, ...]
    judge: str
    pairs: int
    test_pairs: int
    steps: int
    pairs_per_step: int
    max_tokens: int
    ppo_steps: int
    rollouts: int
    new_tokens: int
    prompts: int
    precision: str
    learning_rate: float = 2e-5


_OTHERS = ("dpo_mix", "oasst_rm_zh", "fine_grained_qa_prefs")
FULL = Plan(
    training=("mlqe_postedit", "pandalm_test", "hh_helpful", "fine_grained_qa"),
    relatives=("mlqe_postedit", "pandalm_test", "hh_helpful", "fine_grained_qa"),
    spans=("mlqe_postedit", "wmt_mqm_zhen", "fine_grained_qa"),
    preferences=("pandalm_test", "hh_helpful", "hh_harmless", "hhh_alignment", "llmbar", "tulu_bon"),
    ranked=("alpaca_eval_gpt4_pairs", "alpaca_eval_pairs", "alpaca_eval_cross", *_OTHERS),
    judge="alpaca_eval_gpt4_pairs",
    pairs=12000,
    test_pairs=400,
    steps=600,
    pairs_per_step=32,
    max_tokens=2048,
    ppo_steps=60,
    rollouts=64,
    new_tokens=128,
    prompts=200,
    precision="auto",
)
REDUCED = Plan(
    training=("mlqe_postedit", "pandalm_test"),
    relatives=("mlqe_postedit",),
    spans=("mlqe_postedit", "wmt_mqm_zhen", "fine_grained_qa"),
    preferences=("pandalm_test", "hhh_alignment", "llmbar"),
    ranked=("hh_helpful", "hh_harmless", "tulu_bon", "alpaca_eval_gpt4_pairs", *_OTHERS),
    judge="hh_helpful",
    pairs=384,
    test_pairs=60,
    steps=24,
    pairs_per_step=16,
    max_tokens=1024,
    ppo_steps=5,
    rollouts=16,
    new_tokens=40,
    prompts=32,
    precision="bfloat16",
    learning_rate=1e-4,  # few steps have to do
)
# more would teach a small set by heart
_MOST_EPOCHS = 3
# the first two are fitted on every set
MAIN_KINDS = ("seq2seq", "scalar")
KINDS: dict[str, dict[str, Any]] = {
    "seq2seq": {"kind": "seq2seq", "mismatch": True},
    "scalar": {"kind": "scalar"},
    "published": {"kind": "seq2seq", "mismatch": False},
    "dpo": {"kind": "dpo"},
}


class Run:
    """One folder of bundles and figures."""

    def __init__(self, out: Path, base: Path, data: Path, plan: Plan, seed: int, device: str) -> None:
        self.out = out
        self.base = base
        self.data = data
        self.plan = plan
        self.seed = seed
        self.device = device

    def claim(self) -> None:
        """Make the folder this run's own. Raises SystemExit where it holds a run of another plan."""
        # these decide about no other figure, so more of them may be asked later
        plan = {name: value for name, value in asdict(self.plan).items() if name not in {"ranked", "relatives"}}
        own = json.dumps([plan, self.seed, str(self.base), str(self.data), KINDS], sort_keys=True)
        mark = self.out / "plan.json"
        if mark.exists() and mark.read_text(encoding="utf-8") != own:
            sys.exit(f"{self.out} holds a run with another plan, seed, base or data; choose another --out")
        self.out.mkdir(parents=True, exist_ok=True)
        mark.write_text(own, encoding="utf-8")

    def pairs(self, name: str, split: str, limit: int) -> list[Any]:
        """The first pairs of a set; the files are in a shuffled, fixed order."""
        from redline_trainer.load_pairs import load_pairs

        return load_pairs([self.data / f"{name}.{split}.jsonl.gz"])[0][:limit]

    def bundle(self, data: str, kind: str) -> Path:
        """A reward model of ``kind`` fitted on ``data``."""
        from redline_trainer.config import TrainConfig
        from redline_trainer.train import StepReport, train

        out = self.out / "models" / f"{data}-{kind}"
        if out.exists():
            return out
        pairs = self.pairs(data, "train", self.plan.pairs)
        config = TrainConfig.model_validate(
            {
                "base": str(self.base),
                "out": out,
                "max_steps": min(self.plan.steps, _MOST_EPOCHS * len(pairs) // self.plan.pairs_per_step + 1),
                "pairs_per_step": self.plan.pairs_per_step,
                "max_batch_tokens": 2048 if self.device == "cpu" else 16384,
                "max_tokens": self.plan.max_tokens,
                "on_too_long": "skip",
                "learning_rate": self.plan.learning_rate,
                "held_out_share": 0.0,
                "precision": self.plan.precision,
                "device": self.device,
                "seed": self.seed,
                **KINDS[kind],
            }
        )

        def show(report: StepReport) -> None:
            if report.step % 5 == 0 or report.step == report.steps:
                rate = report.tokens / report.seconds
                print(f"  {out.name} step {report.step}: loss {report.loss:.3f}, {rate:.0f} tokens/s", flush=True)

        train(config, pairs, observers=[show])
        return out

    def tested(self, name: str) -> list[Any]:
        """The first test pairs that fit the model that reads most, so that all models are measured on the same."""
        from redline_model.bundle.loading import load_config, load_tokenizer
        from redline_model.encoding.make_encoder import make_encoder
        from redline_model.options import Template
        from redline_trainer.encode_pairs import encode_pairs

        tokenizer = load_tokenizer(self.base)
        template = Template.fitting(tokenizer, None)
        encoder = make_encoder("seq2seq", load_config(self.base), tokenizer, template, self.plan.max_tokens)
        pairs = self.pairs(name, "test", self.plan.test_pairs)
        return [pairs[one.number] for one in encode_pairs(encoder, pairs, "skip")[0]]

    def derived(self, data: str) -> Path:
        """The scalar model of ``data``, its reward redistributed over tokens."""
        from redline_model.bundle.derive import derive_red

        out = self.out / "models" / f"{data}-red"
        if not out.exists():
            derive_red(self.bundle(data, "scalar"), out)
        return out

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The figures called ``name``, made unless they are there."""
        path = self.out / "figures" / f"{name}.json"
        if not path.exists():
            from benchmarks.synthetic.training import write_json

            started = time.perf_counter()
            write_json(path, make())
            print(f"  {name}: {time.perf_counter() - started:.0f} s", flush=True)
        return json.loads(path.read_text(encoding="utf-8"))

    def quality(self, folder: Path, test: str) -> dict[str, Any]:
        """What ``redline evaluate`` says of a bundle on a test set."""
        from redline_model.bundle.bundle import Bundle
        from redline_model.bundle.load_options import LoadOptions
        from redline_trainer.evaluation.report import measure_quality

        def make() -> dict[str, Any]:
            scorer = Bundle.load(folder, LoadOptions(device=self.device), max_tokens=self.plan.max_tokens).scorer
            return measure_quality(scorer, self.tested(test)).model_dump()

        made: dict[str, Any] = self.once(f"{folder.name}-on-{test}", make)
        return made

    def surprisal(self, test: str) -> dict[str, Any]:
        """Blame by the base model's own ``-log pi(y_t | x, y_<t)``: the baseline that needs no preference data."""

        def make() -> dict[str, Any]:
            from benchmarks.real_text_runs.surprisal import surprisal_scorer
            from redline_trainer.evaluation.report import measure_quality

            scorer = surprisal_scorer(self.base, self.device, self.plan.max_tokens)
            return measure_quality(scorer, self.tested(test)).model_dump()

        made: dict[str, Any] = self.once(f"base-on-{test}", make)
        return made
