"""The folder of a run: the models of each set, trained once, and the figures of each entry, computed once."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import run_folder
from benchmarks.real_rewards.local_scorer import CachedOutputs, LocalScorer
from benchmarks.real_rewards.plan import DEVELOPMENT_SHARE, ENTRIES, REWARD_MODELS, Part, Plan
from benchmarks.real_text.surprisal import surprisal_scorer
from redline.benchmark.examples import comparisons, has_spans, marked_responses
from redline.benchmark.run import SetResult, run_localisation, run_ranking
from redline.files.atomic import atomic_file
from redline_model.bundle.bundle import Bundle
from redline_model.bundle.derive import derive_red
from redline_model.bundle.load_options import LoadOptions
from redline_model.options import CORRECTION_MODES, Aggregate
from redline_model.reward_spec import RewardSpec, reward_spec
from redline_model.scorer import Scorer, forward_all
from redline_trainer.config import TrainConfig
from redline_trainer.encode_pairs import encode_pairs
from redline_trainer.evaluation.context_probes import source_dependence, truncation_probes
from redline_trainer.evaluation.error_spans import error_tokens
from redline_trainer.load_pairs import load_pairs
from redline_trainer.optimizer_step import StepReport
from redline_trainer.train import train

_PROBED_AGGREGATES: tuple[Aggregate, ...] = ("sum", "mean")


def claim(out: Path, plan: Plan, base: Path, seed: int) -> None:
    """Create the folder. Raises SystemExit if it holds a run with another plan, base model or seed."""
    run_folder.claim(out, [{**asdict(plan), "sets": None}, str(base), seed], "plan, base model or seed")


class SetRun:
    """The models and figures of one preference set."""

    def __init__(self, out: Path, data: Path, base: Path, plan: Plan, name: str, seed: int, device: str) -> None:
        self.name = name
        self.plan = plan
        self._folder = out / name
        self._data = data
        self._base = base
        self._seed = seed
        self._device = device
        self._last: tuple[str, CachedOutputs] | None = None

    def part(self, part: Part | str) -> Path:
        """The file of the pairs of a part: ``fit``, ``development`` or ``test``."""
        if part == "test":
            return self._data / f"{self.name}.test.jsonl.gz"
        path = self._folder / "pairs" / f"{self.name}.{part}.jsonl.gz"
        if not path.exists():
            with gzip.open(self._data / f"{self.name}.train.jsonl.gz", "rt", encoding="utf-8") as lines:
                rows = [line for line in lines if is_development(json.loads(line)) == (part == "development")]
            with atomic_file(path) as temporary, gzip.open(temporary, "wt", encoding="utf-8") as file:
                file.writelines(rows)
        return path

    def model(self, name: str) -> Path:
        """The bundle of a reward model, fitted on ``fit``."""
        out = self._folder / "models" / name
        if out.exists():
            return out
        if name == "red":
            derive_red(self.model("scalar"), out)
            return out
        steps = self.plan.steps * dict(self.plan.step_factors)[name]
        config = TrainConfig.model_validate(
            {
                "base": str(self._base),
                "out": out,
                "max_steps": steps,
                "pairs_per_step": self.plan.pairs_per_step,
                "max_batch_tokens": self.plan.max_batch_tokens,
                "max_tokens": self.plan.max_tokens,
                "on_too_long": "skip",
                "learning_rate": self.plan.learning_rate,
                "held_out_share": 0.0,
                "precision": self.plan.precision,
                "device": self._device,
                "seed": self._seed,
                "checkpoint_every": 10,
                **REWARD_MODELS[name],
            }
        )

        def show(report: StepReport) -> None:
            if report.step % 10 == 0 or report.step == report.steps:
                rate = report.tokens / report.seconds
                print(f"  {self.name} {name}: step {report.step}/{report.steps}, {rate:.0f} tokens/s", flush=True)

        train(config, load_pairs([self.part("fit")])[0], observers=[show])
        return out

    def scorer(self, model: str) -> Scorer[Any]:
        """The loaded reward model ``model``."""
        options = LoadOptions(device=self._device, dtype=self.plan.precision)
        if model == "base":
            return surprisal_scorer(self._base, options, self.plan.max_tokens)
        return Bundle.load(self.model(model), options, max_tokens=self.plan.max_tokens).scorer

    def _outputs(self, model: str) -> CachedOutputs:
        """The outputs of the model that was last asked for: entries of one model share them."""
        if self._last is None or self._last[0] != model:
            self._last = model, CachedOutputs(self.scorer(model), self.plan.max_batch_tokens)
        return self._last[1]

    def figures(self, name: str, part: Part) -> dict[str, Any]:
        """``localisation`` and ``ranking`` of an entry on a part, as ``redline bench`` measures them."""
        entry = ENTRIES[name]

        def compute() -> dict[str, Any]:
            outputs = self._outputs(entry.model)
            spec = reward_spec(outputs.scorer, entry.mode, entry.aggregate)
            local = LocalScorer(outputs, spec, entry.has_token_rewards)
            path = self.part(part)
            rows = comparisons(path, self.plan.responses)
            found = {"ranking": _stored(run_ranking(local, rows))}
            if entry.mode is not None:
                mean = LocalScorer(outputs, spec._replace(aggregate="mean"), has_token_rewards=False)
                found["ranking_by_mean"] = _stored(run_ranking(mean, rows))
            if entry.has_token_rewards and has_spans(path):
                responses = marked_responses(path, self.plan.responses)
                found["localisation"] = _stored(run_localisation(local, responses))
            return found

        return self._once(f"{part}/{name}", compute)

    def probes(self, part: Part) -> dict[str, Any]:
        """What the seq2seq model reads in the context, and ``truncation`` by mode and aggregate, on a part."""

        def compute() -> dict[str, Any]:
            scorer = self._outputs("seq2seq").scorer
            batch = self.plan.max_batch_tokens
            every = load_pairs([self.part(part)])[0]
            # every n-th, so that several annotations of one response are not all that is probed
            some = every[:: max(1, len(every) // self.plan.probed_pairs)][: self.plan.probed_pairs]
            pairs = encode_pairs(scorer.encoder, some, "skip")[0]
            outputs = forward_all(scorer, [p.chosen for p in pairs] + [p.rejected for p in pairs], batch)
            marks = [
                None if (spans := some[pair.number].spans) is None else error_tokens(pair.rejected.offsets, spans)
                for pair in pairs
            ]
            context = source_dependence(scorer, pairs, outputs, marks, batch)
            # without modes that need a correction: one would have to be written for each beginning
            modes = [e.mode for e in ENTRIES.values() if e.model == "seq2seq" and e.mode not in CORRECTION_MODES]
            specs = [RewardSpec(mode, aggregate) for mode in modes for aggregate in _PROBED_AGGREGATES]
            chosen = [(output, None) for output in outputs[: len(pairs)]]
            probes = truncation_probes(scorer, pairs, chosen, specs, batch)
            truncation = (
                {}
                if probes is None
                else {
                    f"{spec.mode}/{spec.aggregate}": probe.model_dump()
                    for spec, probe in zip(specs, probes, strict=True)
                }
            )
            return {"context": None if context is None else context.model_dump(), "truncation": truncation}

        return self._once(f"{part}/probes", compute)

    def has(self, name: str) -> bool:
        """Whether the figures called ``PART/NAME`` are stored."""
        return self._path(name).exists()

    def _path(self, name: str) -> Path:
        return self._folder / "figures" / f"{name}.json"

    def _once(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        figures: dict[str, Any] = run_folder.once(self._path(name), compute, f"{self.name} {name}")
        return figures


def is_development(row: dict[str, Any]) -> bool:
    """Whether a row of a training part is left out of fitting: decided by the text that was rewritten, or the prompt.

    All rows with the same sentence, and so all its references, are on one side.
    """
    meta = row.get("meta") or {}
    key = meta.get("sentence") or json.dumps(row["prompt"], sort_keys=True)
    digest = hashlib.sha256(f"dev/{key}".encode()).hexdigest()
    return int(digest[:8], 16) / 2**32 < DEVELOPMENT_SHARE


def _stored(result: SetResult) -> dict[str, Any]:
    return {
        "counts": result.counts,
        "figures": {name: interval._asdict() for name, interval in result.figures.items()},
        "baselines": {
            name: {key: interval._asdict() for key, interval in figures.items()}
            for name, figures in result.baselines.items()
        },
        "values": result.values,
        "groups": result.groups,
    }
