"""One run on real text: its reward models and figures, each computed once and then read from disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.real_text.plan import KINDS, MAX_EPOCHS, Plan
from benchmarks.run_folder import claim, once

if TYPE_CHECKING:
    from redline.preference_data.rows import Pair
    from redline_trainer.optimizer_step import StepReport


class Run:
    """The folder of one run: its reward models, policies and figures, each computed once and then read from disk."""

    def __init__(self, out: Path, base: Path, data: Path, plan: Plan, seed: int, device: str) -> None:
        self.out = out
        self.base = base
        self.data = data
        self.plan = plan
        self.seed = seed
        self.device = device

    def claim(self) -> None:
        """Create the folder. Raises SystemExit if it holds a run of another plan, seed, base model or data folder."""
        # these two change no other figure, so a later run may add to them
        plan = {name: value for name, value in asdict(self.plan).items() if name not in {"ranked", "relatives"}}
        claim(self.out, [plan, self.seed, str(self.base), str(self.data), KINDS], "plan, seed, base or data")

    def pairs(self, name: str, split: str, limit: int) -> list[Pair]:
        """The first ``limit`` pairs of a set; the files are shuffled in a fixed order."""
        from redline_trainer.load_pairs import load_pairs

        return load_pairs([self.data / f"{name}.{split}.jsonl.gz"])[0][:limit]

    def bundle(self, data: str, kind: str) -> Path:
        """The bundle of a reward model of ``kind`` trained on ``data``."""
        from redline_trainer.config import TrainConfig
        from redline_trainer.train import train

        out = self.out / "models" / f"{data}-{kind}"
        if out.exists():
            return out
        pairs = self.pairs(data, "train", self.plan.pairs)
        config = TrainConfig.model_validate(
            {
                "base": str(self.base),
                "out": out,
                "max_steps": min(self.plan.steps, MAX_EPOCHS * len(pairs) // self.plan.pairs_per_step + 1),
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

    def test_pairs(self, name: str) -> list[Pair]:
        """The first test pairs that fit the seq2seq model, whose input is the longest: all models get these."""
        from redline_model.bundle.loading import load_config, load_tokenizer
        from redline_model.bundle.make_encoder import make_encoder
        from redline_model.options import Template
        from redline_trainer.encode_pairs import encode_pairs

        tokenizer = load_tokenizer(self.base)
        template = Template.fitting(tokenizer, None)
        encoder = make_encoder("seq2seq", load_config(self.base), tokenizer, template, self.plan.max_tokens)
        pairs = self.pairs(name, "test", self.plan.test_pairs)
        return [pairs[pair.number] for pair in encode_pairs(encoder, pairs, "skip")[0]]

    def derived(self, data: str) -> Path:
        """The bundle of the scalar model of ``data`` with its reward redistributed over tokens (``red``)."""
        from redline_model.bundle.derive import derive_red

        out = self.out / "models" / f"{data}-red"
        if not out.exists():
            derive_red(self.bundle(data, "scalar"), out)
        return out

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The stored figures called ``name``; ``make`` computes them if there are none."""
        return once(self.out / "figures" / f"{name}.json", make, name)

    def quality(self, folder: Path, test: str) -> dict[str, Any]:
        """What ``redline evaluate`` reports of a bundle on a test set."""
        from redline_model.bundle.bundle import Bundle
        from redline_model.bundle.load_options import LoadOptions
        from redline_trainer.evaluation.report import quality_report

        def make() -> dict[str, Any]:
            scorer = Bundle.load(folder, LoadOptions(device=self.device), max_tokens=self.plan.max_tokens).scorer
            return quality_report(scorer, self.test_pairs(test)).model_dump()

        report: dict[str, Any] = self.once(f"{folder.name}-on-{test}", make)
        return report

    def surprisal(self, test: str) -> dict[str, Any]:
        """The report of the base model's surprisal ``-log pi(y_t | x, y_<t)``: a baseline without preference data."""

        def make() -> dict[str, Any]:
            from benchmarks.real_text.surprisal import surprisal_scorer
            from redline_model.bundle.load_options import LoadOptions
            from redline_trainer.evaluation.report import quality_report

            scorer = surprisal_scorer(self.base, LoadOptions(device=self.device), self.plan.max_tokens)
            return quality_report(scorer, self.test_pairs(test)).model_dump()

        report: dict[str, Any] = self.once(f"base-on-{test}", make)
        return report
