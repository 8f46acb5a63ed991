"""Measurements of a policy during its training: samples, their figures, and the curve of a run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal, NamedTuple, Protocol

from benchmarks.real_policies.metrics import Evaluators, Figures, Sample, text_figures
from benchmarks.real_policies.plan import Plan, PPOSettings
from benchmarks.real_policies.tasks import TaskData, TextTask, repeated
from benchmarks.real_policies.training import sample_texts
from redline.ppo import CausalPolicy

Part = Literal["test", "development"]
# added to a seed, so that a measurement does not repeat the samples of a training step
_MEASURE_SEED = 10_000


class StartPoint(NamedTuple):
    """The start policy's samples, and the figures of other samples of it."""

    samples: list[Sample]
    figures: Figures


class Measured(Protocol):
    """What a measurement needs of a ``TaskRun``."""

    plan: Plan
    task: TextTask
    data: TaskData
    start_points: dict[tuple[int, Part], StartPoint]

    @property
    def evaluators(self) -> Evaluators:
        """Of the task."""
        ...


class Measurements:
    """Samples of a policy during its training, and their figures.

    Every measurement uses the same prompts and the same seed, so that two of them differ by the policy only.

    Args:
        policy: still the start policy.
        prompts: repeated as often as needed.
        key: the seed, and the part that the prompts belong to.
    """

    def __init__(self, run: Measured, policy: CausalPolicy, prompts: Sequence[str], key: tuple[int, Part]) -> None:
        self._run = run
        self._policy = policy
        self._prompts = prompts
        self._seed = _MEASURE_SEED * (key[0] + 1)
        plan = run.plan
        if key not in run.start_points:
            # other samples than those of the measurements: what their topics are compared with
            others = self._sampled(max(plan.curve_samples, plan.final_samples), self._seed - 1)
            samples = self._sampled(plan.curve_samples, self._seed)
            run.start_points[key] = StartPoint(others, self._figures(samples, others))
        self._start = run.start_points[key]
        self._curve: list[dict[str, Any]] = [{"step": 0, **self._start.figures}]
        self._final: dict[str, Any] | None = None
        self._texts: list[str] = []
        self.seconds = 0.0

    def add(self, step: int, *, is_last: bool = False) -> None:
        """Measure the policy after ``step`` steps: a point of its curve, and of more samples if it is the last."""
        began = time.perf_counter()
        plan = self._run.plan
        samples = self._sampled(plan.final_samples if is_last else plan.curve_samples, self._seed)
        if step:
            self._curve.append({"step": step, **self._figures(samples[: plan.curve_samples], self._start.samples)})
        if is_last:
            self._final = dict(self._figures(samples, self._start.samples))
            self._texts = [sample.text for sample in samples[:20]] if self._run.task.may_store_texts else []
        self.seconds += time.perf_counter() - began

    def _sampled(self, count: int, seed: int) -> list[Sample]:
        return sample_texts(self._policy, repeated(self._prompts, count), seed)

    def _figures(self, samples: list[Sample], start: list[Sample]) -> Figures:
        return text_figures(self._run.evaluators, samples, start[: len(samples)], self._run.data.references)

    def result(
        self, settings: PPOSettings | None, seconds: dict[str, float], history: list[dict[str, float]]
    ) -> dict[str, Any]:
        """Everything, as JSON."""
        kept = ("step", "score", "token_reward", "kl", "entropy", "response_tokens", "truncated_share")
        return {
            "settings": None if settings is None else asdict(settings),
            "curve": self._curve,
            "final": self._final,
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
            "ppo": [{name: row[name] for name in kept} for row in history],
            "texts": self._texts,
        }
