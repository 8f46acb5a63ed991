"""Real text: pair accuracy, length, calibration, blame on the words that humans marked; then corrections and PPO.

    python -m benchmarks.real_text --data FOLDER            # one GPU, minutes; base models/smollm2
    python -m benchmarks.real_text --data FOLDER --reduced  # two CPU cores

FOLDER holds preference sets as NAME.train.jsonl.gz and NAME.test.jsonl.gz. Every stage is made once and then found
on disk, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Plan:
    """What is fitted on what, and measured where. The first training set is of marked errors, the second of chat."""

    training: tuple[str, ...]
    spans: tuple[str, ...]
    preferences: tuple[str, ...]
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
    autocast: str
    learning_rate: float = 2e-5


FULL = Plan(
    training=("mlqe_postedit", "pandalm_test", "hh_helpful", "fine_grained_qa"),
    spans=("mlqe_postedit", "wmt_mqm_zhen", "fine_grained_qa"),
    preferences=("pandalm_test", "hh_helpful", "hh_harmless", "hhh_alignment", "llmbar", "tulu_bon"),
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
    autocast="auto",
)
REDUCED = Plan(
    training=("mlqe_postedit", "pandalm_test"),
    spans=("mlqe_postedit", "wmt_mqm_zhen", "fine_grained_qa"),
    preferences=("pandalm_test", "hhh_alignment", "llmbar"),
    judge="hh_helpful",
    pairs=640,
    test_pairs=60,
    steps=40,
    pairs_per_step=16,
    max_tokens=1024,
    ppo_steps=5,
    rollouts=16,
    new_tokens=40,
    prompts=32,
    autocast="bfloat16",
    learning_rate=1e-4,  # few steps have to do
)
# more would teach a small set by heart
_MOST_EPOCHS = 3
# what a rewriting model's blame is read by, fixed beforehand: -log pi(y_t), for its argmax copies what it is shown
_BLAME = "probability/sum"
# the first is the default; the published objective stands beside it
KINDS: dict[str, dict[str, Any]] = {
    "seq2seq": {"kind": "seq2seq", "mismatch": True},
    "published": {"kind": "seq2seq", "mismatch": False},
    "scalar": {"kind": "scalar"},
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
        own = json.dumps([asdict(self.plan), self.seed, str(self.base), str(self.data), KINDS], sort_keys=True)
        mark = self.out / "plan.json"
        if mark.exists() and mark.read_text(encoding="utf-8") != own:
            sys.exit(f"{self.out} holds a run with another plan, seed, base or data; choose another --out")
        self.out.mkdir(parents=True, exist_ok=True)
        mark.write_text(own, encoding="utf-8")

    def pairs(self, name: str, split: str, limit: int) -> list[Any]:
        """The first pairs of a set; the files are in a shuffled, fixed order."""
        from redline_trainer.data import load_pairs

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
                "autocast": self.plan.autocast,
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

    @cache  # noqa: B019 - one run a process
    def tested(self, name: str) -> tuple[Any, ...]:
        """The first test pairs that fit the model that reads most, so that all models are measured on the same."""
        from redline_model.bundle import make_encoder
        from redline_model.loading import load_config, load_tokenizer
        from redline_model.template import Template
        from redline_trainer.train import encode_pairs

        tokenizer = load_tokenizer(self.base)
        template = Template.fitting(tokenizer, None)
        encoder = make_encoder("seq2seq", load_config(self.base), tokenizer, template, self.plan.max_tokens)
        pairs = self.pairs(name, "test", self.plan.test_pairs)
        return tuple(pair for pair in pairs if encode_pairs(encoder, [pair], "skip")[0])

    def derived(self, data: str) -> Path:
        """The scalar model of ``data``, its reward redistributed over tokens."""
        from redline_model.derive import derive_red

        out = self.out / "models" / f"{data}-red"
        if not out.exists():
            derive_red(self.bundle(data, "scalar"), out)
        return out

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The figures called ``name``, made unless they are there."""
        path = self.out / "figures" / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            started = time.perf_counter()
            made = make()
            path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
            print(f"  {name}: {time.perf_counter() - started:.0f} s", flush=True)
        return json.loads(path.read_text(encoding="utf-8"))

    def quality(self, folder: Path, test: str) -> dict[str, Any]:
        """What ``redline evaluate`` says of a bundle on a test set."""
        from redline_model.bundle import Bundle
        from redline_model.loading import Placement
        from redline_trainer.quality import measure_quality

        def make() -> dict[str, Any]:
            scorer = Bundle.load(folder, Placement(device=self.device), max_tokens=self.plan.max_tokens).scorer
            return measure_quality(scorer, self.tested(test)).model_dump()

        made: dict[str, Any] = self.once(f"{folder.name}-on-{test}", make)
        return made

    def surprisal(self, test: str) -> dict[str, Any]:
        """Blame by the base model's own ``-log pi(y_t | x, y_<t)``: the baseline that needs no preference data."""

        def make() -> dict[str, Any]:
            from benchmarks.experiment.surprisal import surprisal_scorer
            from redline_trainer.quality import measure_quality

            scorer = surprisal_scorer(self.base, self.device, self.plan.max_tokens)
            return measure_quality(scorer, self.tested(test)).model_dump()

        made: dict[str, Any] = self.once(f"base-on-{test}", make)
        return made


def all_figures(run: Run, policy: bool) -> dict[str, Any]:
    """Every stage, in an order that leaves whole sections behind when it is stopped."""
    plan = run.plan
    ranking: dict[str, Any] = {}
    blame: dict[str, Any] = {test: {"base surprisal": run.surprisal(test)["spans"]} for test in plan.spans}
    for data in plan.training:
        for kind in KINDS:
            folder = run.bundle(data, kind)
            for test in dict.fromkeys([data, *plan.preferences, *plan.spans]):
                report = run.quality(folder, test)
                ranking.setdefault(data, {}).setdefault(test, {})[kind] = report
                if report["spans"]:
                    blame[test][f"{data} {kind}"] = report["spans"]
        red = run.derived(data)
        for test in plan.spans:
            blame[test][f"{data} red"] = run.quality(red, test)["spans"]
    ahead = {test: _ahead(models) for test, models in blame.items()}
    for detections in [d for models in blame.values() for d in models.values()]:
        for detection in detections.values():
            detection.pop("auc_resamples", None)
    for report in [r for tests in ranking.values() for kinds in tests.values() for r in kinds.values()]:
        report.pop("spans")
    policies = judge = None
    if policy:
        from benchmarks.experiment.real_policy import policy_figures

        policies = run.once("policies", lambda: policy_figures(run))
        judged = run.bundle(plan.judge, "scalar")
        judge = {test: run.quality(judged, test) for test in dict.fromkeys([plan.judge, *plan.preferences])}
    return {"ranking": ranking, "blame": blame, "ahead": ahead, "policies": policies, "judge": judge}


def _ahead(models: dict[str, Any]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """By how much each seq2seq model's area is above every other model's, paired: difference, low, high."""
    from redline_trainer.spans import SpanDetection, auc_difference

    told = {
        name: SpanDetection.model_validate(readings.get(_BLAME) or next(iter(readings.values())))
        for name, readings in models.items()
    }
    mine = [name for name in told if name.endswith((" seq2seq", " published"))]
    others = [name for name in told if name not in mine]
    return {name: {other: auc_difference(told[name], told[other]) for other in others} for name in mine}


def rendered(figures: dict[str, Any]) -> str:
    """The figures as Markdown tables."""
    lines = [
        "| fitted on | tested on | model | pairs right | longer wins | corr. with length | after calibration | ECE |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for data, tests in figures["ranking"].items():
        for test, kinds in tests.items():
            for kind, r in kinds.items():
                a = r["accuracy"]
                lines.append(
                    f"| {data} | {test} | {kind} | {a['mean']:.1%} [{a['low']:.1%}, {a['high']:.1%}] of {a['pairs']} "
                    f"| {r['longer_wins']:.1%} | {r['length_correlation']:+.2f} "
                    f"| {r['length_correlation_calibrated']:+.2f} | {r['expected_calibration_error']:.3f} |"
                )
    lines += [
        "",
        "| marked words of | blame by | reading | AUC | average precision | marked share |",
        "|---|---|---|---|---|---|",
    ]
    for test, models in figures["blame"].items():
        for model, readings in models.items():
            for reading, d in readings.items():
                if model == "base surprisal" and not reading.startswith("probability"):
                    continue
                lines.append(
                    f"| {test} | {model} | {reading} | {d['auc']:.3f} [{d['auc_low']:.3f}, {d['auc_high']:.3f}] "
                    f"| {d['average_precision']:.3f} [{d['average_precision_low']:.3f}, "
                    f"{d['average_precision_high']:.3f}] | {d['marked_share']:.3f} |"
                )
    lines += ["", "| marked words of | model | against | AUC ahead by |", "|---|---|---|---|"]
    for test, models in figures["ahead"].items():
        for model, others in models.items():
            for other, (ahead, low, high) in others.items():
                lines.append(f"| {test} | {model} | {other} | {ahead:+.3f} [{low:+.3f}, {high:+.3f}] |")
    if figures["judge"]:
        lines += ["", "| judge on | pairs right | corr. with length |", "|---|---|---|"]
        for test, r in figures["judge"].items():
            a = r["accuracy"]
            lines.append(
                f"| {test} | {a['mean']:.1%} [{a['low']:.1%}, {a['high']:.1%}] | {r['length_correlation']:+.2f} |"
            )
    if figures["policies"]:
        lines += [
            "",
            "| answers of | judge's wins against the base | judge's score | tokens | KL |",
            "|---|---|---|---|---|",
        ]
        for name, f in figures["policies"]["answers"].items():
            wins = f["wins_against_base"]
            told = "-" if wins is None else f"{wins['mean']:.1%} [{wins['low']:.1%}, {wins['high']:.1%}]"
            kl = "-" if f["kl"] is None else f"{f['kl']:.2f}"
            lines.append(f"| {name} | {told} | {f['score']:+.3f} | {f['tokens']:.1f} | {kl} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("models/smollm2"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="default: runs/real_text, reduced: runs/real_text_reduced")
    parser.add_argument("--reduced", action="store_true", help="few pairs and few steps, for a CPU")
    parser.add_argument("--no-policy", action="store_true", help="leave corrections, best-of-n and PPO out")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import torch
    from transformers.utils import logging as transformers_logging

    from redline_trainer.quality import QualityReport, plot_reliability

    transformers_logging.disable_progress_bar()
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    plan = REDUCED if args.reduced else FULL
    started = time.perf_counter()
    run = Run(
        args.out or Path(f"runs/real_text{'_reduced' if args.reduced else ''}"),
        args.base,
        args.data,
        plan,
        args.seed,
        device,
    )
    run.claim()
    figures = all_figures(run, not args.no_policy)
    figures["about"] = {
        "command": " ".join(["python -m benchmarks.real_text", *(arguments or sys.argv[1:])]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {device}",
        "seed": args.seed,
        "plan": asdict(plan),
        "seconds": time.perf_counter() - started,
    }
    (run.out / "real_text.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    chat = plan.training[1]
    reports = {kind: QualityReport.model_validate(r) for kind, r in figures["ranking"][chat][chat].items()}
    plot_reliability(reports, run.out / "reliability.png")
    text = rendered(figures)
    (run.out / "real_text.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"wrote {run.out / 'real_text.json'}, real_text.md and reliability.png")


if __name__ == "__main__":
    main()
